"""Curves of collapse: which metrics are one curve, in which order systems stand, and what a picture and a page show."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from made_study import line, read_study, write_study
from matplotlib.colors import to_hex

from cfg_distill.evaluation import System
from cfg_distill.evaluation.collapse import MOST, curves_of, has_curves
from cfg_distill.evaluation.figure import collapse_figure
from cfg_distill.evaluation.models import write_front
from cfg_distill.report import write_report
from cfg_distill.study.steps import plan


def cell(mean: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - 0.1, "high": mean + 0.1}


def point(name: str, kind: str, **metrics: float) -> dict[str, Any]:
    named = {metric.replace("_at_", "@"): cell(mean) for metric, mean in metrics.items()}
    return {"name": name, "kind": kind, "quality": {}, "diversity": named, "guards": {"coverage@2": cell(0.5)}}


POINTS = [
    point("base", "base", distinct_at_10=7.0, distinct_at_2=1.9, distinct_at_1=1.0, distinct=3.0),
    point("guidance 2", "guidance", distinct_at_1=1.0, distinct_at_2=1.7, distinct_at_10=5.0),
    point("real: tunes", "real", distinct_at_1=1.0, distinct_at_2=2.0),
    point("diversity", "student", distinct_at_1=1.0, distinct_at_2=1.8, distinct_at_10=6.0),
    point("no curve", "student", distinct_at_2=1.8),
]


def test_metrics_that_differ_in_k_are_one_curve_by_rising_k() -> None:
    found = curves_of(POINTS)
    assert list(found) == ["distinct"], "a single k is no curve"
    assert list(found["distinct"]) == ["diversity", "base", "guidance 2"], "students, base, guidance; no real samples"
    assert [(k, each["mean"]) for k, each in found["distinct"]["base"]] == [(1, 1.0), (2, 1.9), (10, 7.0)]
    assert list(curves_of(POINTS, ["guidance 2", "gone"], most=2)["distinct"]) == ["guidance 2", "diversity"]
    assert has_curves(["distinct@1", "distinct@4"]) and not has_curves(
        ["distinct@1", "recall@4", "distinct@0", "distinct"]
    )
    many = [point(f"student {n}", "student", distinct_at_1=1.0, distinct_at_2=2.0) for n in range(MOST + 3)]
    assert len(curves_of(many)["distinct"]) == MOST


def test_the_picture_has_a_line_with_its_interval_per_system() -> None:
    figure = collapse_figure(curves_of(POINTS), "a note")
    (panel,) = figure.axes
    assert [list(line.get_xdata()) for line in panel.lines] == [[1, 2, 10]] * 3  # type: ignore[arg-type]
    assert next(list(line.get_ydata()) for line in panel.lines) == [1.0, 1.8, 6.0]  # type: ignore[arg-type]
    looks = {(to_hex(line.get_color()), line.get_linestyle()) for line in panel.lines}
    assert len(looks) == 3
    (band, *_) = panel.collections
    ys = band.get_paths()[0].vertices[:, 1]  # type: ignore[index]
    assert ys.min() == pytest.approx(0.9) and ys.max() == pytest.approx(6.1)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["diversity", "base", "guidance 2"]
    assert panel.get_ylabel() == "distinct at k"


def test_measures_stand_two_side_by_side_and_none_is_an_empty_picture() -> None:
    places = [f"{name}_at_{k}" for name in "abc" for k in (1, 2)]
    figure = collapse_figure(curves_of([point("base", "base", **dict.fromkeys(places, 1.0))]))
    assert [panel.get_subplotspec().get_geometry()[:2] for panel in figure.axes] == [(2, 2)] * 3  # type: ignore[union-attr]
    assert collapse_figure({}).axes == []


def with_curves(systems: list[System]) -> list[System]:
    for number, (system, k) in enumerate(itertools.product(systems, (1, 4, 16))):
        system.axes[f"distinct@{k}"] = "diversity"
        rows = next(iter(system.values.values()))
        system.values[f"distinct@{k}"] = [[min(k, 1.0 + number)] * len(row) for row in rows]
    return systems


def test_an_evaluation_draws_them_and_one_without_any_does_not(tmp_path: Path) -> None:
    write_front(tmp_path, line(), None)
    assert not (tmp_path / "collapse.png").exists()
    write_front(tmp_path, with_curves(line()), None)
    assert (tmp_path / "collapse.png").read_bytes()[:4] == b"\x89PNG"


def test_the_picture_is_a_file_of_its_study() -> None:
    """So it is remade when it is gone, and a file of the user's of that name is not replaced."""
    plain, curved = (read_study("recipes/quickstart.yaml") for _ in range(2))
    some = plain.evaluation.metrics["diversity"]
    curved.evaluation.metrics |= {f"distinct@{k}": some for k in (1, 2)}
    files = [[path.name for path in plan(study, Path("out"))[-1].outputs] for study in (plain, curved)]
    assert files == [["front.json", "front.png", "table.txt"], ["front.json", "front.png", "table.txt", "collapse.png"]]


def test_the_page_shows_the_systems_of_the_claims(tmp_path: Path) -> None:
    plain = write_report(write_study(tmp_path / "plain", kind="")).read_text()
    assert 'id="collapse"' not in plain
    page = write_report(write_study(tmp_path / "study", with_curves(line()), kind="")).read_text()
    part = page[page.index('<section id="collapse"') :]
    part = part[: part.index("</section>")]
    shown = [entry.partition("</svg>")[2].partition("<")[0] for entry in part.split("<li>")[1:]]
    assert shown[:4] == ["base", "guidance 2", "quality", "diversity"]
    assert part.count('<path class="curve fit') == 2 * len(shown)
    assert all(f"<title>{name}</title>" in part for name in shown)
    assert 'aria-label="distinct at k over samples"' in part
    assert '<a href="#collapse">Collapse</a>' in page
