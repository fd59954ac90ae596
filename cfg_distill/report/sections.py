"""The sections of the page that need no model: claims, tables, training curves, versions."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import cfg_distill
from cfg_distill.evaluation.collapse import curves_of
from cfg_distill.evaluation.front import ROWS
from cfg_distill.evaluation.system import System
from cfg_distill.evaluation.table import NAMED
from cfg_distill.report import formats
from cfg_distill.report.curves import EXPLAINED, charts_of, read_curves
from cfg_distill.report.drawing import chart
from cfg_distill.report.meanings import meaning_of
from cfg_distill.report.results import Results

LIBRARIES = ("torch", "lightning", "transformers", "numpy")
MOST_CURVES = 6
"""Systems of a curve of collapse: as many as there are looks of a line."""
AXES = (("quality", "quality", "Quality"), ("diversity", "diversity", "Diversity"), ("guard", "guards", "Guards"))
"""The axis of a metric, its key in front.json, and its title."""


def claims(results: Results) -> list[dict[str, Any]]:
    """The claims, each with its evidence part by part: its text, and its verdict where the part has one of its own."""
    found = []
    for claim in results.front.get("claims") or []:
        parts = [{"text": each["part"], "verdict": each["verdict"]} for each in claim.get("parts") or []]
        parts += [{"text": f"guard {each['text']}", "verdict": each["verdict"]} for each in claim.get("guards") or []]
        parts = parts or [{"text": text, "verdict": ""} for text in claim["evidence"].split("; ")]
        found.append(
            {"name": claim.get("name", ""), "claim": claim["claim"], "verdict": claim["verdict"], "parts": parts}
        )
    return found


def fronts(results: Results) -> list[dict[str, Any]]:
    """How far students and merges lie above the fronts of the baselines: a table per measure and cost."""
    tables = []
    for entry in results.front.get("fronts") or []:
        cost = {"equal": "of equal cost", "any": "of any cost"}.get(entry["cost"], entry["cost"])
        number = len(entry["baselines"])
        title = f"{formats.words(entry['diversity'])}, {number} {'baseline' if number == 1 else 'baselines'} {cost}"
        rows = [
            {"what": f"height of {each['system']}", "value": formats.signed(each["height"]), "verdict": each["verdict"]}
            for each in entry.get("curve") or []
        ]
        for key, words, written in (
            ("mean_height", "mean height of the line", formats.signed),
            ("hypervolume", "hypervolume without mixtures, difference", formats.signed),
            ("dominated", "share of baselines beaten in both", formats.cell),
        ):
            if key in entry:
                verdict = "" if key == "hypervolume" else entry[key]["verdict"]  # earlier versions had one
                rows.append({"what": words, "value": written(entry[key]), "verdict": verdict})
        tables.append({"title": title, "rows": rows, "problem": entry.get("problem", "")})
    return tables


def timing(results: Results) -> dict[str, Any] | None:
    """Measured seconds per sample, by system and number of rows; None where nothing was measured."""
    measured = results.front.get("timing") or []
    if not measured:
        return None
    numbers = sorted({each["rows"] for each in measured})
    seconds = {(each["system"], each["rows"]): formats.seconds(each["seconds"]) for each in measured}
    names = dict.fromkeys(each["system"] for each in measured)
    rows = [{"system": name, "cells": [seconds.get((name, number), "–") for number in numbers]} for name in names]
    return {"numbers": numbers, "rows": rows, "tokens": measured[0].get("tokens")}


def tables(results: Results, chosen: str | None) -> list[dict[str, Any]]:
    """One table per axis, as the template writes it: a row per system, the best mean of each metric marked.

    Real and degenerate samples are no rivals, so none of them is best; they stand last, as ``rows``.
    """
    tables = []
    for axis, key, title in AXES:
        metrics = [metric for metric in results.on(axis) if any(metric in p[key] for p in results.points)]
        scored = [p for p in results.points if p["kind"] not in ROWS]
        best = {m: max((p[key][m]["mean"] for p in scored if m in p[key]), default=None) for m in metrics}
        rows: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
        for point in results.points:
            cells = [point[key].get(metric) for metric in metrics]
            is_system = point["kind"] not in ROWS
            marked = axis != "guard" and is_system
            rows[is_system].append(
                {
                    "name": point["name"] if is_system else point["name"].removeprefix(f"{point['kind']}: "),
                    "look": point["kind"],
                    "chosen": point["name"] == chosen,
                    "passes": f"{point['relative_cost']:g}" if is_system else "",
                    "seconds": formats.seconds(point["seconds"]) if point.get("seconds") else "–" if is_system else "",
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
            tables.append({"title": title, "metrics": metrics, "systems": rows[True], "rows": rows[False]})
    return tables


def left_out(results: Results) -> list[dict[str, Any]]:
    """The metrics without a value on some prompts: on how many at most, and the first of those."""
    most: dict[str, list[str]] = {}
    for system in results.systems.values():
        for metric, prompts in system.holes().items() if system.kind not in ROWS else ():
            most[metric] = max(most.get(metric, []), prompts, key=len)
    return [
        {"metric": metric, "number": len(prompts), "prompts": prompts[:NAMED], "more": len(prompts) > NAMED}
        for metric, prompts in most.items()
    ]


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


def collapse(results: Results) -> dict[str, Any]:
    """The curves of collapse as charts, and the names of their systems: those of the claims first."""
    first = [name for name in results.claims.values() if isinstance(name, str)]
    curves = curves_of(results.points, list(dict.fromkeys(first)), MOST_CURVES)
    names = list(dict.fromkeys(system for curve in curves.values() for system in curve))
    charts = []
    for measure, curve in curves.items():
        series = {name: [(k, cell["mean"]) for k, cell in cells] for name, cells in curve.items()}
        charts.append(vars(chart(f"{measure} at k", series)) | {"about": ""})
    return {"collapse": charts, "collapsing": names}


def versions(results: Results) -> list[tuple[str, str]]:
    """Versions, counts, the folder and the time."""
    made = results.record.get("version")
    rows = [("cfg-distill", str(made) if made else cfg_distill.__version__)]
    written = [f"Python {platform.python_version()}"]
    for name in LIBRARIES:
        with suppress(PackageNotFoundError):
            written.append(f"{name} {version(name)}")
    rows.append(("This page was written with", ", ".join(written)))  # the results may be older
    first = next(iter(results.systems.values()))
    rows.append(("Prompts", str(len(first.prompts))))
    rows.append(("Samples", f"{first.samples} per prompt and seed; seeds {', '.join(map(str, first.seeds))}"))
    rows.append(("Sampling", _sampling([system for system in results.systems.values() if system.kind not in ROWS])))
    rows.append(("Folder", str(results.folder)))
    timings = _timings_file(results)
    if "wall" in timings:
        cores = timings.get("cores", 1)
        rows.append(("Time", f"{timings['wall']} on {cores} {'core' if cores == 1 else 'cores'}"))
    return rows


def _sampling(systems: Sequence[System]) -> str:
    """How all systems were sampled: ``temperature 1, top-p 0.9 to 1``. A filter that no system has is left out."""
    words = []
    for key, off in (("temperature", None), ("top_k", 0), ("top_p", 1.0), ("min_p", 0.0)):
        values = {vars(system)[key] for system in systems}
        if values != {off}:
            low, high = min(values), max(values)
            words.append(f"{key.replace('_', '-')} {low:g}" + (f" to {high:g}" if high > low else ""))
    return ", ".join(words)


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
