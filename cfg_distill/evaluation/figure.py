"""The front as a picture: quality over diversity, the sweeps of the baselines beside the line of students and merges.

It is made to be read at the width of a README, about 830 pixels. The input is the entries of front.json. So a study,
TensorBoard and a reader of the file alone make the same picture.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from cfg_distill.evaluation.collapse import Curve
from cfg_distill.evaluation.front import is_filtered, plain_filters, swept, usual_temperature
from cfg_distill.evaluation.labels import Box, Label, along, placed

Point = Mapping[str, Any]

# The colours of Okabe and Ito, which differ for every common colour vision; the markers differ, too.
STYLES: dict[str, dict[str, Any]] = {
    "students": {"color": "#0072B2", "marker": "o", "size": 7.0, "linestyle": "-", "linewidth": 2.0},
    "guidance": {"color": "#D55E00", "marker": "s", "size": 6.0, "linestyle": "--", "linewidth": 1.2},
    "base": {"color": "#4D4D4D", "marker": "^", "size": 7.0, "linestyle": ":", "linewidth": 1.4},
    "real": {"color": "#009E73", "marker": "D", "size": 5.5, "linestyle": "", "linewidth": 0.0},
}
LEGEND = {
    "students": "students and merges, one pass",
    "guidance": "guidance, two passes",
    "base": "base",
    "real": "real samples",
}
QUIET = "another temperature, filter or model"
FAMILY = {
    "student": "students", "merge": "students", "model": "students", "guidance": "guidance", "base": "base", "real": "real"
}  # fmt: skip
"""The family of each kind that is drawn. Broken samples, the kind ``degenerate``, lie far from all others and are not."""
WIDTH, DPI = 8.3, 200
"""Inches, and pixels per inch: at 830 pixels a point of type is 1.4 pixels."""
CURVES = (
    ("#0072B2", "-"), ("#D55E00", "--"), ("#4D4D4D", ":"), ("#009E73", "-."), ("#CC79A7", "-"), ("#E69F00", "--"),
    ("#56B4E9", ":"), ("#8A7A00", "-."),
)  # fmt: skip
"""Colour and line of each curve of collapse."""
LABEL_GAP = 5.0
"""Between the texts of two labels, in typographic points."""
MOST_NAMED = 5
"""The most points of one line that are all named; of a longer one, its ends are."""


def front_figure(
    points: Sequence[Point],
    quality: str,
    diversity: str,
    independent: str | None = None,
    title: str = "",
    note: str = "",
    marked: Collection[str] = (),
) -> Figure:
    """The whole figure: the front, and a second panel under an independent measure of diversity.

    Args:
        points: entries of front.json.
        quality: the metric of the vertical axis.
        diversity: the metric of the horizontal axis.
        independent: a measure of diversity that was no reward, for the second panel; None for one panel.
        title: one line that states the finding.
        note: one line below the title: prompts, samples, the meaning of the bars.
        marked: the systems that always have a name, and that alone have intervals. None: students and merges have intervals,
            and without these all that have a name.
    """
    across = [diversity] if independent is None else [diversity, independent]
    figure = Figure(figsize=(WIDTH, 5.0), dpi=DPI, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.06, h_pad=0.06)  # type: ignore[union-attr, call-arg]
    ratios = {"width_ratios": [1.25, 1][: len(across)]}
    panels = figure.subplots(1, len(across), squeeze=False, sharey=True, gridspec_kw=ratios)[0]
    legend: dict[str, Any] = {}
    for panel, metric in zip(panels, across, strict=True):
        legend |= draw_front(panel, points, quality, metric, marked)
    panels[0].set_ylabel(_axis_label(quality, "quality"))
    if independent is not None:
        panels[1].tick_params(left=False)
    heading = figure.suptitle(
        title or f"{quality} and {diversity}".replace("_", " "), x=0.012, ha="left", fontsize=11.5
    )
    room = (1 - 4 * 0.012) * figure.bbox.width / heading.get_window_extent().width
    heading.set_fontsize(11.5 * min(1.0, room))  # names of systems are the user's, and may be long
    if note:
        figure.text(0.012, 0.925, note, fontsize=8, color="#555555")
        panels[0].set_title(" ", fontsize=9)  # reserves the space of the note
    handles: dict[str, Any] = {
        "loc": "outside lower left",
        "ncols": 4 if len(legend) <= 4 else 3,  # two even rows
        "frameon": False,
        "fontsize": 9,
        "columnspacing": 1.4,
    }
    figure.legend(list(legend.values()), list(legend), **handles)
    _place_labels(figure, panels)
    return figure


def collapse_figure(curves: Mapping[str, Curve], note: str = "") -> Figure:
    """A panel per measure, two side by side: its mean over k, with its interval, for every system.

    Args:
        curves: see :func:`~cfg_distill.evaluation.collapse.curves_of`; none where no metric has a value.
        note: one line: prompts, samples, the meaning of the bands.
    """
    rows = max(1, math.ceil(len(curves) / 2))
    figure = Figure(figsize=(WIDTH, 1 + 3.2 * rows), dpi=DPI, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.06, h_pad=0.06)  # type: ignore[union-attr, call-arg]
    panels = [figure.add_subplot(rows, min(2, len(curves)), place + 1) for place in range(len(curves))]
    names = list(dict.fromkeys(system for curve in curves.values() for system in curve))
    handles = {}
    for panel, (measure, curve) in zip(panels, curves.items(), strict=True):
        panel.grid(color="#ECECEC", linewidth=0.7)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
        panel.set_xscale("log", base=2)
        ticks = sorted({k for cells in curve.values() for k, _ in cells})
        panel.set_xticks(ticks, list(map(str, ticks)))
        panel.minorticks_off()
        panel.set_xlabel("samples of a prompt, k")
        panel.set_ylabel(f"{measure.replace('_', ' ')} at k")
        for system, cells in curve.items():
            place = names.index(system)
            look: dict[str, Any] = {
                "color": CURVES[place % len(CURVES)][0],
                "linestyle": CURVES[place % len(CURVES)][1],
            }
            ks, means = [k for k, _ in cells], [cell["mean"] for _, cell in cells]
            (handles[system],) = panel.plot(ks, means, **look, linewidth=1.8, marker="o", markersize=3)
            low, high = ([cell[end] for _, cell in cells] for end in ("low", "high"))
            panel.fill_between(ks, low, high, color=look["color"], alpha=0.12, linewidth=0)
    if note:
        figure.suptitle(note, x=0.012, ha="left", fontsize=8, color="#555555")
    figure.legend(
        [handles[name] for name in names], names, loc="outside lower left", ncols=4, frameon=False, fontsize=9
    )
    return figure


def save_figure(figure: Figure, file: Path) -> None:
    """Write a picture as PNG: a reader sees the old picture or the new one."""
    staged = file.with_name(f".{file.name}")
    figure.savefig(staged, format="png")
    staged.replace(file)


def draw_front(
    panel: Axes, points: Sequence[Point], quality: str, diversity: str, marked: Collection[str] = ()
) -> dict[str, Line2D]:
    """Draw the lines, points and intervals of one panel; return the entries of its legend.

    Labels are written but not placed: their places depend on the size of the panel.
    """
    panel.set_xlabel(_axis_label(diversity, "diversity"))
    panel.grid(color="#ECECEC", linewidth=0.7)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    panel.spines[["left", "bottom"]].set_color("#BBBBBB")
    panel.tick_params(labelsize=9, color="#BBBBBB")
    panel.margins(0.1)
    drawn = [p for p in points if p["kind"] in FAMILY and quality in p["quality"] and diversity in p["diversity"]]
    usual = usual_temperature(drawn)
    legend: dict[str, Line2D] = {}
    for family in STYLES:
        line = _Line(family, usual, drawn, quality, diversity, marked)
        line.draw(panel)
        if line.loud:
            legend[line.meaning] = Line2D([], [], **(line.dots | line.path))
        if line.quiet:
            size: dict[str, Any] = {"marker": "o", "markersize": 4, "color": "#888888", "markerfacecolor": "white"}
            legend[QUIET] = Line2D([], [], linestyle="", **size)
    return {meaning: legend[meaning] for meaning in sorted(legend, key=lambda meaning: meaning == QUIET)}


@dataclass(frozen=True)
class _Line:
    """The points of one family: its sweep at the usual temperature, and all others as small points.

    Attributes:
        family: a key of :data:`STYLES`.
        usual: the temperature of most points; of the base, the temperature itself is swept.
        drawn: the points of all families.
        quality: the metric of the vertical axis.
        diversity: the metric of the horizontal axis.
        marked: the systems that always have a name; where there are some, they alone have intervals.
    """

    family: str
    usual: float
    drawn: Sequence[Point]
    quality: str
    diversity: str
    marked: Collection[str]

    @property
    def loud(self) -> list[Point]:
        """The points of the sweep, in its order."""
        own = [p for p in self.drawn if FAMILY[p["kind"]] == self.family]
        if self.family == "real":
            return own
        if self.family != "students":
            own = [p for p in own if p in swept(self.drawn)]
        if self.family == "base":
            return sorted(own, key=lambda p: p["temperature"])
        loud = [p for p in own if p["temperature"] == self.usual]
        if self.family == "guidance":
            return sorted(loud, key=lambda p: p["guidance"])
        plain = plain_filters(self.drawn) | {"anneal": None}
        loud = [p for p in loud if not is_filtered(p, plain)]
        return sorted(loud, key=lambda p: -1.0 if p.get("knob") is None else p["knob"])

    @property
    def quiet(self) -> list[Point]:
        """The other points of the family: they follow the sweep, and their names would only bury it."""
        loud = [p["name"] for p in self.loud]
        return [p for p in self.drawn if FAMILY[p["kind"]] == self.family and p["name"] not in loud]

    @property
    def joined(self) -> list[Point]:
        """The points that the line goes through: of students, those that lie between the two that are merged."""
        if self.family == "students":
            return [p for p in self.loud if p.get("knob") is not None]
        if self.family == "guidance":  # guidance 1 is the base
            base = [p for p in swept(self.drawn) if p["kind"] == "base" and p["temperature"] == self.usual]
            return base[:1] + self.loud
        return self.loud

    @property
    def named(self) -> list[Point]:
        """The points that have a name."""
        loud = self.loud
        ends = loud if len(loud) <= MOST_NAMED else [loud[0], loud[-1]]
        marked = [p for p in self.loud + self.quiet if p["name"] in self.marked]
        return marked + [p for p in ends if p not in marked]

    @property
    def path(self) -> dict[str, Any]:
        """The look of the line."""
        style = STYLES[self.family]
        return {"color": style["color"], "linestyle": style["linestyle"], "linewidth": style["linewidth"]}

    @property
    def dots(self) -> dict[str, Any]:
        """The look of its points."""
        style = STYLES[self.family]
        dots = {"color": style["color"], "marker": style["marker"], "markersize": style["size"], "markeredgewidth": 1.0}
        return dots | {"markeredgecolor": "white"}

    @property
    def meaning(self) -> str:
        """Its entry in the legend."""
        if self.family == "students" and all(p["kind"] == "model" for p in self.loud):
            return "without guidance, one pass"  # finished models: which of them is a student, nobody said
        return LEGEND[self.family]

    def draw(self, panel: Axes) -> None:
        """Draw the line, its intervals, its points and their names."""
        color = STYLES[self.family]["color"]
        if self.path["linestyle"] and len(self.joined) > 1 and self.loud:
            panel.plot(*_means(self.joined, self.quality, self.diversity), **self.path, alpha=0.85, zorder=2)
        small = {"markersize": 3.8, "markerfacecolor": "white", "markeredgecolor": color, "markeredgewidth": 0.9}
        quiet = _means(self.quiet, self.quality, self.diversity)
        panel.plot(*quiet, **(self.dots | small), alpha=0.55, linestyle="", zorder=3)
        named = self.named
        leading = self.family == "students" or not any(FAMILY[p["kind"]] == "students" for p in self.drawn)
        barred = [p for p in named if (p["name"] in self.marked if self.marked else leading)]
        bars: dict[str, Any] = {
            "xerr": _bars(p["diversity"][self.diversity] for p in barred),
            "yerr": _bars(p["quality"][self.quality] for p in barred),
        }
        if barred:
            means = _means(barred, self.quality, self.diversity)
            panel.errorbar(*means, **bars, fmt="none", ecolor=color, elinewidth=0.7, alpha=0.3, zorder=1)
        panel.plot(*_means(self.loud, self.quality, self.diversity), **self.dots, linestyle="", zorder=4)
        for point, a, b in zip(named, *_means(named, self.quality, self.diversity), strict=True):
            text = panel.annotate(self._label(point), (a, b), (0, 0), textcoords="offset points", fontsize=9, zorder=5)
            text.set(color=color, gid="label", path_effects=[withStroke(linewidth=2.5, foreground="white")])

    def _label(self, point: Point) -> str:
        """The name, without what all points of a sweep share: "guidance 3" for "base guidance 3 T 1"."""
        name: str = point["name"]
        if self.family != "guidance":
            return name
        sweeps = {p["name"].partition(" guidance ")[0] for p in self.drawn if " guidance " in p["name"]}
        shared = f"{sweeps.pop()} " if len(sweeps) == 1 else ""  # with two sweeps, their names tell them apart
        return name.removeprefix(shared).removesuffix(f" T {self.usual:g}")


def _axis_label(metric: str, axis: str) -> str:
    words = metric.replace("_", " ")
    return words if axis in words else f"{axis}: {words}"


def _means(points: Sequence[Point], quality: str, diversity: str) -> tuple[list[float], list[float]]:
    return [p["diversity"][diversity]["mean"] for p in points], [p["quality"][quality]["mean"] for p in points]


def _bars(values: Iterable[Mapping[str, float]]) -> list[list[float]]:
    values = list(values)
    return [[v["mean"] - v["low"] for v in values], [v["high"] - v["mean"] for v in values]]


def _place_labels(figure: Figure, panels: Sequence[Axes]) -> None:
    """Put each label beside its point, where it covers least of other labels, points and lines."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # the sizes of texts and panels are known from here on
    renderer = canvas.get_renderer()
    scale = figure.dpi / 72
    for panel in panels:
        texts = [text for text in panel.texts if text.get_gid() == "label"]
        labels = []
        for text in texts:
            size = text.get_window_extent(renderer)
            x, y = panel.transData.transform(text.xy)  # type: ignore[attr-defined]
            labels.append(Label(float(x), float(y), size.width + LABEL_GAP * scale, size.height))
        points, lines = [], []
        for line in panel.lines:
            drawn: Any = line.get_xydata()
            corners: Any = panel.transData.transform(drawn) if len(drawn) else []
            if line.get_linestyle() == "None":
                points += [Box.around(x, y, (line.get_markersize() + 1) * scale) for x, y in corners]
            else:
                lines += along([(x, y) for x, y in corners], 4 * scale)
        frame = panel.get_window_extent(renderer)
        centres = placed(labels, points, lines, Box(frame.x0, frame.y0, frame.x1, frame.y1), scale)
        for text, label, (x, y) in zip(texts, labels, centres, strict=True):
            text.set_position(((x - label.x) / scale, (y - label.y) / scale))
            text.set(ha="center", va="center")
