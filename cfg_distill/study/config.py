"""The study file: what it may say, and all that is wrong with it, found before anything runs. No torch in here."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, get_type_hints

import yaml
from jsonargparse import ArgumentParser

from cfg_distill.errors import ConfigError
from cfg_distill.evaluation.headline import Headline
from cfg_distill.folders import find_file

T = TypeVar("T")
Dtype = Literal["float32", "bfloat16", "float16"]
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]*")


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
class Point:
    """A model and how it is sampled.

    Args:
        model: a fit, a merge, a model folder or hub name.
        temperature: of sampling; None takes that of ``evaluation``.
        guidance: its scale; 1 is none, anything else costs two forward passes a token.
        negative: the negative prompt; None drops the prompt.
        negative_system: the system message of the negative branch, which then keeps the prompt.
        dtype: of the weights; None takes that of ``evaluation``.
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
        samples: samples a prompt and seed.
        seeds: of sampling.
        max_new_tokens: the longest sample.
        temperature: of sampling, for every fit and merge, and every point that names none.
        top_k: keep the k likeliest tokens; 0 keeps all.
        top_p: keep the likeliest tokens whose probabilities first reach p; 1 keeps all.
        batch_size: prompts at once.
        written: prompts of which samples are written to be read and heard.
        written_samples: samples of each that are written.
        dtype: of the weights of every system that names none; a fit's own dtype is that of its training.
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
    """Which systems the orderings are about. Every name is that of a system.

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
        systems: name -> further points: a student at another temperature, say. Fits and merges are points already.
        claims: which systems the orderings are about; None for no claims.
        parallel: processes at once; 0 for one a core.
    """

    out: str
    evaluation: Evaluation
    fits: dict[str, Fit] = field(default_factory=dict)
    merges: dict[str, Merge] = field(default_factory=dict)
    baselines: dict[str, Point] = field(default_factory=dict)
    systems: dict[str, Point] = field(default_factory=dict)
    claims: Claims | None = None
    parallel: int = 0

    def points(self) -> dict[str, Point]:
        """Every system that is evaluated, by name: the baselines first, since they need no fit."""
        students = {name: Point(name) for name in (*self.fits, *self.merges)}
        return self.baselines | students | self.systems

    def kind(self, name: str) -> str:
        """What a system is."""
        point = self.points()[name]
        if point.guidance != 1.0:
            return "guidance"
        return "student" if point.model in self.fits else "merge" if point.model in self.merges else "base"

    def knob(self, name: str) -> float | None:
        """Where a system lies between the two models that are merged: 0 the first, 1 the second; None if on no such line.

        Merges of several pairs lie on several lines, and then none is drawn.
        """
        on_line = {key: merge for key, merge in self.merges.items() if len(merge.models) == len(merge.weights) == 2}
        pairs = {tuple(merge.models) for merge in on_line.values()}
        if len(pairs) != 1:
            return None
        model, (ends,) = self.points()[name].model, pairs
        if model in ends:
            return float(ends.index(model))
        return on_line[model].weights[1] if model in on_line else None


def read_study(path: str | Path) -> Study:
    """Read a study file.

    Raises:
        ConfigError: it is missing, or everything that is wrong with its keys and types.
    """
    file = find_file(path)
    if not file.is_file():
        raise ConfigError(f"Expected a study file, but `{path}` does not exist. Check the path.")
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"File `{path}`: expected YAML, but it cannot be read: {' '.join(str(error).split())}"
        ) from error
    problems: list[str] = []
    study = _read(Study, "", content, problems)
    if problems or study is None:
        raise ConfigError(problems)
    return study


def unknown_name(key: str, name: str, known: Iterable[str], what: str) -> str:
    """The message for a name that means nothing, with the nearest one that does."""
    known = list(known)
    nearest = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    hint = f" Did you mean `{nearest[0]}`?" if nearest else ""
    return f"Key `{key}`: expected {what}, one of {known}, but got `{name}`.{hint}"


def _read(kind: type[T], key: str, content: Any, problems: list[str]) -> T | None:
    """A dataclass from a mapping; every unknown, missing or mistyped key becomes a problem."""
    if not isinstance(content, Mapping):
        where = f"Key `{key}`: expected" if key else "The study file: expected"
        problems.append(f"{where} keys and values, but got {content!r}.")
        return None
    hints = get_type_hints(kind)
    start = f"{key}." if key else ""
    fields = {each.name: each for each in dataclasses.fields(kind)}  # type: ignore[arg-type]
    problems += [unknown_name(f"{start}{name}", name, fields, "a known key") for name in content if name not in fields]
    values: dict[str, Any] = {}
    before = len(problems)
    for name, each in fields.items():
        if name in content:
            values[name] = _value(hints[name], f"{start}{name}", content[name], problems)
        elif each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING:
            problems.append(f"Key `{start}{name}`: expected, but the study file has none. Add it.")
    return kind(**values) if len(problems) == before else None


NESTED: dict[Any, Any] = {Evaluation: Evaluation, Headline: Headline, Claims | None: Claims}
NAMED: dict[Any, Any] = {dict[str, Fit]: Fit, dict[str, Merge]: Merge, dict[str, Point]: Point}


def _value(hint: Any, key: str, content: Any, problems: list[str]) -> Any:
    if hint in NESTED:
        return _read(NESTED[hint], key, content, problems)
    if hint in NAMED:
        if not isinstance(content, Mapping):
            problems.append(f"Key `{key}`: expected names with a description each, but got {content!r}.")
            return {}
        wrong = [name for name in content if not NAME.fullmatch(str(name))]
        problems += [
            f"Key `{key}`: names become folders: expected letters, digits, space . _ -, but got `{n}`." for n in wrong
        ]
        return {str(name): _read(NAMED[hint], f"{key}.{name}", each, problems) for name, each in content.items()}
    if hint == dict[str, Any]:  # class_paths inside stay as they are written: a worker reads them, with torch at hand
        if not isinstance(content, Mapping):
            problems.append(f"Key `{key}`: expected keys and values, but got {content!r}.")
            return {}
        return {str(name): each for name, each in content.items()}
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=hint)
    try:
        return parser.parse_object({"value": content}).value
    except Exception:  # whatever jsonargparse raises for a type, the message is the same
        name = hint.__name__ if isinstance(hint, type) and not hasattr(hint, "__args__") else str(hint)
        problems.append(f"Key `{key}`: expected {name.replace('typing.', '')}, but got {content!r}.")
        return None
