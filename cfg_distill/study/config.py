"""The study file: its keys, and what is wrong with keys and types. No torch in here."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentParser

from cfg_distill.errors import ConfigError, Problem, joined, nearest
from cfg_distill.files import expanded, read_versioned
from cfg_distill.folders import existing_file
from cfg_distill.recipe.files import with_metrics
from cfg_distill.recipe.types import describe, members
from cfg_distill.study.parts import OPEN, Claims, Evaluation, Fit, Merge, Sweep, SystemConfig

if TYPE_CHECKING:
    from cfg_distill.evaluation.system import Kind

NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9 ._-]{0,98}[A-Za-z0-9._-])?")


@dataclass
class Study:
    """A study file.

    Args:
        out: the folder of the results.
        evaluation: how every system is sampled and scored.
        fits: name -> fit, in order.
        merges: name -> merge, in order.
        baselines: name -> what the students are compared with.
        sweeps: name -> baselines of one model over ranges of temperature, guidance and filters.
        training_seeds: every fit, merge and student is made once per seed, and their intervals hold the noise of training;
            empty for one run with the seeds of the recipes. Three or more: intervals of two are too wide to be of use.
        systems: name -> further systems: a student at another temperature, say. Fits and merges are systems already.
        claims: which systems the orderings are about; None for no claims.
        parallel: processes at once; 0 for one per core.
    """

    out: str
    evaluation: Evaluation
    fits: dict[str, Fit] = field(default_factory=dict)
    merges: dict[str, Merge] = field(default_factory=dict)
    baselines: dict[str, SystemConfig] = field(default_factory=dict)
    systems: dict[str, SystemConfig] = field(default_factory=dict)
    claims: Claims | None = None
    parallel: int = 0
    sweeps: dict[str, Sweep] = field(default_factory=dict)
    training_seeds: list[int] = field(default_factory=list)

    def all_systems(self) -> dict[str, SystemConfig]:
        """Every system that is evaluated, by name: the baselines first, since most of them need no fit.

        A fit or merge that a baseline samples is a rival of the students, and no student itself. One with ``evaluate: false``
        is a step on the way.
        """
        rivals = {system.model for system in self.baselines.values()}
        made = self.fits | self.merges
        students = {name: SystemConfig(name) for name, part in made.items() if part.evaluate and name not in rivals}
        every = self.baselines | self.swept() | students | self.systems
        return {name: self._asked_as_trained(system) for name, system in every.items()}

    def _asked_as_trained(self, system: SystemConfig) -> SystemConfig:
        """A system of a student that was trained with labels: it is asked with labels, too."""
        model = system.model
        while model in self.merges and self.merges[model].models:
            model = self.merges[model].models[0]
        if system.conditioner is not None or model not in self.fits:
            return system
        try:
            return dataclasses.replace(system, conditioner=self.fits[model].recipe.at("model.conditioner"))
        except ConfigError:  # a recipe that cannot be read is a problem of its fit
            return system

    def swept(self) -> dict[str, SystemConfig]:
        """The baselines of the sweeps, less those that are named already."""
        known = [self.settled(system) for system in self.baselines.values()]
        found: dict[str, SystemConfig] = {}
        for name, sweep in self.sweeps.items():
            for each, system in sweep.systems(name).items():
                if self.settled(system) not in known:
                    known.append(self.settled(system))
                    found[each] = system
        return found

    def settled(self, system: SystemConfig) -> SystemConfig:
        """A system with the evaluation's value for every setting that it leaves open."""
        given = vars(self.evaluation)
        return dataclasses.replace(system, **{key: given[key] for key in OPEN if vars(system)[key] is None})

    @property
    def replicated(self) -> bool:
        """Whether there are several training seeds, and so a folder for each."""
        return len(self.training_seeds) > 1

    def chain(self, model: str) -> str:
        """The chain of training that a model comes from: the first of all fits that starts and merges tie together.

        Models of one chain share each training seed. Empty for a model that the study does not train.
        """
        ties = [{name, fit.start} for name, fit in self.fits.items()]
        ties += [{name, *merge.models, merge.start} for name, merge in self.merges.items()]
        made = {*self.fits, *self.merges}
        chain: set[str] = {model} & made
        for _ in ties:  # each round adds what hangs on the chain
            chain |= {each for tied in ties if tied & chain for each in tied & made}
        return next((name for name in self.fits if name in chain), "")

    def kind(self, name: str) -> Kind:
        """The kind of a system: base, guidance, student or merge."""
        point = self.all_systems()[name]
        if name in self.baselines or name in self.swept():
            return "guidance" if point.guidance != 1.0 else "base"
        if point.anneal is not None or (point.guidance != 1.0 and self.makes(name)):
            return "model"
        if point.guidance != 1.0:
            return "guidance"
        return "student" if point.model in self.fits else "merge" if point.model in self.merges else "base"

    def makes(self, name: str) -> bool:
        """Whether a fit or merge of this study makes the model of a system, or has made that of one that it no longer names."""
        point = self.all_systems().get(name)
        return point is None or point.model in self.fits or point.model in self.merges

    def knob(self, name: str) -> float | None:
        """Where a system lies between the two merged models: 0 is the first, 1 the second; None for one on no such line.

        Merges of several pairs lie on several lines, and then none is drawn.
        """
        between = {key: merge for key, merge in self.merges.items() if merge.on_line}
        pairs = {tuple(merge.models) for merge in between.values()}
        if len(pairs) != 1:
            return None
        model, (ends,) = self.all_systems()[name].model, pairs
        if model in ends:
            return float(ends.index(model))
        return between[model].weights[1] if model in between else None


def load_study(path: str | Path) -> tuple[Study, list[Problem]]:
    """Load a study file: the study without what is wrong with its keys and types, and these problems.

    Raises:
        ConfigError: the file is missing, holds no keys and values, or is a recipe of one fit.
    """
    content = read_versioned(existing_file(path, "a study file"))
    if not content:
        raise ConfigError(f"File `{path}`: expected keys and values, but it is empty.")
    if {"model", "data"} <= content.keys():
        raise ConfigError(f"`{path}` is a recipe of one fit, and no study. Run `cfg-distill fit --config {path}`.")
    study, problems = study_of(content)
    if study.out.startswith("~"):  # any other path stays as it is written, and so does the record
        study.out = str(expanded(study.out))
    return study, problems


def study_of(content: Mapping[str, Any]) -> tuple[Study, list[Problem]]:
    """The study in the keys and values of a file or of a record; and what is wrong with these."""
    reader = _Reader()
    try:
        content = with_metrics(content)
    except ConfigError as error:
        reader.problems += error.problems
        content = {**content, "evaluation": {**content["evaluation"], "metrics": {}}}
    return reader.dataclass_of(Study, "", content), reader.problems


def unknown_name(key: str, name: str, known: Iterable[str], what: str) -> Problem:
    """The problem of a name that means nothing, with the nearest one that does."""
    known = list(known)
    return Problem(key, f"expected {what}, one of {known}, but got `{name}`.{nearest(str(name), known)}")


class _Reader:
    """Makes dataclasses of mappings, and collects every unknown, missing or mistyped key.

    A recipe is checked by jsonargparse, which imports the classes that it names. Here class_paths stay as they are written:
    a worker reads them, with torch at hand.
    """

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def dataclass_of(self, kind: type[Any], key: str, content: Any) -> Any:
        """A dataclass from a mapping. A wrong value is replaced by the default, or by an empty one where there is none."""
        if not isinstance(content, Mapping):
            self.problems.append(Problem(key, f"expected keys and values, but got {content!r}."))
            return _empty(kind)
        hints, fields = get_type_hints(kind), {each.name: each for each in dataclasses.fields(kind)}
        given = {name: (str(name), value) for name, value in content.items() if name in fields}
        for name in content:
            if name in fields:
                continue
            self.problems.append(unknown_name(joined(key, str(name)), str(name), fields, "a known key"))
            # `merge` for `merges`: what stands under it is checked, and the merges are known elsewhere.
            meant = [each for each in fields if nearest(str(name), [each])]
            if len(meant) == 1 and meant[0] not in given:
                given[meant[0]] = (str(name), content[name])
        values: dict[str, Any] = {}
        for name, each in fields.items():
            required = each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING
            if name not in given:
                if required:
                    self.problems.append(Problem(joined(key, name), "expected, but the study file has none. Add it."))
                    values[name] = _empty(hints[name])
                continue
            before = len(self.problems)
            written, value = given[name]
            value = self._value(hints[name], joined(key, written), value)
            if len(self.problems) == before or value is not None:
                values[name] = value
            elif required:
                values[name] = _empty(hints[name])
        return kind(**values)

    def _value(self, hint: Any, key: str, content: Any) -> Any:
        """The value of one key; None when it is wrong as a whole."""
        kind: Any = next((each for each in get_args(hint) or (hint,) if dataclasses.is_dataclass(each)), None)
        if get_origin(hint) is not dict and kind is not None:
            optional = content is None and type(None) in get_args(hint)
            return None if optional else self.dataclass_of(kind, key, content)
        if get_origin(hint) is not dict:
            return self._plain(hint, key, content)
        if not isinstance(content, Mapping):
            what = "keys and values" if kind is None else "names with a description each"
            found = f"but got {content!r}." if content is not None else "but it is empty. Remove the key."
            self.problems.append(Problem(key, f"expected {what}, {found}"))
            return {}
        if kind is None:
            return {str(name): each for name, each in content.items()}
        self.problems += [
            Problem(
                joined(key, str(name)),  # not of the whole section: its other problems are told, too
                "names become folders: expected up to 100 letters, digits, spaces and the signs . _ -, beginning with a"
                f" letter or digit, without a space at the end, but got `{name}`.",
            )
            for name in content
            if not NAME.fullmatch(str(name))
        ]
        return {str(name): self.dataclass_of(kind, f"{key}.{name}", each) for name, each in content.items()}

    def _plain(self, hint: Any, key: str, content: Any) -> Any:
        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument("--value", type=hint)
        try:
            value = parser.parse_object({"value": content}).value
        except Exception:  # whatever jsonargparse raises for a type, the message is the same
            self.problems.append(Problem(key, f"expected {describe(hint)}, but got {content!r}."))
            return None
        if value is None and NoneType not in members(hint):  # jsonargparse lets null pass
            text = f"expected {describe(hint)}, but it is empty. Give a value, or remove the key."
            self.problems.append(Problem(key, text))
        return value


def _empty(hint: Any) -> Any:
    """An empty value for a required key that is missing or wrong, so that the rest of the file can be checked."""
    if dataclasses.is_dataclass(hint):
        return _Reader().dataclass_of(hint, "", {})  # type: ignore[arg-type]
    return (get_origin(hint) or hint)()


Point = SystemConfig
"""The name of :class:`SystemConfig` in version 0.1."""
