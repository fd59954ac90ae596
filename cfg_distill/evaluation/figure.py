"""The front as a picture: quality over diversity, the sweeps of the baselines beside the line of students and merges.

The input is the entries of front.json. So a study, TensorBoard and a reader of the file alone make the same picture.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox

Point = Mapping[str, Any]

# The colours of Okabe and Ito, which differ for every common colour vision; the markers differ, too.
STYLES: dict[str, dict[str, Any]] = {
    "students": {"color": "#0072B2", "marker": "o", "size": 7.5, "linestyle": "-", "linewidth": 2.0},
    "guidance": {"color": "#D55E00", "marker": "s", "size": 7, "linestyle": "--", "linewidth": 1.3},
    "base": {"color": "#4D4D4D", "marker": "^", "size": 8.5, "linestyle": ":", "linewidth": 1.3},
}
LEGEND = {
    "students": "students and their merges, no guidance",
    "guidance": "base with guidance, at twice the cost",
    "base": "base at several temperatures",
}
FAMILY = {"student": "students", "merge": "students", "model": "students", "guidance": "guidance", "base": "base"}


def front_figure(
    points: Sequence[Point],
    quality: str,
    diversity: str,
    independent: str | None = None,
    title: str = "",
    note: str = "",
) -> Figure:
    """The whole figure: the front, and a second panel under an independent measure of diversity.

    Args:
        points: entries of front.json.
        quality: the metric of the vertical axis.
        diversity: the metric of the horizontal axis.
        independent: a measure of diversity that was no reward, for the second panel; None for one panel.
        title: one line that states the finding.
        note: one line below the title: prompts, samples, the meaning of the bars.
    """
    across = [diversity] if independent is None else [diversity, independent]
    figure = Figure(figsize=(8.2 if independent is None else 12.0, 5.6), dpi=150, layout="constrained")
    ratios = {"width_ratios": [1.45, 1][: len(across)]}
    panels = figure.subplots(1, len(across), squeeze=False, sharey=True, gridspec_kw=ratios)[0]
    legend: dict[str, Any] = {}
    for panel, metric in zip(panels, across, strict=True):
        legend |= draw_front(panel, points, quality, metric)
    panels[0].set_ylabel(_axis_label(quality, "quality"))
    if independent is not None:
        panels[1].tick_params(left=False)
    figure.suptitle(title or f"{quality} and {diversity}".replace("_", " "), x=0.012, ha="left", fontsize=13)
    if note:
        figure.text(0.012, 0.925, note, fontsize=9, color="#555555")
        panels[0].set_title(" ", fontsize=12)  # reserves the space of the note
    columns = min(len(legend), 3)
    figure.legend(
        list(legend.values()), list(legend), loc="outside lower left", ncols=columns, frameon=False, fontsize=9
    )
    _place_labels(figure, panels)
    return figure


def draw_front(panel: Axes, points: Sequence[Point], quality: str, diversity: str) -> dict[str, Line2D]:
    """Draw the lines, points and intervals of one panel; return the entries of its legend.

    Labels are written but not placed: their places depend on the size of the panel.
    """
    panel.set_xlabel(_axis_label(diversity, "diversity"))
    panel.grid(color="#E6E6E6", linewidth=0.8)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(labelsize=9)
    panel.margins(0.12)
    usual = _usual_temperature(points)
    legend: dict[str, Line2D] = {}
    for (family, temperature), points_of_line in _lines(points).items():
        drawn = [p for p in points_of_line if quality in p["quality"] and diversity in p["diversity"]]
        line = _Line(family, temperature, temperature in (None, usual), drawn, quality, diversity)
        if line.own:
            line.draw(panel)
            legend[line.meaning] = Line2D([], [], **(line.dots | line.path))
    return legend


@dataclass(frozen=True)
class _Line:
    """One line of a panel: the sweep of a family at one temperature.

    Attributes:
        family: a key of :data:`STYLES`.
        temperature: of all its points; None where the temperature is what is swept.
        usual: whether it is the temperature of most points: that line is drawn in full.
        drawn: the points in the order of the line.
        quality: the metric of the vertical axis.
        diversity: the metric of the horizontal axis.
    """

    family: str
    temperature: float | None
    usual: bool
    drawn: Sequence[Point]
    quality: str
    diversity: str

    @property
    def own(self) -> list[Point]:
        """The points of this family. A sweep of guidance begins at a point of the base."""
        return [p for p in self.drawn if FAMILY[p["kind"]] == self.family]

    @property
    def joined(self) -> list[Point]:
        """The points that the line goes through: of students, those that lie between the two that are merged."""
        return [p for p in self.drawn if self.family != "students" or p.get("knob") is not None]

    @property
    def quiet(self) -> bool:
        """Whether names and bars are left out: a second sweep follows the first, and they would only bury it."""
        return not self.usual and len(self.joined) > 1

    @property
    def path(self) -> dict[str, Any]:
        """The look of the line."""
        style = STYLES[self.family]
        width = style["linewidth"] if self.usual else 1.0
        return {"color": style["color"], "linestyle": style["linestyle"], "linewidth": width}

    @property
    def dots(self) -> dict[str, Any]:
        """The look of its points: filled at the usual temperature."""
        style = STYLES[self.family]
        dots = {"color": style["color"], "marker": style["marker"], "markersize": style["size"], "markeredgewidth": 1.0}
        return dots | ({"markeredgecolor": "white"} if self.usual else {"markerfacecolor": "white"})

    @property
    def meaning(self) -> str:
        """Its entry in the legend."""
        meaning = "base" if self.family == "base" and len(self.own) == 1 else LEGEND[self.family]
        return meaning if self.usual else f"{meaning}, T {self.temperature:g}"

    def draw(self, panel: Axes) -> None:
        """Draw the line, its intervals, its points and their names."""
        own, color = self.own, STYLES[self.family]["color"]
        panel.plot(
            *_means(self.joined, self.quality, self.diversity), **self.path, alpha=0.5 if self.quiet else 0.85, zorder=2
        )
        x, y = _means(own, self.quality, self.diversity)
        if self.quiet:
            panel.plot(x, y, **(self.dots | {"markersize": 5.0}), linestyle="", zorder=3)
            return
        bars: dict[str, Any] = {
            "xerr": _bars(p["diversity"][self.diversity] for p in own),
            "yerr": _bars(p["quality"][self.quality] for p in own),
        }
        panel.errorbar(x, y, **bars, fmt="none", ecolor=color, elinewidth=0.9, alpha=0.3, zorder=1)
        panel.plot(x, y, **self.dots, linestyle="", zorder=4)
        for point, a, b in zip(own, x, y, strict=True):
            text = panel.annotate(point["name"], (a, b), (0, 0), textcoords="offset points", fontsize=9, zorder=5)
            text.set(color=color, gid="label", path_effects=[withStroke(linewidth=2.5, foreground="white")])


def _axis_label(metric: str, axis: str) -> str:
    words = metric.replace("_", " ")
    return words if axis in words else f"{axis}: {words}"


def _means(points: Sequence[Point], quality: str, diversity: str) -> tuple[list[float], list[float]]:
    return [p["diversity"][diversity]["mean"] for p in points], [p["quality"][quality]["mean"] for p in points]


def _lines(points: Sequence[Point]) -> dict[tuple[str, float | None], list[Point]]:
    """Points by the line they lie on, in the order in which the line is drawn."""
    lines: dict[tuple[str, float | None], list[Point]] = {}
    bases = [p for p in points if p["kind"] == "base"]
    for temperature in dict.fromkeys(p["temperature"] for p in points if p["kind"] == "guidance"):
        swept = [p for p in points if p["kind"] == "guidance" and p["temperature"] == temperature]
        start = [p for p in bases if p["temperature"] == temperature]  # guidance 1
        lines["guidance", temperature] = start[:1] + sorted(swept, key=lambda p: p["guidance"])
    if bases:
        lines["base", None] = sorted(bases, key=lambda p: p["temperature"])
    students = [p for p in points if FAMILY[p["kind"]] == "students"]
    for temperature in dict.fromkeys(p["temperature"] for p in students):
        own = [p for p in students if p["temperature"] == temperature]
        lines["students", temperature] = sorted(own, key=lambda p: -1.0 if p.get("knob") is None else p["knob"])
    return dict(sorted(lines.items(), key=lambda item: list(STYLES).index(item[0][0])))


def _usual_temperature(points: Sequence[Point]) -> float:
    """The temperature of most points. Their markers are filled."""
    temperatures = [p["temperature"] for p in points]
    return max(temperatures, key=temperatures.count)


def _bars(values: Iterable[Mapping[str, float]]) -> list[list[float]]:
    values = list(values)
    return [[v["mean"] - v["low"] for v in values], [v["high"] - v["mean"] for v in values]]


# Labels

_DIRECTIONS = [(1, 0.55), (-1, 0.55), (1, -0.55), (-1, -0.55), (0, 1), (0, -1), (1, 0), (-1, 0)]


def _place_labels(figure: Figure, panels: Sequence[Axes]) -> None:
    """Put each label beside its point, where it covers least of other labels, points and lines."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # the sizes of texts and panels are known from here on
    renderer = canvas.get_renderer()
    scale = figure.dpi / 72
    for panel in panels:
        labels = [text for text in panel.texts if text.get_gid() == "label"]
        centres = [panel.transData.transform(text.xy) for text in labels]  # type: ignore[attr-defined]
        taken = [
            _box(x, y, (line.get_markersize() + 1) * scale)
            for line in panel.lines
            if line.get_linestyle() == "None"
            for x, y in panel.transData.transform(line.get_xydata())
        ]
        lined = [box for line in panel.lines for box in _along(panel, line, 4 * scale)]
        frame = panel.get_window_extent(renderer)
        for text, (x, y) in zip(labels, centres, strict=True):
            size = text.get_window_extent(renderer)
            best: tuple[float, Bbox, tuple[float, float]] | None = None
            for reach, (across, up) in product((8.0, 12.0, 17.0, 24.0), _DIRECTIONS):
                centre = (
                    x + across * (size.width / 2 + reach * scale * 0.8),
                    y + up * (size.height / 2 + reach * scale * 0.8),
                )
                box = _box(*centre, size.width, size.height)
                cost = (
                    20 * reach
                    + 12 * sum(_overlap(box, other) for other in taken)
                    + sum(_overlap(box, other) for other in lined) / 2
                )
                cost += 100 * (size.width * size.height - _overlap(box, frame))
                if best is None or cost < best[0]:
                    best = (cost, box, centre)
            assert best is not None
            taken.append(best[1])
            text.set_position(((best[2][0] - x) / scale, (best[2][1] - y) / scale))
            text.set(ha="center", va="center")


def _box(x: float, y: float, width: float, height: float | None = None) -> Bbox:
    """A box around a point; without a height, a square."""
    height = width if height is None else height
    return Bbox.from_bounds(x - width / 2, y - height / 2, width, height)


def _overlap(a: Bbox, b: Bbox) -> float:
    """Area in square pixels."""
    shared = Bbox.intersection(a, b)
    return 0.0 if shared is None else shared.width * shared.height


def _along(panel: Axes, line: Any, size: float) -> list[Bbox]:
    """Small boxes along a line."""
    corners: Any = panel.transData.transform(line.get_xydata()) if len(line.get_xdata()) else []
    boxes = []
    for (x0, y0), (x1, y1) in pairwise(corners):
        steps = max(int(max(abs(x1 - x0), abs(y1 - y0)) / size), 1)
        boxes += [_box(x0 + (x1 - x0) * i / steps, y0 + (y1 - y0) * i / steps, size, size) for i in range(steps + 1)]
    return boxes
