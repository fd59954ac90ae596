"""The picture: every system is there, no label covers another, and the table marks the best."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from cfg_distill.evaluation import front_figure, front_table


def point(name: str, kind: str, quality: float, diversity: float, guidance: float = 1.0, t: float = 1.0, knob=None):
    def around(mean: float) -> dict[str, float]:
        return {"mean": mean, "low": mean - 0.02, "high": mean + 0.03}

    return {
        "name": name,
        "kind": kind,
        "quality": {"quality": around(quality)},
        "diversity": {"diversity": around(diversity), "bigram": around(diversity / 2 + 0.4)},
        "guards": {"length": around(5.0)},
        "relative_cost": 1.0 if guidance == 1 else 2.0,
        "temperature": t,
        "guidance": guidance,
        "knob": knob,
    }


POINTS = [
    point("base", "base", 0.649, 0.665),
    point("base T 0.8", "base", 0.677, 0.657, t=0.8),
    point("guidance 1.5", "guidance", 0.685, 0.575, 1.5),
    point("guidance 2", "guidance", 0.693, 0.518, 2.0),
    point("guidance 3", "guidance", 0.694, 0.434, 3.0),
    point("quality", "student", 0.694, 0.525, knob=0.0),
    point("half", "merge", 0.681, 0.581, knob=0.5),
    point("diversity", "student", 0.651, 0.655, knob=1.0),
]


@pytest.mark.parametrize(
    ("sweeps", "expected"),
    [
        (["base"], {"base", "guidance 1.5", "guidance 3"}),
        (["guided"], {"base", "guidance 1.5", "guidance 3"}),
        (["a", "b"], {"base", "a guidance 1.5", "b guidance 3"}),
    ],
)
def test_a_sweep_of_guidance_is_labelled_by_what_differs_in_it(sweeps, expected):
    guided = [
        point(f"{sweep} guidance {gamma:g} T 1", "guidance", 0.69, 0.5 - gamma / 20, gamma)
        for sweep, gamma in zip(sweeps * 2, (1.5, 3.0), strict=False)
    ]
    panel = front_figure([POINTS[0], *guided], "quality", "diversity").axes[0]
    assert {text.get_text() for text in labels(panel)} == expected


def labels(panel):
    return [text for text in panel.texts if text.get_gid() == "label"]


@pytest.mark.parametrize("independent", [None, "bigram"])
def test_every_system_is_labelled_and_no_label_covers_another(independent):
    figure = front_figure(POINTS, "quality", "diversity", independent, "what was found", "what the bars mean")
    renderer = figure.canvas.get_renderer()
    assert len(figure.axes) == (1 if independent is None else 2)
    for panel in figure.axes:
        assert {text.get_text() for text in labels(panel)} == {p["name"] for p in POINTS}
        boxes = [Bbox.from_bounds(*text.get_window_extent(renderer).bounds) for text in labels(panel)]
        for a, b in itertools.combinations(boxes, 2):
            shared = Bbox.intersection(a, b)
            assert shared is None or shared.width * shared.height < 1


def test_lines_join_sweeps_in_their_order():
    figure = front_figure(POINTS[::-1], "quality", "diversity")
    paths = {line.get_color(): line.get_xdata() for line in figure.axes[0].lines if line.get_linestyle() != "None"}
    assert list(paths["#0072B2"]) == [0.525, 0.581, 0.655]  # by the knob
    assert list(paths["#D55E00"]) == [0.665, 0.575, 0.518, 0.434]  # guidance 1, which is the base, to 3
    assert list(paths["#4D4D4D"]) == [0.657, 0.665]  # by temperature


def test_a_second_temperature_is_drawn_without_names():
    cold = [point(f"{p['name']} T 0.8", p["kind"], p["quality"]["quality"]["mean"] + 0.02, 0.6, p["guidance"], 0.8,
                  p["knob"]) for p in POINTS[2:]]  # fmt: skip
    panel = front_figure(POINTS + cold, "quality", "diversity").axes[0]
    assert {text.get_text() for text in labels(panel)} == {p["name"] for p in POINTS}
    shown = sum(len(line.get_xdata()) for line in panel.lines if line.get_linestyle() == "None")
    assert shown == len(POINTS) + len(cold)


def test_points_with_a_filter_lie_on_no_sweep():
    filtered = point("base top-p 0.9", "base", 0.7, 0.4) | {"top_p": 0.9}
    panel = front_figure([*POINTS, filtered], "quality", "diversity").axes[0]
    (base,) = (line for line in panel.lines if line.get_color() == "#4D4D4D" and line.get_linestyle() == ":")
    assert list(base.get_xdata()) == [0.657, 0.665]
    assert "base top-p 0.9" not in {text.get_text() for text in labels(panel)}
    assert sum(len(line.get_xdata()) for line in panel.lines if line.get_linestyle() == "None") == len(POINTS) + 1


def test_of_a_long_sweep_the_ends_and_the_marked_points_are_named():
    sweep = [point(f"guidance {g:g}", "guidance", 0.6 + g / 50, 0.6 - g / 30, g) for g in (1.25, 1.5, 2, 2.5, 3, 4, 5)]
    panel = front_figure([POINTS[0], *sweep], "quality", "diversity", marked=["guidance 2"]).axes[0]
    assert {text.get_text() for text in labels(panel)} == {"base", "guidance 1.25", "guidance 2", "guidance 5"}
    ends = np.concatenate([np.concatenate(bar.get_segments()) for bar in panel.collections])
    assert ends[:, 1].mean() == pytest.approx(0.64, abs=0.01)  # the intervals of the marked one alone


def test_models_that_nobody_called_students_are_not_in_the_legend():
    """As of ``evaluate``, whose unguided base was told as a student."""
    found = [
        point("a", "model", 0.6, 0.6),
        point("b", "model", 0.62, 0.6),
        point("a guided", "guidance", 0.7, 0.5, 2.0),
    ]
    told = [text.get_text() for text in front_figure(found, "quality", "diversity").legends[0].get_texts()]
    assert told == ["without guidance, one pass", "guidance, two passes"]
    told = [text.get_text() for text in front_figure(POINTS, "quality", "diversity").legends[0].get_texts()]
    assert "students and merges, one pass" in told


def test_a_filter_that_all_have_is_no_filter():
    """As of ``evaluate --top-k 20``, whose picture had no name and no legend."""
    found = [point("a", "model", 0.6, 0.6), point("a guided", "guidance", 0.7, 0.5, 2.0)]
    panel = front_figure([each | {"top_k": 20} for each in found], "quality", "diversity").axes[0]
    assert {text.get_text() for text in labels(panel)} == {"a", "a guided"}
    panel = front_figure([found[0] | {"top_k": 20}, found[1]], "quality", "diversity").axes[0]
    assert {text.get_text() for text in labels(panel)} == {"a guided"}


def test_a_baseline_that_begins_by_another_model_is_no_student():
    """It takes the passes of both."""
    annealed = point("base annealed", "model", 0.6, 0.6) | {"anneal": {"base": "b", "power": 2.0}}
    panel = front_figure([*POINTS, annealed], "quality", "diversity").axes[0]
    assert "base annealed" not in {text.get_text() for text in labels(panel)}
    dots = [line for line in panel.lines if line.get_linestyle() == "None" and [0.6, 0.6] in line.get_xydata().tolist()]
    assert [line.get_markerfacecolor() for line in dots] == ["white"]


def test_real_samples_are_drawn_and_broken_ones_are_not():
    ladder = [point("real", "real", 0.68, 0.9), point("loops", "degenerate", 0.1, 0.0)]
    panel = front_figure([*POINTS, *ladder], "quality", "diversity").axes[0]
    assert "real" in {text.get_text() for text in labels(panel)}
    assert min(panel.get_ylim()) > 0.5


def test_the_picture_is_read_at_the_width_of_a_readme():
    """At 830 pixels no letter is smaller than 11 pixels, and the legend ends inside the picture."""
    figure = front_figure(POINTS, "quality", "diversity", "bigram", "what was found", "what the bars mean")
    renderer = figure.canvas.get_renderer()
    pixels_of_a_point = 830 / figure.get_figwidth() / 72
    texts = [text for text in figure.findobj(Text) if text.get_text().strip() and text.get_visible()]
    assert min(text.get_fontsize() for text in texts) * pixels_of_a_point > 11
    assert figure.legends[0].get_window_extent(renderer).x1 < figure.get_figwidth() * figure.dpi
    assert figure.get_figwidth() * figure.dpi >= 2 * 830 - 1  # sharp on a screen with two pixels for one


@pytest.mark.parametrize(
    "title", ["short", "Merge “seven eighths” against guidance 1.5: quality +0.027, diversity -0.035, " * 2]
)
def test_a_title_ends_inside_the_picture(title):
    figure = front_figure(POINTS, "quality", "diversity", title=title)
    (heading,) = (text for text in figure.findobj(Text) if text.get_text() == title)
    assert heading.get_window_extent(figure.canvas.get_renderer()).x1 <= figure.bbox.width
    assert (heading.get_fontsize() == 11.5) == (title == "short")


def test_bars_are_the_intervals():
    figure = front_figure(POINTS[:1], "quality", "diversity")
    ends = np.concatenate([np.concatenate(bar.get_segments()) for bar in figure.axes[0].collections])
    assert ends.min(0) == pytest.approx([0.645, 0.629])
    assert ends.max(0) == pytest.approx([0.695, 0.679])


def test_the_table_marks_the_best_and_tells_half_widths():
    quality, diversity, guards = ({line.split("  ")[0]: line for line in block.splitlines()}
                                  for block in front_table(POINTS).split("\n\n"))  # fmt: skip
    assert "0.694 ±0.025*" in quality["guidance 3"]
    assert "0.649 ±0.025" in quality["base"]
    assert "*" not in quality["base"]
    assert "0.665 ±0.025*" in diversity["base"]
    assert "2x" in quality["guidance 2"]
    assert not any("*" in line for line in guards.values())
    assert max(len(line) for line in front_table(POINTS).splitlines()) < 100
