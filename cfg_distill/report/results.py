"""The results of a study or of an evaluation, read from its folder. No torch in here."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from cfg_distill.errors import ConfigError, Problem, nearest
from cfg_distill.evaluation.choice import Candidate, Choice, Rule, choose, default_rule
from cfg_distill.evaluation.front import ROWS
from cfg_distill.evaluation.headline import Headline
from cfg_distill.evaluation.system import System, read_rows
from cfg_distill.files import expanded, read_yaml, write_text
from cfg_distill.folders import find_file
from cfg_distill.study.config import study_of
from cfg_distill.study.ledger import Ledger, amended
from cfg_distill.study.record import RECORD, begun_with, digest
from cfg_distill.study.steps import folder_of, front_outputs, runs_of

FRONT = "front.json"


@dataclass
class Results:
    """Everything in a folder of results that a decision or a page needs.

    Attributes:
        folder: of the results.
        front: the content of front.json.
        systems: every system with its values per prompt, by name, in the order of front.json.
        record: the content of study.json; empty for ``cfg-distill evaluate --out``.
        stems: the name of the files of a system, by its name: an evaluation numbers them.
    """

    folder: Path
    front: dict[str, Any]
    systems: dict[str, System]
    record: dict[str, Any] = field(default_factory=dict)
    stems: dict[str, str] = field(default_factory=dict)

    @property
    def points(self) -> list[dict[str, Any]]:
        """The systems as front.json lists them."""
        return list(self.front["systems"])

    @property
    def study(self) -> Mapping[str, Any]:
        """The study file; empty where there is none."""
        return self.record.get("study") or {}

    @property
    def claims(self) -> Mapping[str, Any]:
        """The names of the claims; empty where there are none."""
        return self.study.get("claims") or {}

    @cached_property
    def headline(self) -> Headline | None:
        """The headline metrics: of the study file, or of the hypervolumes in front.json; None where neither has one."""
        named = self.study.get("evaluation", {}).get("headline")
        if named:
            return Headline(named["quality"], named["diversity"], named.get("independent"))
        pairs = self.front.get("hypervolume") or []
        if not pairs:
            return None
        return Headline(pairs[0]["quality"], *[pair["diversity"] for pair in pairs[:2]])

    def on(self, axis: str) -> list[str]:
        """The metrics of one axis: quality, diversity or guard."""
        return list(dict.fromkeys(metric for system in self.systems.values() for metric in system.on(axis)))

    # The choice

    def guided(self, name: str | None = None) -> System:
        """The guidance that was distilled.

        Args:
            name: as the user gave it; None takes the one of the claims, or the only guided system there is.

        Raises:
            ConfigError: there is no such system, or nobody says which one it is.
        """
        if name is None:
            name = self.claims.get("guidance") or self._distilled()
        if name in self.systems:
            return self.systems[name]
        known = [each.name for each in self.systems.values() if each.kind == "guidance"]
        if name is None:
            text = (
                f"expected the guided system to compare with, one of {known}, since the study has no claims. Name it."
            )
        else:
            text = f"expected a system of the study, but got `{name}`.{nearest(name, self.systems)}"
        raise ConfigError(Problem("against", text))

    def _distilled(self) -> str | None:
        """The guided system, where there is one alone; else the one alone with the scale of the recipes."""
        guided = [each for each in self.systems.values() if each.kind == "guidance"]
        if len(guided) > 1:
            recipes = self.record.get("recipes", {}).values()
            scales = {(each.get("model", {}).get("guidance") or {}).get("scale") for each in recipes}
            guided = [each for each in guided if scales == {each.guidance} and each.schedule is None]
        return guided[0].name if len(guided) == 1 else None

    def rule(self) -> Rule:
        """The rule of the study file's claims.

        Raises:
            ConfigError: there is no metric of quality, or none of diversity.
        """
        headline = self.headline
        if headline is None:
            text = "expected a metric of quality and one of diversity, but the results have none. Evaluate with both."
            raise ConfigError(f"Folder `{self.folder}`: {text}")
        return default_rule(self.claims, headline.quality, self.on("diversity"))

    def choose(self, against: str | None = None, rule: Rule | None = None) -> Choice:
        """The point to ship; see :func:`cfg_distill.evaluation.choice.choose`."""
        rule, base = rule or self.rule(), self.systems.get(self._start)
        if base is None and (relative := [guard for guard in rule.guards if guard.factor]):
            text = f"`{relative[0]}` is relative to the base, and the results have none. Give a number in its place."
            raise ConfigError(Problem("guard", text))
        return choose(self.systems.values(), self.guided(against), rule, base)

    @property
    def _start(self) -> str:
        """The base without guidance: of the claims, else the first one; empty for none."""
        bases = [each.name for each in self.systems.values() if each.kind == "base"]
        return self.claims.get("start") or (bases[0] if bases else "")

    def keep(self, choice: Choice) -> None:
        """Write the choice into front.json, and mark it in front.png. The study's step that made the files stays done."""
        self.front["choice"] = choice.entry()
        with changing_front(self.folder, self.front):
            if choice.nearest is not None:
                self._draw(choice.nearest, choice.guided)

    def _draw(self, shown: Candidate, guided: System) -> None:
        """The picture again, with the recommended point in its title."""
        if self.headline is None:
            return
        from cfg_distill.evaluation.figure import front_figure, save_figure

        metrics = self.headline.quality, self.headline.diversity, self.headline.independent
        first = next(iter(self.systems.values()))
        note = (
            f"{len(first.prompts)} held-out prompts, {first.samples} samples of each per seed, {len(first.seeds)} sampling"
            f" {'seed' if len(first.seeds) == 1 else 'seeds'}; crosses: 95 % intervals of the mean"
        )
        figure = front_figure(
            self.points, *metrics, self._title(shown, guided), note, [shown.system.name, guided.name, self._start]
        )
        save_figure(figure, self.folder / "front.png")

    def _title(self, shown: Candidate, guided: System) -> str:
        """One neutral line: the point against the guided base."""
        assert self.headline is not None
        found = {"quality": shown.quality, "diversity": shown.differences.get(self.headline.diversity)}
        numbers = [f"{axis} {'unknown' if each is None else f'{each.mean:+.3f}'}" for axis, each in found.items()]
        ratio = shown.system.relative_cost / guided.relative_cost
        cost = {1.0: "equal cost", 0.5: "half the forward passes"}.get(ratio, f"{ratio:g} of the forward passes")
        who = f"{shown.system.kind.capitalize()} “{shown.system.name}” against {guided.name}"
        return f"{who}: {', '.join(numbers)}, at {cost}"

    # Models

    def first_run(self, system: System) -> System | None:
        """The run of a pooled system under its first training seed, whose model it names; None where it cannot be read."""
        try:
            return System.read(self.folder / "systems" / system.name / f"{Path(system.model).name}.json")
        except (ValueError, TypeError, OSError):
            return None

    def model_folder(self, system: System) -> Path:
        """The folder of a system's model, as it was evaluated.

        Raises:
            ConfigError: it is gone, or its files changed since.
        """
        made = bool(self.study) and study_of(self.study)[0].makes(system.name)
        return self._folder(f"System `{system.name}`", system.model, made)

    def place_of(self, name: str) -> str:
        """Where the model lies that a study calls by this name, of the first training seed. It may have ``evaluate: false``.

        A name that is of no system, fit or merge is a folder or hub name itself.

        Raises:
            ConfigError: see :meth:`model_folder`.
        """
        if name in self.systems:
            return str(self.model_folder(self.systems[name]))
        study, _ = study_of(self.study)
        if name not in (*study.fits, *study.merges):
            return name
        folder = folder_of(study, name, runs_of(study)[0], self.folder)
        return str(self._folder(f"Model `{name}`", str(folder), made=True))

    def _folder(self, subject: str, model: str, made: bool) -> Path:
        """The folder of a model, as the study left it; the subject is what messages call it."""
        found, tail = located(self.folder, model, made)
        again = f"Run the study again: it remakes `{Path(model).name}`."
        if not found.is_dir():
            text = f"{subject}: expected its model in `{model}`, but it is not there."
            raise ConfigError(f"{text} {again}")
        label = " ".join([{"students": "export", "merges": "merge"}[tail[0]], *tail[1:]]) if tail else ""
        entry = Ledger(self.folder).entry(label) if label else {}
        if entry.get("state") == "done" and entry["made"] != digest([found]):
            text = f"{subject}: the files in `{found}` are not those that were evaluated."
            raise ConfigError(f"{text} Remove the folder, and run the study again.")
        return found


def located(study: Path, model: str, made: bool) -> tuple[Path, tuple[str, ...]]:
    """Where the model of a system lies: in the folder of its study, which may have been moved since, or as it was named.

    Args:
        study: the folder.
        model: as the system has it: ``runs/study/students/quality/seed 0``.
        made: whether the study made it. A baseline may be the student of another study, under a path of the same form.

    Returns:
        The folder; and the parts of its path in the study, ``("students", "quality", "seed 0")``, none outside of the study.
    """
    named = Path(model)
    kinds = [place for place, part in enumerate(named.parts) if made and part in ("students", "merges")]
    tail = named.parts[kinds[-1] :] if kinds else ()
    inside = study.joinpath(*tail)
    return (inside, tail) if tail and inside.is_dir() else (expanded(named), ())


def results_folder(path: str | Path) -> Path:
    """The folder of the results: the path itself, or, of a study file, the folder that it names.

    Raises:
        ConfigError: there is no such folder or file.
    """
    given = expanded(path)
    if given.is_dir():
        return given
    file = find_file(path)
    if not file.is_file():
        text = f"expected the folder of a study, such as runs/quickstart, but `{path}` does not exist."
        raise ConfigError(f"{text[:1].upper()}{text[1:]} Check the path, or run the study first.")
    out = read_yaml(file).get("out")
    if not isinstance(out, str):
        found = "it has no key `out`" if out is None else f"its key `out` is {out!r}, which names no folder"
        text = f"File `{path}`: expected a study file, but {found}. Name a study, or the folder of its results."
        raise ConfigError(text)
    return expanded(out)


def read_results(path: str | Path) -> Results:
    """Read the results of a study, or of ``cfg-distill evaluate --out``.

    Args:
        path: the folder, or the study file that names it.

    Raises:
        ConfigError: there are none, or some are missing or damaged: all problems at once.
    """
    folder = results_folder(path)
    front = folder / FRONT
    if not front.is_file():
        text = f"expected the results of a study in `{folder}`, but it has no {FRONT}. Run `cfg-distill study` first."
        if (folder / RECORD).is_file():
            text = f"the study in `{folder}` is not finished. Run it again: it goes on."
        raise ConfigError(Problem("study", text))
    content = _read(front)
    found, problems = _systems(folder, content["systems"])
    if problems:
        raise ConfigError(problems)
    systems = {name: system for name, (system, _) in found.items()}
    return Results(
        folder, content, systems, begun_with(folder) or {}, {name: stem for name, (_, stem) in found.items()}
    )


@contextmanager
def changing_front(folder: Path, front: Mapping[str, Any]) -> Iterator[None]:
    """Write front.json, and let the block change the picture. The study's step that made the files stays done.

    Args:
        folder: of the results.
        front: the new content; its systems are those of the study.
    """
    pooled = [point["name"] for point in front["systems"] if (folder / "systems" / point["name"]).is_dir()]
    keys = ("quality", "diversity", "guards", "missing")
    metrics = {name for point in front["systems"] for key in keys for name in point.get(key) or {}}
    # The files of the step in its order: those of several training seeds are pooled.
    outputs = [*front_outputs(folder, metrics), *(folder / "systems" / f"{name}.json" for name in pooled)]
    with amended(folder, "front", outputs):
        write_text(folder / FRONT, json.dumps(front, indent=1) + "\n")
        yield


def problems_of_prompts(one: Results, other: Results) -> list[Problem]:
    """Why two results cannot be compared: they have other prompts."""
    prompts = [next(iter(each.systems.values())).prompts for each in (one, other)]
    if prompts[0] == prompts[1]:
        return []
    shared = len(set(prompts[0]) & set(prompts[1]))
    counts = f"{len(prompts[0])} and {len(prompts[1])} prompts, of which {shared} are the same"
    if shared == len(prompts[0]) == len(prompts[1]):
        counts = f"the same {shared} prompts in another order"
    text = f"expected two studies on the same prompts, but `{one.folder}` and `{other.folder}` have {counts}."
    return [Problem("study", f"{text} Evaluate one of them anew on the prompts of the other.")]


def _systems(folder: Path, points: Sequence[Mapping[str, Any]]) -> tuple[dict[str, tuple[System, str]], list[Problem]]:
    """The systems by name, each with the stem of its file, and what is wrong with the files."""
    found: dict[str, tuple[System, str]] = {}
    problems: list[Problem] = []
    for file in sorted((folder / "systems").glob("*.json")):
        try:
            system = System.read(file)
        except (ValueError, TypeError, OSError) as error:
            problems.append(_unreadable(file, error, "evaluates that system anew"))
        else:
            found[system.name] = system, file.stem
    rows = folder / "ladder.json"
    try:
        found |= {row.name: (row, rows.stem) for row in (read_rows(rows) if rows.is_file() else [])}
    except (ValueError, TypeError, OSError) as error:
        problems.append(_unreadable(rows, error, "scores those samples anew"))
    knobs = {point["name"]: point.get("knob") for point in points}
    missing = [name for name in knobs if name not in found]
    if missing and not problems:
        text = f"expected the values of every system in `{folder / 'systems'}`, but {_listed(missing)} is missing."
        problems.append(Problem("study", f"{text} Run the study again: it evaluates what is missing."))
    # The others are left from before the study file changed: a system that it no longer has, on other prompts perhaps.
    found = {name: found[name] for name in knobs if name in found}
    first = next((system for system, _ in found.values() if system.kind not in ROWS), None)
    problems += [
        Problem(
            "study",
            f"`{folder / 'systems' / stem}.json` has other prompts than `{first.name}`: it is of another study. Remove it, and"
            " run the study again: it evaluates that system anew.",
        )
        for system, stem in found.values()
        if first is not None and system.kind not in ROWS and system.prompts != first.prompts
    ]
    for name, (system, _) in found.items():
        system.knob = knobs[name]
    return found, problems


def _unreadable(file: Path, error: Exception, outcome: str) -> Problem:
    text = f"`{file}` cannot be read: {' '.join(str(error).split())}. It is damaged, or of another version. Remove it, and run"
    return Problem("study", f"{text} the study again: it {outcome}.")


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(
            f"File `{file}`: expected JSON, but it cannot be read: {error}. Run the study again."
        ) from error
    if isinstance(content, dict):
        parts = {"name", "kind", "quality", "diversity", "guards"}
        if any(not isinstance(each, dict) or parts - each.keys() for each in content.get("systems") or []):
            text = f"File `{file}`: expected systems with {', '.join(sorted(parts))}, but one lacks some. It is damaged, or of"
            raise ConfigError(f"{text} another version. Remove it, and run the study again: it is made anew.")
    if not isinstance(content, dict) or not content.get("systems"):
        raise ConfigError(f"File `{file}`: expected systems, but it has none. Is it a file of cfg-distill?")
    return content


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
