"""report.html: one page that tells, shows and plays the results of a study or an evaluation."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

import cfg_distill
from cfg_distill.errors import ConfigError, Problem
from cfg_distill.evaluation.choice import guard_of
from cfg_distill.evaluation.front import ROWS
from cfg_distill.files import write_text
from cfg_distill.report import formats, sections
from cfg_distill.report.front_view import MOST_SYSTEMS, FrontView, known_of
from cfg_distill.report.results import Results, read_results
from cfg_distill.report.sounds import SECONDS, Sample, samples_of, with_sound

PAGE, FILES = "report.html", "report_files"
PROMPTS = 12
"""The most prompts on the page."""
_MARK = '<meta name="generator" content="cfg-distill'


def write_report(folder: str | Path, inline: bool | None = None) -> Path:
    """Write report.html beside the results, and its sound into ``report_files/``.

    Args:
        folder: of a finished study or evaluation, or the study file.
        inline: put the sound into the page, so that the page can be moved or mailed alone; None keeps the form of a page that
            is there, and else writes files.

    Returns:
        The page.

    Raises:
        ConfigError: the results cannot be read, or a page of another hand has the name.
    """
    results = read_results(folder)
    page = results.folder / PAGE
    before = page.read_text(encoding="utf-8", errors="replace") if page.exists() else ""
    if before and _MARK not in before[:2000]:
        text = f"`{page}` exists, and cfg-distill did not write it. Move it away."
        raise ConfigError(Problem("out", text))
    write_text(page, render(results, '"data:audio' in before if inline is None else inline))
    return page


def render(results: Results, inline: bool = False) -> str:
    """The page as text; its sound is written on the way."""
    return environment().get_template("report.html.j2").render(**_Page(results, inline).context())


def environment() -> jinja2.Environment:
    """Everything that is written into the page is escaped: prompts and samples are data."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    settings: dict[str, Any] = {"autoescape": True, "undefined": jinja2.StrictUndefined}
    environment = jinja2.Environment(loader=loader, trim_blocks=True, lstrip_blocks=True, **settings)
    environment.filters |= {"px": formats.pixels, "words": formats.words, "names": formats.with_names}
    environment.globals["marker"] = formats.marker
    return environment


class _Page:
    """The content of the page, part by part."""

    def __init__(self, results: Results, inline: bool) -> None:
        self.results = results
        self.inline = inline
        self.front = FrontView(results)

    def context(self) -> dict[str, Any]:
        """What the template writes down."""
        results = self.results
        prompts, unheard = self._prompts()
        picture = self.front.context()
        context = {
            "generator": f"cfg-distill {cfg_distill.__version__}",
            "title": self._title(),
            "eyebrow": self._eyebrow(),
            "decision": self._decision(),
            "line": self.front.line if picture["panels"] else [],
            "ends": self.front.ends if self.front.line else (),
            "reach": self.front.reach if self.front.line else (),
            "line_metrics": self.front.metrics(),
            "start_knob": self.front.start_knob(),
            "merge_command": self._merge_command(),
            "prompts": prompts,
            "has_sound": any(s.source for p in prompts for system in p["systems"] for s in system["samples"]),
            "clip_seconds": f"{SECONDS:g}",
            "unheard": unheard,
            "claims": sections.claims(results),
            "fronts": sections.fronts(results),
            "notes": results.front.get("notes") or [],
            "timing": sections.timing(results),
            "tables": sections.tables(results, self.front.chosen),
            "has_seconds": any(point.get("seconds") is not None for point in self.front.points),
            "has_rows": any(point["kind"] in ROWS for point in self.front.points),
            "meanings": sections.meanings(results),
            "left_out": sections.left_out(results),
            "versions": sections.versions(results),
            "timings": sections.timings(results),
            "config": formats.as_yaml(self.results.study),
            "data": {"line": self.front.line},
        }
        context |= picture | sections.training(results) | sections.collapse(results)
        return context | {"sections": self._sections(context)}

    # The decision

    def _decision(self) -> dict[str, Any] | None:
        choice = self.front.choice
        if not choice:
            return None
        knob = choice.get("knob")
        guards = ", ".join(choice.get("guards") or []) or "none"
        measures = ", ".join(f"`{metric}`" for metric in choice.get("diversity", []))
        rule = (
            f"The rule: the whole 95 % interval of the difference in `{choice.get('quality', 'quality')}` from"
            f" `{self.front.guided}`, paired by prompt, lies above −{choice['margin']:g}. Guards: {guards}. Among the points"
            " that keep it, the one with the largest gain is chosen, under the least favourable of"
            f" {measures or 'all measures'}."
        )
        return {
            "system": self.front.chosen,
            "knob": "" if knob is None else f"{knob:g}",
            "compared": f"`{self.front.chosen or choice.get('nearest')}` against `{self.front.guided}`, paired by prompt",
            "reason": choice["reason"],
            "facts": self._facts(),
            "rule": rule,
            "command": self._choose_command() if self.front.chosen else "",
            "rejected": choice.get("rejected") or [],
        }

    def _facts(self) -> list[dict[str, str]]:
        shown = self.front.chosen or self.front.choice.get("nearest")
        differences = (self.front.choice.get("differences") or {}).get(shown, {})
        facts = [
            {
                "label": formats.words(metric),
                "value": f"{value['mean']:+.3f}".replace("-", "−"),
                "note": formats.interval(value, signed=True),
            }
            for metric in self.front.metrics()
            if (value := differences.get(metric))
        ]
        points = {point["name"]: point for point in self.front.points}
        for guard in map(guard_of, self.front.choice.get("guards") or []):
            if value := points.get(shown, {}).get("guards", {}).get(guard.metric):
                label = f"{formats.words(guard.metric)}, guard {str(guard).removeprefix(guard.metric).strip()}"
                facts.append({"label": label, "value": f"{value['mean']:.3g}", "note": formats.interval(value)})
        if shown in points and self.front.guided in points:
            mine, its = points[shown], points[self.front.guided]
            note = f"where {self.front.guided} takes {its['relative_cost']:g}"
            facts.append({"label": "passes per token", "value": f"{mine['relative_cost']:g}", "note": note})
            if mine.get("seconds") and its.get("seconds"):
                note = f"where {self.front.guided} takes {formats.seconds(its['seconds'])}; many samples at once"
                facts.append({"label": "seconds per sample", "value": formats.seconds(mine["seconds"]), "note": note})
        return facts

    # Samples

    def _side_by_side(self) -> list[str]:
        """The systems whose samples are shown: base, guided base, quality student, the knob, the recommended point."""
        claims, front, names = self.results.claims, self.front, list(self.results.systems)
        students = [claims.get("quality"), *(stop["name"] for stop in front.line)]
        found = known_of([claims.get("start"), front.guided, *students, front.chosen], names)
        return found if len(found) > 1 else names[:MOST_SYSTEMS]

    def _prompts(self) -> tuple[list[dict[str, Any]], list[str]]:
        """The prompts with the samples of every system, and the samples that cannot be heard."""
        results = self.results
        samples: dict[str, list[Sample]] = {}
        stems = {name: results.stems.get(name, name) for name in self._side_by_side()}
        for name, stem in stems.items():
            folder, system = results.folder / "samples" / stem, results.systems[name]
            run = folder / Path(system.model).name  # of several training seeds, a system's model is that of the first
            samples[name] = samples_of(run if run.is_dir() else folder, system.prompts[:PROMPTS])
        written = {stems[name]: group for name, group in samples.items() if group}
        broken = with_sound(written, results.folder / FILES, self.inline)
        prompts = []
        for place in sorted({sample.prompt for group in samples.values() for sample in group}):
            systems = [
                {
                    "name": name,
                    "chosen": name == self.front.chosen,
                    "scores": self._scores(name, place),
                    "samples": [sample for sample in group if sample.prompt == place],
                }
                for name, group in samples.items()
            ]
            text = next(iter(results.systems.values())).prompts[place]
            prompts.append({"place": place, "text": text, "systems": [each for each in systems if each["samples"]]})
        return prompts, broken

    def _scores(self, name: str, place: int) -> str:
        system = self.results.systems[name]
        scores = []
        for metric in self.front.metrics():
            values = np.array(system.values.get(metric, np.nan), dtype=float)[..., place : place + 1]
            if np.isfinite(values).any():
                scores.append(f"{formats.words(metric)} {float(np.nanmean(values)):.2f}")
        return " · ".join(scores)

    # Around it

    def _choose_command(self) -> str:
        """The command that makes this choice again, and copies its model."""
        choice, usual = self.front.choice, self.results.rule()
        guards = list(choice.get("guards") or [])
        words = [] if choice["margin"] == usual.margin else ["--margin", f"{choice['margin']:g}"]
        words += [] if guards == list(map(str, usual.guards)) else ["--guard", *guards]
        try:
            is_usual = self.results.guided().name == self.front.guided
        except ConfigError:  # there are several, and nobody says which one
            is_usual = False
        words += [] if is_usual else ["--against", str(self.front.guided)]
        return shlex.join(["cfg-distill", "choose", str(self.results.folder), *words, "--out", "my-model"])

    def _merge_command(self) -> str:
        merges = self.results.study.get("merges") or {}
        return f"cfg-distill merge --knob KNOB --study {self._shell()} --out my-model" if merges else ""

    def _title(self) -> str:
        what = "Study" if self.results.study else "Evaluation"
        return f"{what} {self.results.folder.resolve().name}"

    def _eyebrow(self) -> str:
        systems = list(self.results.systems.values())
        first, trained = systems[0], max(len(system.training_seeds) for system in systems)
        seeds = f"{len(first.seeds)} sampling {'seed' if len(first.seeds) == 1 else 'seeds'}"
        runs = f", students of {trained} training seeds" if trained > 1 else ""
        return f"{self._title()} · {len(first.prompts)} held-out prompts × {first.samples} samples × {seeds}{runs}"

    def _shell(self) -> str:
        return shlex.quote(str(self.results.folder))

    def _sections(self, context: Mapping[str, Any]) -> list[tuple[str, str]]:
        found = [
            ("front", "Front", context["panels"]),
            ("samples", "Listen" if context["has_sound"] else "Read", context["prompts"]),
            ("claims", "Claims", context["claims"]),
            ("fronts", "Above the baselines", context["fronts"]),
            ("collapse", "Collapse", context["collapse"]),
            ("tables", "Tables", True),
            ("training", "Training", context["charts"]),
            ("settings", "Versions and settings", True),
        ]
        return [(anchor, words) for anchor, words, there in found if there]
