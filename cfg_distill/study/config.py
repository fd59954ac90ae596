"""The study file: its keys, and what is wrong with keys and types. No torch in here."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentParser

from cfg_distill.errors import ConfigError, Problem, joined, nearest
from cfg_distill.evaluation.headline import Headline
from cfg_distill.files import read_yaml
from cfg_distill.folders import find_file
from cfg_distill.recipe import Recipe
from cfg_distill.recipe.types import describe

if TYPE_CHECKING:
    from cfg_distill.evaluation.system import Kind

Dtype = Literal["float32", "bfloat16", "float16"]
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,99}")


@dataclass
class Fit:
    """One fit: the very command a user would type.

    Args:
        config: the recipe.
        overrides: dotted key -> value, as on the command line.
        start: an earlier fit of this study, or a model folder, whose weights the student begins with.
    """

    config: str
    overrides: dict[str, Any] = field(default_factory=dict)
    start: str = ""

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe with the overrides in it. It is read once, when it is first asked for.

        Raises:
            ConfigError: there is no such recipe, or it cannot be read.
        """
        return Recipe.read([self.config], self.overrides)


@dataclass
class Merge:
    """One merge of fits, earlier merges or model folders.

    Args:
        models: their names.
        weights: as the method asks.
        method: see ``cfg-distill merge``.
        start: the model that all others were trained from, for the methods that need it.
    """

    models: list[str]
    weights: list[float] = field(default_factory=list)
    method: str = "lerp"
    start: str = ""


@dataclass
class SystemConfig:
    """A model and how it is sampled.

    Args:
        model: a fit, a merge, a model folder or hub name.
        temperature: of sampling; None takes ``evaluation.temperature``.
        guidance: its scale; 1 is none, any other costs two forward passes per token.
        negative: the negative prompt; None drops the prompt.
        negative_system: the system message of the negative branch, which then keeps the prompt.
        dtype: of the weights; None takes ``evaluation.dtype``.
    """

    model: str
    temperature: float | None = None
    guidance: float = 1.0
    negative: str | None = None
    negative_system: str | None = None
    dtype: Dtype | None = None


@dataclass
class Evaluation:
    """How every system is sampled and scored.

    Args:
        prompts: a file of held-out prompts.
        metrics: name -> class_path and init_args of a SampleMetric.
        headline: the metrics that the picture and the claims are about.
        field: the JSON field or CSV column that holds the prompt.
        samples: samples per prompt and seed.
        seeds: of sampling.
        max_new_tokens: the longest sample.
        temperature: of sampling, for every fit and merge, and every system that names none.
        top_k: keep the k likeliest tokens; 0 keeps all.
        top_p: keep the likeliest tokens whose probabilities first reach p; 1 keeps all.
        batch_size: prompts at once.
        written: prompts of which samples are written to be read and heard.
        written_samples: samples of each such prompt that are written.
        dtype: of the weights of every system that names none; a recipe's dtype is for training alone.
    """

    prompts: str
    metrics: dict[str, Any]
    headline: Headline
    field: str = "prompt"
    samples: int = 8
    seeds: list[int] = dataclasses.field(default_factory=lambda: [0])
    max_new_tokens: int = 128
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    batch_size: int = 8
    written: int = 4
    written_samples: int = 2
    dtype: Dtype = "float32"


@dataclass
class Claims:
    """Which systems the orderings are about. Every name is the name of a system.

    Args:
        start: the base, sampled without guidance.
        guidance: the base under the guidance that was distilled.
        quality: the student of beta 0.
        diversity: the student of beta above 0.
        merge: the half-way merge.
        margin: a quality counts as reached when the whole interval of the difference lies above minus this.
        temperature: the base at other temperatures; with ``start`` they are the front of plain temperature, which the merge
            must be above. Empty for no such claim.
    """

    start: str
    guidance: str
    quality: str
    diversity: str
    merge: str
    margin: float
    temperature: list[str] = field(default_factory=list)


@dataclass
class Study:
    """A study file.

    Args:
        out: the folder of the results.
        evaluation: how every system is sampled and scored.
        fits: name -> fit, in order.
        merges: name -> merge, in order.
        baselines: name -> what the students are compared with.
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

    def all_systems(self) -> dict[str, SystemConfig]:
        """Every system that is evaluated, by name: the baselines first, since they need no fit."""
        students = {name: SystemConfig(name) for name in (*self.fits, *self.merges)}
        return self.baselines | students | self.systems

    def kind(self, name: str) -> Kind:
        """The kind of a system: base, guidance, student or merge."""
        point = self.all_systems()[name]
        if point.guidance != 1.0:
            return "guidance"
        return "student" if point.model in self.fits else "merge" if point.model in self.merges else "base"

    def knob(self, name: str) -> float | None:
        """Where a system lies between the two merged models: 0 is the first, 1 the second; None for one on no such line.

        Merges of several pairs lie on several lines, and then none is drawn.
        """
        on_line = {key: merge for key, merge in self.merges.items() if len(merge.models) == len(merge.weights) == 2}
        pairs = {tuple(merge.models) for merge in on_line.values()}
        if len(pairs) != 1:
            return None
        model, (ends,) = self.all_systems()[name].model, pairs
        if model in ends:
            return float(ends.index(model))
        return on_line[model].weights[1] if model in on_line else None


def load_study(path: str | Path) -> tuple[Study, list[Problem]]:
    """Load a study file: the study without what is wrong with its keys and types, and these problems.

    Raises:
        ConfigError: the file is missing, or holds no keys and values.
    """
    file = find_file(path)
    if not file.is_file():
        raise ConfigError(f"Expected a study file, but `{path}` does not exist. Check the path.")
    content = read_yaml(file)
    if not content:
        raise ConfigError(f"File `{path}`: expected keys and values, but it is empty.")
    reader = _Reader()
    return reader.dataclass_of(Study, "", content), reader.problems


def read_study(path: str | Path) -> Study:
    """Load a study file.

    Raises:
        ConfigError: the file is missing, or everything that is wrong with its keys and types.
    """
    study, problems = load_study(path)
    if problems:
        raise ConfigError(problems)
    return study


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
            self.problems.append(Problem(key, f"expected {what}, but got {content!r}."))
            return {}
        if kind is None:
            return {str(name): each for name, each in content.items()}
        self.problems += [
            Problem(
                key,
                "names become folders: expected up to 100 letters, digits, spaces and the signs . _ -, beginning with a"
                f" letter or digit, but got `{name}`.",
            )
            for name in content
            if not NAME.fullmatch(str(name))
        ]
        return {str(name): self.dataclass_of(kind, f"{key}.{name}", each) for name, each in content.items()}

    def _plain(self, hint: Any, key: str, content: Any) -> Any:
        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument("--value", type=hint)
        try:
            return parser.parse_object({"value": content}).value
        except Exception:  # whatever jsonargparse raises for a type, the message is the same
            self.problems.append(Problem(key, f"expected {describe(hint)}, but got {content!r}."))
            return None


def _empty(hint: Any) -> Any:
    """An empty value for a required key that is missing or wrong, so that the rest of the file can be checked."""
    if dataclasses.is_dataclass(hint):
        return _Reader().dataclass_of(hint, "", {})  # type: ignore[arg-type]
    return (get_origin(hint) or hint)()


Point = SystemConfig
"""The name of :class:`SystemConfig` in version 0.1."""
