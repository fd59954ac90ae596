"""The sections of the page that need no model: claims, ladder, tables, training curves, versions."""

from __future__ import annotations

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import cfg_distill
from cfg_distill.report import formats
from cfg_distill.report.curves import EXPLAINED, charts_of, read_curves
from cfg_distill.report.meanings import meaning_of
from cfg_distill.report.results import Results

LIBRARIES = ("torch", "lightning", "transformers", "numpy")
AXES = (("quality", "quality", "Quality"), ("diversity", "diversity", "Diversity"), ("guard", "guards", "Guards"))
"""The axis of a metric, its key in front.json, and its title."""


def claims(results: Results) -> list[dict[str, Any]]:
    """The claims, each with its evidence part by part."""
    return [dict(claim) | {"parts": claim["evidence"].split("; ")} for claim in results.front.get("claims") or []]


def ladder(results: Results) -> dict[str, Any] | None:
    """The rows that the study made of samples whose order is known; None without such rows."""
    rows = results.front.get("ladder") or []
    heads = list(dict.fromkeys(key for row in rows for key in row))
    if not rows:
        return None
    return {"heads": heads, "rows": [[formats.cell(row.get(head)) for head in heads] for row in rows]}


def tables(results: Results, chosen: str | None) -> list[dict[str, Any]]:
    """One table per axis, as the template writes it: a row per system, the best mean of each metric marked.

    Real and broken samples are no rivals, so none of them is best.
    """
    tables = []
    for axis, key, title in AXES:
        metrics = [metric for metric in results.on(axis) if any(metric in p[key] for p in results.points)]
        scored = [p for p in results.points if p["kind"] not in ("real", "degenerate")]
        best = {m: max((p[key][m]["mean"] for p in scored if m in p[key]), default=None) for m in metrics}
        rows = []
        for point in results.points:
            cells = [point[key].get(metric) for metric in metrics]
            marked = axis != "guard" and point["kind"] not in ("real", "degenerate")
            rows.append(
                {
                    "name": point["name"],
                    "look": point["kind"],
                    "chosen": point["name"] == chosen,
                    "passes": f"{point['relative_cost']:g}",
                    "seconds": formats.seconds(point["seconds"]) if point.get("seconds") else "–",
                    "cells": [
                        cell
                        and {
                            "mean": f"{cell['mean']:.3f}",
                            "half": f"{(cell['high'] - cell['low']) / 2:.3f}",
                            "best": marked and cell["mean"] == best[metric],
                        }
                        for metric, cell in zip(metrics, cells, strict=True)
                    ],
                }
            )
        if metrics:
            tables.append({"title": title, "metrics": metrics, "rows": rows})
    return tables


def left_out(results: Results) -> list[dict[str, Any]]:
    """The metrics without a value on some prompts, and on how many prompts at most."""
    most: dict[str, int] = {}
    for point in results.points:
        for metric, number in (point.get("missing") or {}).items():
            most[metric] = max(number, most.get(metric, 0))
    return [{"metric": metric, "number": number} for metric, number in most.items()]


def meanings(results: Results) -> list[dict[str, str]]:
    """What each metric is; metrics of one class stand together."""
    specs = results.study.get("evaluation", {}).get("metrics") or {}
    found: dict[str, list[str]] = {}
    for metric, spec in specs.items():
        found.setdefault(meaning_of(spec), []).append(metric)
    return [{"metrics": ", ".join(metrics), "text": text} for text, metrics in found.items() if text]


def training(results: Results) -> dict[str, Any]:
    """The charts of the training curves, and the names of the fits: those of one fit share their look."""
    root = results.folder / "fits"
    folders = sorted({run.parent for run in root.rglob("version_*") if run.is_dir()})
    names = list(results.study.get("fits") or {})
    series = {str(each.relative_to(root)): read_curves(each) for each in folders}
    # The fits in the order of the study; of one fit, its training seeds.
    order = sorted(series, key=lambda name: (names.index(fit) if (fit := Path(name).parts[0]) in names else 99, name))
    charts = [
        vars(each) | {"about": EXPLAINED.get(each.tag, "")}
        for each in charts_of({name: series[name] for name in order})
    ]
    return {"fits": list(dict.fromkeys(Path(name).parts[0] for name in order)), "charts": charts}


def versions(results: Results) -> list[tuple[str, str]]:
    """Versions, counts, the folder and the time."""
    made = results.record.get("version")
    rows = [("cfg-distill", str(made) if made else cfg_distill.__version__), ("Python", platform.python_version())]
    for name in LIBRARIES:
        try:
            rows.append((name, version(name)))
        except PackageNotFoundError:
            continue
    first = next(iter(results.systems.values()))
    rows.append(("Prompts", str(len(first.prompts))))
    rows.append(("Samples", f"{first.samples} per prompt and seed; seeds {', '.join(map(str, first.seeds))}"))
    rows.append(("Folder", str(results.folder)))
    timings = _timings_file(results)
    if "wall" in timings:
        cores = timings.get("cores", 1)
        rows.append(("Time", f"{timings['wall']} on {cores} {'core' if cores == 1 else 'cores'}"))
    return rows


def _timings_file(results: Results) -> dict[str, Any]:
    file = results.folder / "timings.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def timings(results: Results) -> list[dict[str, str]]:
    """Seconds and memory of every step."""
    steps = _timings_file(results).get("steps", {})
    return [
        {"step": name, "seconds": f"{step['seconds']:.1f}", "memory": f"{step['peak_memory_mb']:.0f}"}
        for name, step in steps.items()
    ]
