"""``cfg-distill init``: recipes and a study for a model of one's own, as files to edit."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import jinja2
import yaml

from cfg_distill.data import read_prompts
from cfg_distill.data.reading import identity, numbered_prompts, together
from cfg_distill.errors import ConfigError, Problem, listed, problems_of
from cfg_distill.evaluation.renderers import metrics_of_profiles
from cfg_distill.files import problems_of_out, staged_folder
from cfg_distill.folders import PACKAGED, find_file
from cfg_distill.generators import Generator, device, open_generator
from cfg_distill.guidance import Guidance
from cfg_distill.recipe.classes import find_class
from cfg_distill.sampling import positions_left, problems_of_reading

Device = Literal["cpu", "gpu"]
FILES = ("quality.yaml", "diversity.yaml", "study.yaml", "prompts/*.txt", "prompts/*.jsonl")
"""What is written, and so may be replaced."""
LEAST = 6
"""Prompts: three to train on, one to validate on and two to report on."""
_CLASS_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
_LINES = (".txt", ".jsonl")
"""Files of prompts that can be split by their lines."""
_CLAP = {"class_path": "cfg_distill.embedders.CLAP", "init_args": {"path": "laion/larger_clap_music"}}
_TUNES = {"class_path": "cfg_distill.tunes.embedder.Tunes"}
_WORDS: dict[str, Any] = {"class_path": "cfg_distill.embedders.WordCounts"}
_MINILM = {"class_path": "cfg_distill.embedders.TransformerEmbedder", "init_args": {"path": "text:minilm"}}
NO_EMBEDDER = (
    "Diversity needs an embedder: a frozen model that maps an output to a vector, so that the distance of two outputs says how"
    " much they differ. {why} Only the quality student is written, and no study. Name an embedder with --embedder: the folder"
    " or hub name of an encoder, or a class of yours (docs/extending.md)."
)


@dataclass(frozen=True)
class Kind:
    """What is sensible for a kind of output.

    Attributes:
        name: of the kind, in words.
        scale: of guidance.
        lengths: of a sample, in tokens or frames: on a CPU, on a GPU.
        rate: the learning rate where all weights are trained.
        embedder: of the reward; None where this package has none for such outputs.
        encoder: the class that takes the folder of an encoder.
    """

    name: str
    scale: float
    lengths: tuple[int, int]
    rate: float
    embedder: Mapping[str, Any] | None
    encoder: str


KINDS = {
    "text": Kind("text", 1.5, (64, 128), 1e-5, _WORDS, "cfg_distill.embedders.TransformerEmbedder"),
    "tunes": Kind("tunes", 2.0, (80, 80), 6e-4, _TUNES, "cfg_distill.embedders.TransformerEmbedder"),
    "music": Kind("music", 3.0, (150, 500), 1e-5, _CLAP, "cfg_distill.embedders.AudioEmbedder"),
    "speech": Kind("speech", 3.0, (150, 500), 1e-5, None, "cfg_distill.embedders.AudioEmbedder"),
    "songs": Kind("codes of songs", 2.0, (250, 500), 1e-5, None, "cfg_distill.embedders.TransformerEmbedder"),
}
BOUNDS = {
    "rest_share": "<= base + 0.02",
    "copy_rate": "<= base + 0.1",
    "repetition": "<= base + 0.02",
    "degeneration": "<= base + 0.02",
    "log_probability": ">= base - 0.5",
    "empty_share": "<= base + 0.02",
}
"""Metric -> what a claim asks of its student, as in the shipped studies: without a guard no claim of a study can hold."""
OF_GENERATOR = {"MusicGen": "music", "Dia": "speech", "CSM": "speech", "AceStep": "songs", "YuE": "songs"}
"""Class of a generator -> its kind; any other writes text."""


@dataclass(frozen=True)
class InitRequest:
    """Recipes and a study for a model.

    Args:
        model: a model folder, hub name or ``tunes:base``.
        prompts: a text file with one prompt per line, or JSON lines.
        device: where the students are trained.
        out: the folder to write.
        scale: of guidance; None for one that is usual for such models.
        embedder: the class of an embedder, or the folder or hub name of an encoder; empty for the one of the kind of output.
        overwrite: replace files that an earlier init wrote.
    """

    model: str
    prompts: Path
    device: Device = "cpu"
    out: Path = Path("my-study")
    scale: float | None = None
    embedder: str = ""
    overwrite: bool = False

    @cached_property
    def file(self) -> Path:
        """The file of the prompts; ``recipes/...`` also names the files of the package."""
        return find_file(self.prompts)

    @cached_property
    def lines(self) -> list[str]:
        """The lines of the file with a prompt, the first of equal ones: it would be in two parts otherwise."""
        with self.file.open(encoding="utf-8-sig", newline="") as stream:
            lines = [line.rstrip("\r\n") for line in stream]
        found = {identity(prompt): lines[number - 1] for number, prompt in reversed(numbered_prompts(self.file))}
        return [*reversed(found.values())]

    @cached_property
    def generator(self) -> Generator:
        """The model, not loaded."""
        return open_generator(self.model)

    @cached_property
    def kind(self) -> Kind:
        """What the model writes or plays."""
        name = OF_GENERATOR.get(type(self.generator).__name__, "text")
        specs, _ = metrics_of_profiles([self.model]) if name == "text" else ({}, [])
        return KINDS["tunes" if "cfg_distill.tunes." in json.dumps(specs) else name]

    def problems(self) -> list[Problem]:
        """Everything that is wrong with the request; no weights are loaded."""
        found = [Problem("model", problem.text) for problem in problems_of(self.generator)]
        found += self._problems_of_prompts(not found)
        if self.scale is not None and not 1 < self.scale < 100:
            found.append(
                Problem("scale", f"expected a number above 1 (no guidance) and below 100, but got {self.scale:g}.")
            )
        if self.embedder:
            try:
                found += [Problem("embedder", each.text) for each in problems_of(_built(self._embedder_spec()))]
            except ConfigError as error:
                found += [Problem("embedder", each.text) for each in error.problems]
        inputs = [self.file, *([Path(self.model)] if Path(self.model).exists() else [])]
        return found + problems_of_out(self.out, inputs, self.overwrite, FILES)

    def _problems_of_prompts(self, asked: bool) -> list[Problem]:
        """Why the file is no file of prompts for the model; whether the model reads them is asked if it is a model."""
        if self.file.suffix not in _LINES:
            text = f"expected a file with one prompt per line, {' or '.join(_LINES)}, but got `{self.prompts}`."
            return [Problem("prompts", text)]
        try:
            prompts = read_prompts(self.file)
        except ConfigError as error:
            return [Problem("prompts", problem.text) for problem in error.problems]
        found = [] if not asked else together(problems_of_reading(self.generator, prompts), self.prompts)
        found = [Problem("prompts", each.text) for each in found]
        if len(self.lines) < LEAST:
            text = f"expected at least {LEAST} different prompts, some to train on and some to report on, but"
            found.append(Problem("prompts", f"{text} `{self.prompts}` has {len(self.lines)}. Write more."))
        return found

    def _embedder_spec(self) -> dict[str, Any]:
        if _CLASS_PATH.fullmatch(self.embedder) and not Path(self.embedder).exists():
            return {"class_path": self.embedder}
        return {"class_path": self.kind.encoder, "init_args": {"path": self.embedder}}


def found_device() -> Device:
    """A GPU, if there is one that can sample; else the CPU."""
    return "cpu" if device().type == "cpu" else "gpu"


def write_start(request: InitRequest) -> tuple[list[Path], list[str]]:
    """Write the files.

    Returns:
        The YAML files, and what the user should know.

    Raises:
        ConfigError: everything that is wrong with the request.
    """
    if problems := request.problems():
        raise ConfigError(problems)
    embedder, notes = _embedder_of(request)
    if again := len(read_prompts(request.file)) - len(request.lines):
        notes.append(
            f"{again} of the prompts stood in the file before, and {'was' if again == 1 else 'were'} left out."
        )
    content = _files(request, embedder)
    with staged_folder(request.out) as folder:
        for name, text in content.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
    return [request.out / name for name in content if name.endswith(".yaml")], notes


def _embedder_of(request: InitRequest) -> tuple[dict[str, Any] | None, list[str]]:
    """The embedder of the reward, or why there is none."""
    kind = request.kind
    if request.embedder:
        return request._embedder_spec(), []
    if kind.embedder is None:
        return None, [NO_EMBEDDER.format(why=f"This package has none for {kind.name}.")]
    spec = dict(kind.embedder)
    if spec == _WORDS and PACKAGED["minilm"].find() is not None:
        spec = _MINILM
    if problems := problems_of(_built(spec)):
        return None, [NO_EMBEDDER.format(why=f"That for {kind.name} is not at hand: {problems[0].text}")]
    if spec == _WORDS:
        text = "Samples count as different when their words differ. Name an encoder with --embedder, so that meaning counts."
        return spec, [text]
    return spec, []


def _built(spec: Mapping[str, Any]) -> Any:
    base = importlib.import_module("cfg_distill.embedders").Embedder
    cls = find_class(spec["class_path"], (base,), "an Embedder")
    given = spec.get("init_args", {})
    own = inspect.signature(cls).parameters.values()
    required = [
        each for each in own if each.default is each.empty and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
    ]
    if missing := [each.name for each in required if each.name not in given]:
        text = f"expected an embedder that needs nothing else, but `{spec['class_path']}` needs"
        if missing == ["path"]:
            raise ConfigError(f"{text} a model. Give the folder or hub name of that model instead.")
        raise ConfigError(f"{text} {listed([f'`{name}`' for name in missing])}. Give defaults to these in your class.")
    return cls(**given)


def _files(request: InitRequest, embedder: Mapping[str, Any] | None) -> dict[str, str]:
    """Name -> content of each file."""
    kind, gpu = request.kind, request.device == "gpu"
    suffix = request.file.suffix
    parts = split(request.lines)
    names = {part: f"prompts/{part}{suffix}" for part in parts}
    found = {names[part]: "\n".join(chosen) + "\n" for part, chosen in parts.items()}
    scale = kind.scale if request.scale is None else request.scale
    metrics = _metrics(request, embedder)
    values = {
        "model": request.model,
        "path": _scalar(request.model),
        "generator": f"cfg_distill.generators.{type(request.generator).__name__}",
        "scale": f"{scale:g}" if scale % 1 else f"{scale:.1f}",
        "length": _length(request, scale),
        "rate": f"{kind.rate:.1e}",
        "micro_batch": 8 if gpu else 4,
        "batch": 8 if gpu else 4,
        "steps": 400 if gpu else 40,
        "device": request.device,
        "embedder": _flow(embedder),
        "out": _scalar(f"runs/{request.out.name}"),
        "sound": ", init_args: {audio: cfg_distill.tunes.rendering.audio}" if kind is KINDS["tunes"] else "",
        "metrics": _block(metrics),
        "headline": _flow(_headline(metrics)),
        "margin": {"tunes": "0.02", "text": "0.03"}.get(kind.name, "0.1"),
        "guards": {name: bound for name, bound in BOUNDS.items() if name in metrics},
    } | {name: _scalar(str(request.out / file)) for name, file in names.items()}
    recipe, study = (_template(name) for name in ("recipe", "study"))
    paths = {name: str(request.out / f"{name}.yaml") for name in ("quality", "diversity", "study")}
    watched = _block(dict(list(metrics.items())[:2])) if embedder else ""
    given = values | {"diversity": False, "title": "The quality student", "watched": watched}
    found["quality.yaml"] = recipe.render(given, file=shlex.quote(paths["quality"]))
    if embedder:
        given |= {"diversity": True, "title": "The diversity student"}
        found["diversity.yaml"] = recipe.render(given, file=shlex.quote(paths["diversity"]))
        found["study.yaml"] = study.render(
            values,
            file=shlex.quote(paths["study"]),
            **{name: _scalar(paths[name]) for name in ("quality", "diversity")},
        )
    return found


def _length(request: InitRequest, scale: float) -> int:
    """The longest sample: what is usual, or as much as the model has room for beside the prompts."""
    usual = request.kind.lengths[request.device == "gpu"]
    longest = request.generator.longest_sample
    left = positions_left(request.generator, read_prompts(request.file), Guidance(scale))
    return max(1, min(each for each in (usual, longest, left) if each is not None))


def _metrics(request: InitRequest, embedder: Mapping[str, Any] | None) -> dict[str, Any]:
    """The metrics of the study: one of quality, one or two of diversity, then guards of :data:`BOUNDS`."""
    ours, tunes = "cfg_distill.metrics", "cfg_distill.tunes.metrics"

    def spec(path: str, /, **arguments: Any) -> dict[str, Any]:
        return {"class_path": path} | ({"init_args": arguments} if arguments else {})

    base = spec(f"cfg_distill.generators.{type(request.generator).__name__}", path=request.model)
    other, guards = {}, {}
    if request.kind is KINDS["tunes"]:
        quality = {"quality": spec(f"{tunes}.TuneQuality")}
        other = {"melodic_diversity": spec(f"{tunes}.MelodicDiversity")}
        guards = {"rest_share": spec(f"{tunes}.RestShare"), "copy_rate": spec(f"{tunes}.CopyRate")}
    elif request.kind is KINDS["text"]:
        quality = {"substance": spec(f"{ours}.Substance", generator=base)}
        other = {"words": spec(f"{ours}.PairwiseCosineDiversity", embedder=_WORDS | {"init_args": {"n": 1}})}
        if embedder == _WORDS:  # the reward's own measure
            other = {"bigrams": spec(f"{ours}.DistinctN")}
        guards = {name: spec(f"{ours}.{name.title()}") for name in ("repetition", "degeneration")}
        guards["log_probability"] = spec(f"{ours}.LogProbability", generator=base)
    else:
        quality = {"adherence": spec(f"{ours}.PointwiseMutualInformation", generator=base)}
    guards["empty_share"] = spec(f"{ours}.EmptyShare")
    return quality | {"diversity": spec(f"{ours}.PairwiseCosineDiversity", embedder=embedder)} | other | guards


def _headline(metrics: Mapping[str, Any]) -> dict[str, str]:
    """The first metrics: quality, diversity under the reward's embedder, and diversity that no student was trained on."""
    quality, diversity, third, *_ = metrics
    independent = {} if third in BOUNDS else {"independent": third}
    return {"quality": quality, "diversity": diversity} | independent


def _template(name: str) -> jinja2.Template:
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    settings: dict[str, Any] = {"undefined": jinja2.StrictUndefined, "keep_trailing_newline": True}
    return jinja2.Environment(loader=loader, trim_blocks=True, **settings).get_template(f"{name}.yaml.j2")


def _scalar(text: str) -> str:
    """A text as YAML, in quotes where it needs them, be it in a flow mapping, where a comma or a bracket would end it.

    Example:
        >>> _scalar("my study"), _scalar("lr=1e-3,bs=4")
        ('my study', "'lr=1e-3,bs=4'")
    """
    return _flow([text])[1:-1]


def _flow(value: Any) -> str:
    """Keys and values in one line."""
    return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=1000, allow_unicode=True).strip()


def _block(metrics: Mapping[str, Any]) -> str:
    """A line per metric."""
    return "\n".join(f"{name}: {_flow(spec)}" for name, spec in metrics.items())


def split(lines: Sequence[str]) -> dict[str, list[str]]:
    """Prompts to train, to validate and to report on, from all parts of a file: files are often sorted.

    Example:
        >>> split("abcdef")
        {'train': ['a', 'b', 'd'], 'validation': ['e'], 'report': ['c', 'f']}
    """
    parts = ("train", "train", "report", "train", "validation", "report")
    found: dict[str, list[str]] = {"train": [], "validation": [], "report": []}
    for place, line in enumerate(lines):
        found[parts[place % 6]].append(line)
    return found
