"""The front of a study as a page shows it: its panels, its legend, the line of its knob, and what stands beside a point."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from cfg_distill.errors import ConfigError
from cfg_distill.evaluation.front import ROWS
from cfg_distill.report import drawing, formats
from cfg_distill.report.results import Results

MOST_SYSTEMS = 8
"""The most systems side by side, where no study says which ones matter."""
_LEGEND = {
    "student": "students and merges, one pass per token",
    "guidance": "the base under guidance, two passes",
    "base": "the base without guidance",
    "other": "real samples, to compare with",
}


class FrontView:
    """The front of some results.

    Attributes:
        results: the results.
        points: the entries of front.json.
        headline: the metrics of the axes; None for no picture.
        choice: the recommended point.
        chosen: its name; None where none is recommended.
        guided: the name of the guided base.
        line: the stops of the knob, by rising knob; empty without a line.
    """

    def __init__(self, results: Results) -> None:
        self.results = results
        self.points = results.points
        self.headline = results.headline
        self.choice = self._choice()
        self.chosen = self.choice.get("system")
        self.guided = self.choice.get("against") or results.claims.get("guidance")
        self.line = self._line()

    def context(self, place: float | str | None = None) -> dict[str, Any]:
        """What the templates of the picture write down.

        Args:
            place: the setting of the knob, or the system, that is marked; None for where the knob starts.
        """
        panels = self.panels(self.start_knob() if place is None else place)
        return {
            "panels": panels,
            "size": {key: vars(drawing)[key.upper()] for key in ("width", "height", "left", "right", "top", "bottom")},
            "about": {point["name"]: self.about(point) for point in self.points},
            "chosen": self.chosen,
            "legend": self.legend(),
            "has_quiet": any(dot.quiet for panel in panels for dot in panel["dots"]),
        }

    def _choice(self) -> Mapping[str, Any]:
        """The choice of front.json; where it has none, the one of the default rule, if there is a guided system."""
        if kept := self.results.front.get("choice"):
            return kept
        try:
            return self.results.choose().entry()
        except ConfigError:
            return {}

    def metrics(self) -> list[str]:
        """The headline metrics, quality first."""
        headline = self.headline
        return [] if headline is None else list(filter(None, vars(headline).values()))

    def panels(self, place: float | str) -> list[dict[str, Any]]:
        """A panel per measure of diversity, with its caption and its mark."""
        if self.headline is None:
            return []
        claims = self.results.claims
        ends = [self.line[0]["name"], self.line[-1]["name"]] if self.line else []
        stops = [stop["name"] for stop in self.line]
        known = [point["name"] for point in self.points]
        wanted = [self.chosen, self.guided, claims.get("start")]
        shown = known_of(wanted, known)
        wanted += [*ends, *(stops if len(stops) <= MOST_SYSTEMS else []), claims.get("merge")]
        wanted += [point["name"] for point in self.points if point["kind"] == "real"]
        wanted += known if len(known) <= MOST_SYSTEMS else []
        named = known_of(wanted, known) or known[:MOST_SYSTEMS]
        captions = {
            self.headline.diversity: "Under the measure of the reward.",
            self.headline.independent: "Under a measure that was no reward.",
        }
        if self.headline.independent is None or not self.results.study:
            captions = {}
        panels = []
        points = [point for point in self.points if point["kind"] != "degenerate"]  # they lie far from all others
        for metric in filter(None, (self.headline.diversity, self.headline.independent)):
            panel = drawing.front_panel(points, (self.headline.quality, metric), named, shown, stops)
            if panel.dots:
                panels.append({**vars(panel), "cursor": panel.at(place), "caption": captions.get(metric, "")})
        return panels

    def _line(self) -> list[dict[str, Any]]:
        """The stops of the knob: the students and merges at one temperature, each with its headline means."""
        points = [point for point in self.points if point.get("knob") is not None]
        named = {point["name"]: point for point in points}
        wanted = named.get(self.results.claims.get("quality") or "") or (points[0] if points else None)
        if wanted is None or self.headline is None:
            return []
        stops: dict[float, dict[str, Any]] = {}
        for point in points:
            means = [(point["quality"] | point["diversity"]).get(metric, {}).get("mean") for metric in self.metrics()]
            if point["temperature"] == wanted["temperature"] and None not in means:
                stops.setdefault(point["knob"], {"name": point["name"], "knob": point["knob"], "values": means})
        return [stops[knob] for knob in sorted(stops)] if len(stops) > 1 else []

    @property
    def ends(self) -> tuple[str, str]:
        """The models at 0 and at 1 of the knob."""
        names = {stop["knob"]: stop["name"] for stop in self.line}
        return names.get(0.0, self.line[0]["name"]), names.get(1.0, self.line[-1]["name"])

    @property
    def reach(self) -> tuple[float, float]:
        """The lowest and the highest setting of the knob: 0 and 1, or beyond where the study merged beyond."""
        return min(0.0, self.line[0]["knob"]), max(1.0, self.line[-1]["knob"])

    def start_knob(self) -> float:
        """Where the knob starts: at the recommended point, else at the merge of the claims."""
        stops = {stop["name"]: stop["knob"] for stop in self.line}
        return float(stops.get(self.chosen or "", stops.get(self.results.claims.get("merge") or "", 0.5)))

    def about(self, point: Mapping[str, Any]) -> str:
        """The numbers of a point, in lines."""
        lines = [point["name"]]
        for metric in self.metrics():
            value = (point["quality"] | point["diversity"]).get(metric)
            if value:
                lines.append(f"{formats.words(metric)} {value['mean']:.3f} {formats.interval(value)}")
        if point["kind"] in ROWS:
            return "\n".join([*lines, f"{point['samples']} for each of {point['prompts']} prompts, drawn by no system"])
        cost = f"{point['relative_cost']:g} {'pass' if point['relative_cost'] == 1 else 'passes'} per token"
        lines.append(f"{cost}, {formats.seconds(point['seconds'])} s per sample" if point.get("seconds") else cost)
        return "\n".join(lines)

    def legend(self) -> list[tuple[str, str]]:
        """Looks, and what they mean."""
        looks = {drawing.FAMILIES.get(point["kind"], "other") for point in self.points if point["kind"] != "degenerate"}
        legend = [(look, words) for look, words in _LEGEND.items() if look in looks]
        if not self.results.study and "student" in looks:
            legend = [(look, "models" if look == "student" else words) for look, words in legend]
        return legend


def known_of(wanted: Iterable[str | None], known: Collection[str]) -> list[str]:
    """Those of the wanted names that there are, each once, in their order."""
    return list(dict.fromkeys(name for name in wanted if name is not None and name in known))
