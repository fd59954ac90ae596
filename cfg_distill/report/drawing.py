"""Pictures of the page as coordinates: the template only writes them down. Units are the pixels of a drawing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cfg_distill.evaluation.front import KINDS, swept, usual_temperature
from cfg_distill.evaluation.labels import Box, Label, along, placed

Point = Mapping[str, Any]

WIDTH, HEIGHT = 440.0, 400.0
LEFT, RIGHT, TOP, BOTTOM = 44.0, 10.0, 12.0, 44.0
_CHARACTER, _LINE = 7.0, 15.0
"""The size of a label's text: a guess, since only the browser knows its fonts."""
FAMILIES = {"student": "student", "merge": "student", "model": "student", "guidance": "guidance", "base": "base"}
"""The look of a point by its kind; a kind that is none of these has the look ``other``."""


@dataclass(frozen=True)
class Scale:
    """A linear map from values to pixels, with round values for its ticks."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.stop - self.start)

    def ticks(self, most: int = 6) -> list[tuple[float, str]]:
        """Positions and texts.

        Example:
            >>> [text for _, text in Scale(0.42, 0.71, 0, 100).ticks()]
            ['0.45', '0.50', '0.55', '0.60', '0.65', '0.70']
        """
        step = _round_step((self.high - self.low) / most)
        digits = max(0, -math.floor(math.log10(step) + 1e-9))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [(self(number * step), f"{number * step:.{digits}f}") for number in range(first, last + 1)]


def _round_step(least: float) -> float:
    power = 10 ** math.floor(math.log10(least))
    return float(next(step * power for step in (1, 2, 5, 10) if step * power >= least * (1 - 1e-9)))


def scale_of(values: Sequence[float], start: float, stop: float, margin: float = 0.08) -> Scale:
    """A scale over all values, with some room at both ends."""
    finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    room = margin * (high - low) or abs(high) * 0.1 or 1.0
    return Scale(low - room, high + room, start, stop)


@dataclass
class Dot:
    """A point of the front.

    Attributes:
        name: of the system.
        family: its look.
        x: of its middle.
        y: of its middle.
        cross: the ends of its intervals: left, right, low, high.
        shown: whether its intervals are always visible, and not only under the pointer.
        quiet: whether it is drawn small: a point at another temperature than most.
        label: its name and place, where it is written beside the point.
    """

    name: str
    family: str
    x: float
    y: float
    cross: tuple[float, float, float, float]
    shown: bool
    quiet: bool
    label: tuple[str, float, float] | None = None


@dataclass
class Panel:
    """A front: one metric of quality over one of diversity.

    Attributes:
        quality: the metric of the vertical axis.
        diversity: the metric of the horizontal axis.
        dots: the points; those that matter are last, and so on top.
        lines: sweeps: the look, and the corners.
        knob: the line of the knob: (knob, x, y), by rising knob; empty without one.
        across: the scale of diversity.
        up: the scale of quality.
    """

    quality: str
    diversity: str
    dots: list[Dot] = field(default_factory=list)
    lines: list[tuple[str, list[tuple[float, float]]]] = field(default_factory=list)
    knob: list[tuple[float, float, float]] = field(default_factory=list)
    across: Scale = Scale(0, 1, 0, 1)
    up: Scale = Scale(0, 1, 0, 1)

    def at(self, place: float | str) -> tuple[float, float] | None:
        """The place of a setting of the knob, on the straight line between its neighbours, or of a system; None for none.

        Example:
            >>> Panel("quality", "diversity", knob=[(0.0, 10, 40), (0.5, 20, 30), (1.0, 40, 30)]).at(0.75)
            (30.0, 30.0)
        """
        if isinstance(place, str):
            return next(((dot.x, dot.y) for dot in self.dots if dot.name == place), None)
        if not self.knob:
            return None
        knobs, xs, ys = zip(*self.knob, strict=True)
        return float(np.interp(place, knobs, xs)), float(np.interp(place, knobs, ys))


def front_panel(
    points: Sequence[Point], metrics: tuple[str, str], named: Sequence[str], shown: Sequence[str], line: Sequence[str]
) -> Panel:
    """The front as coordinates.

    Args:
        points: entries of front.json.
        metrics: of quality, for the vertical axis, and of diversity, for the horizontal one.
        named: the systems that are labelled, the most important first.
        shown: the systems whose intervals are always visible.
        line: the systems on the line of the knob, by rising knob.
    """
    quality, diversity = metrics
    drawn = [p for p in points if quality in p["quality"] and diversity in p["diversity"]]
    x_ends = [_mean(p, "diversity", diversity) for p in drawn]
    y_ends = [_mean(p, "quality", quality) for p in drawn]
    for p in drawn:
        if p["name"] in shown:
            x_ends += [p["diversity"][diversity][end] for end in ("low", "high")]
            y_ends += [p["quality"][quality][end] for end in ("low", "high")]
    panel = Panel(quality, diversity)
    panel.across = scale_of(x_ends, LEFT, WIDTH - RIGHT, 0.04)
    panel.up = scale_of(y_ends, HEIGHT - BOTTOM, TOP, 0.04)
    usual, plain = usual_temperature(drawn), [p["name"] for p in swept(drawn)]
    for p in sorted(drawn, key=lambda p: (p["name"] in named, p["name"] in line)):
        is_baseline = p["kind"] in KINDS["baselines"]
        quiet = (p["temperature"] != usual and p["kind"] not in ("base", "real")) or (
            (is_baseline and p["name"] not in plain) or p.get("anneal") is not None
        )
        panel.dots.append(_dot(panel, p, p["name"] in shown, quiet))
    place = {dot.name: (dot.x, dot.y) for dot in panel.dots}
    panel.lines = [(look, [place[name] for name in names]) for look, names in _sweeps(drawn, usual)]
    knobs = {p["name"]: p["knob"] for p in drawn if p.get("knob") is not None}
    panel.knob = [(knobs[name], *place[name]) for name in line if name in place and name in knobs]
    if len(panel.knob) > 1:
        panel.lines.append(("student", [(x, y) for _, x, y in panel.knob]))
    _label(panel, [name for name in named if name in place])
    return panel


def _dot(panel: Panel, point: Point, shown: bool, quiet: bool) -> Dot:
    across, up = point["diversity"][panel.diversity], point["quality"][panel.quality]
    cross = panel.across(across["low"]), panel.across(across["high"]), panel.up(up["low"]), panel.up(up["high"])
    left, right = (min(max(x, LEFT), WIDTH - RIGHT) for x in cross[:2])
    low, high = (min(max(y, TOP), HEIGHT - BOTTOM) for y in cross[2:])
    family = FAMILIES.get(point["kind"], "other")
    middle = panel.across(across["mean"]), panel.up(up["mean"])
    return Dot(point["name"], family, *middle, (left, right, low, high), shown, quiet)


def _sweeps(points: Sequence[Point], usual: float) -> list[tuple[str, list[str]]]:
    """The baselines that belong to one sweep: temperatures of the base, and scales of guidance at the usual temperature."""
    plain = swept(points)
    base = sorted((p for p in plain if p["kind"] == "base"), key=lambda p: p["temperature"])
    guided = [p for p in plain if p["kind"] == "guidance" and p["temperature"] == usual]
    start = [p for p in base if p["temperature"] == usual][:1]
    guidance = start + sorted(guided, key=lambda p: p["guidance"]) if guided else []
    sweeps = [("base", base), ("guidance", guidance)]
    return [(look, [p["name"] for p in swept]) for look, swept in sweeps if len(swept) > 1]


def _label(panel: Panel, names: Sequence[str]) -> None:
    dots = {dot.name: dot for dot in panel.dots}
    labels = [Label(dots[name].x, dots[name].y, _CHARACTER * len(name), _LINE) for name in names]
    points = [Box.around(dot.x, dot.y, 8 if dot.quiet else 26 if dot.name in names[:1] else 12) for dot in panel.dots]
    lines = [box for _, corners in panel.lines for box in along(corners, 5)]
    centres = placed(labels, points, lines, Box(LEFT, TOP, WIDTH, HEIGHT - BOTTOM))
    for name, (x, y) in zip(names, centres, strict=True):
        dots[name].label = (name, x, y)


def _mean(point: Point, axis: str, metric: str) -> float:
    return float(point[axis][metric]["mean"])


# Training curves


@dataclass
class Chart:
    """One quantity over the steps of every fit.

    Attributes:
        tag: its name in the logs.
        lines: name of the fit, and the corners of its line.
        across: the scale of steps.
        up: the scale of values.
    """

    tag: str
    lines: list[tuple[str, list[tuple[float, float]]]]
    across: Scale
    up: Scale


CHART_WIDTH, CHART_HEIGHT, CHART_LEFT, CHART_BOTTOM = 320.0, 170.0, 44.0, 24.0


def chart(tag: str, series: Mapping[str, Sequence[tuple[int, float]]]) -> Chart:
    """A chart of one tag.

    Args:
        tag: its name.
        series: fit -> (step, value), by rising step.
    """
    steps = [float(step) for points in series.values() for step, _ in points]
    values = [value for points in series.values() for _, value in points]
    across = scale_of([0.0, *steps], CHART_LEFT, CHART_WIDTH - 8, 0.0001)
    up = scale_of(values, CHART_HEIGHT - CHART_BOTTOM, 8)
    lines = [(fit, [(across(step), up(value)) for step, value in points]) for fit, points in series.items()]
    return Chart(tag, lines, across, up)
