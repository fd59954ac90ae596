"""What a checkpoint holds: its names and versions, reading it safely, the start model that it refers to.

A checkpoint is Lightning's (state dict, optimiser, loops, callbacks) with these keys of ours::

    cfg_distill   {"format": 1, "version": "0.1.0"}    the layout of these keys, and the version that wrote them
    generator     {"class_path": ..., "init_args": ...}    how to make the start model again (spec_of, generator_of)
    configured    the settings that a run may have moved since, and its number of processes (distillation/resuming.py)
    state_dict    student.NAME: the weights that training moves (trained_names); losses.NAME.weight and so on: losses
    callbacks     StudentEMA: {"weights": {student.NAME: average}}

It is data, not code: reading it runs nothing that is written in it.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cfg_distill import __version__
from cfg_distill.checkpoints.shards import problem_of_folder, read_folder, sharded_like
from cfg_distill.errors import ConfigError, Problem
from cfg_distill.files import before_of, damage
from cfg_distill.files.documents import UPDATE
from cfg_distill.folders.adapters import Adapter, Factors
from cfg_distill.folders.profile import is_trusted
from cfg_distill.generators import Generator
from cfg_distill.generators.loading import arguments_of
from cfg_distill.generators.lora import NAME

FORMAT = 1
"""Raised when a key above changes its place or meaning; :func:`upgraded` then learns the older layout."""
STAMP = "cfg_distill"
STUDENT = "student."
AVERAGES = "StudentEMA"
"""The state key of the callback whose ``weights`` are the averages of the student."""
RANDOM_STATES = "ExactResume"
"""The state key of the callback that keeps random states and the place in the epoch."""
TRUSTED = "cfg_distill.generators"
"""The package whose classes a checkpoint may name."""

HIDES_CODE = (
    "cannot be read as a checkpoint: it holds more than tensors and plain values. That is not loaded, since code may hide in"
    " it. Take a checkpoint that cfg-distill fit wrote."
)
"""Said in place of torch's own message, which advises to run that code."""

Which = Literal["raw", "ema"]


# Names


def trained_names(module: nn.Module) -> set[str]:
    """The names of a state dict that training moves.

    All names, buffers included, of a model whose parameters are all trained. Of a model with frozen parameters only the
    others: its buffers belong to the frozen part.
    """
    state = module.state_dict(keep_vars=True)
    trained = {name for name, tensor in state.items() if tensor.requires_grad}
    frozen = any(isinstance(tensor, nn.Parameter) and not tensor.requires_grad for tensor in state.values())
    return trained if frozen else set(state)


def frozen_names(names: Iterable[str], student: nn.Module, prefixes: Sequence[str]) -> list[str]:
    """The names in a module's state dict that a checkpoint does not hold.

    Args:
        names: of the module's state dict.
        student: the module's student; its frozen weights are left out.
        prefixes: of the frozen models beside it, such as ``teacher.``.
    """
    trained = {STUDENT + name for name in trained_names(student)}
    left_out = tuple(prefixes)
    return [name for name in names
            if name.startswith(left_out) or (name.startswith(STUDENT) and name not in trained)]  # fmt: skip


def loss_weight(name: str) -> str:
    """The name of the weight of a loss in the state dict."""
    return f"losses.{name}.weight"


def student_weights(module: Any) -> dict[str, Tensor]:
    """The weights of the student that training moves, under their names in a checkpoint.

    These are parameters and, unless some are frozen, floating buffers; for a LoRA student the adapter. A tied tensor stands
    under each of its names. A sharded student (FSDP2) gives its shards, also after a forward pass that left the parameters
    gathered: asking for a state dict shards them again. Of the module only its ``student`` is read.
    """
    trained = trained_names(module.student)
    return {
        STUDENT + name: tensor.detach()
        for name, tensor in module.student.state_dict(keep_vars=True).items()
        if name in trained and tensor.is_floating_point()
    }


def write_student(module: Any, values: Mapping[str, Tensor]) -> None:
    """Copy values, whole or sharded, under their names in a checkpoint, into the student. An unknown name is a bug of ours."""
    weights = student_weights(module)
    with torch.no_grad():
        for name, value in values.items():
            weights[name].copy_(sharded_like(value, weights[name]))


def adapter_in(weights: Mapping[str, Tensor], scale_of: Callable[[str], float]) -> Adapter:
    """The LoRA adapter among the weights of a student, copied; ``scale_of`` a layer is the factor of its change."""
    layers = [match[1] for name in weights if (match := re.fullmatch(_factor("(.+)", "A", re.escape), name))]
    a_RI, b_OR = ({layer: weights[_factor(layer, which)].cpu().clone() for layer in layers} for which in "AB")
    return {layer: Factors(a_RI[layer], b_OR[layer], scale_of(layer)) for layer in layers}


def _factor(layer: str, which: str, plain: Callable[[str], str] = str) -> str:
    """The name of a factor of an adapter, as peft spells it inside of a generator."""
    return plain(f"{STUDENT}model.") + layer + plain(f".lora_{which}.{NAME}.weight")


# Keys, and their versions


def keys_of_ours(generator: Mapping[str, Any], configured: Mapping[str, Any], bad_steps: int = 0) -> dict[str, Any]:
    """The keys that a module adds to Lightning's checkpoint: the start model (:func:`spec_of`), settings that may move, and the
    number of steps that were skipped.
    """
    stamp = {"format": FORMAT, "version": __version__}
    return {STAMP: stamp, "generator": dict(generator), "configured": dict(configured), "bad_steps": bad_steps}


def upgraded(content: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint of any earlier version in the layout of this one.

    Raises:
        ConfigError: a newer version wrote it.
    """
    # Version 0.1 wrote no stamp. Its layout is that of format 1.
    stamp = {"format": 0, "version": "0.1.0"} | _mapping(content.get(STAMP))
    if stamp["format"] not in range(FORMAT + 1):
        raise ConfigError(
            f"the checkpoint was written by cfg-distill {stamp['version']} in format {stamp['format']}, but this is version"
            f" {__version__}, which reads formats up to {FORMAT}. {UPDATE}"
        )
    return {"configured": {}, "bad_steps": 0} | dict(content) | {STAMP: stamp | {"format": FORMAT}}


def _mapping(value: Any) -> dict[str, Any]:
    """A dict of a checkpoint; empty where a file holds something else in its place."""
    return dict(value) if isinstance(value, Mapping) else {}


# Reading


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint says of the student, on the CPU.

    Attributes:
        file: where it was read.
        step: optimiser steps so far; None where a file does not say.
        generator: the class path and arguments of the start model.
        live: the student's weights, as a module's state dict names them.
        averages: those of StudentEMA, float32; empty without the callback.
        card: guidance, start and losses (name -> class and weight, as it stood at the end), for a model card.
    """

    file: Path
    step: int | None
    generator: dict[str, Any]
    live: dict[str, Tensor]
    averages: dict[str, Tensor]
    card: dict[str, Any] = field(default_factory=dict)

    def problems_of(self, weights: Which) -> list[Problem]:
        """Why there are no such weights."""
        if weights == "raw" or self.averages:
            return []
        text = f"expected averages of StudentEMA, but `{self.file}` holds none. Use raw, or train with the callback."
        return [Problem("", text)]

    def student(self, weights: Which) -> dict[str, Tensor]:
        """All weights of the student. The averages cover the weights that training moves; the others are as they stand.

        Raises:
            ConfigError: averages are asked for, and there are none.
        """
        if problems := self.problems_of(weights):
            raise ConfigError(problems)
        return self.live | (self.averages if weights == "ema" else {})

    @property
    def base(self) -> str:
        """The folder or hub name of the start model; empty where its generator has none."""
        return str(self.generator["init_args"].get("path", ""))

    @property
    def lora_scale(self) -> float | None:
        """The factor of a LoRA adapter, alpha over rank; None where the student is a whole model."""
        lora = self.generator["init_args"].get("lora")
        return lora["alpha"] / lora["rank"] if lora else None


def read(file: str | Path) -> Checkpoint:
    """Load a checkpoint of any version, whole, without running code that may hide in it.

    Raises:
        ConfigError: no checkpoint of CFGDistillation, or a damaged one.
    """
    file = Path(file)
    content = upgraded(_loaded(file))
    spec = _mapping(content.get("generator"))
    if not isinstance(spec.get("class_path"), str) or not isinstance(spec.get("init_args"), dict):
        raise ConfigError(f"expected a checkpoint of CFGDistillation, but `{file}` names no generator.")
    live = _weights(content.get("state_dict"), file)
    if not live:
        raise ConfigError(f"expected a checkpoint of CFGDistillation, but `{file}` holds no weights of a student.")
    kept = _mapping(_mapping(content.get("callbacks")).get(AVERAGES)).get("weights")
    card = _card(_mapping(_mapping(content["configured"]).get("card")), _mapping(content.get("state_dict")))
    return Checkpoint(file, content.get("global_step"), spec, live, _weights(kept, file), card)


def _card(told: Mapping[str, Any], state: Mapping[str, Any]) -> dict[str, Any]:
    """What the recipe said, which version 0.1 did not write, and the weights of losses: a calibrated one has moved since."""
    classes = _mapping(told.get("losses"))
    weights = {match[1]: float(value) for name, value in state.items()
               if (match := re.fullmatch(loss_weight("(.+)"), str(name))) and isinstance(value, Tensor)}  # fmt: skip
    losses = {name: {"class": classes.get(name, "?"), "weight": weight} for name, weight in weights.items()}
    return dict(told) | {"losses": losses}


def _weights(found: Any, file: Path) -> dict[str, Tensor]:
    """The student's part of a state dict."""
    weights = {name: value for name, value in _mapping(found).items() if str(name).startswith(STUDENT)}
    if strange := [name for name, value in weights.items() if not isinstance(value, Tensor)]:
        raise ConfigError(f"expected tensors, but `{file}` holds something else under {', '.join(strange[:8])}.")
    return weights


def problem_of_file(file: Path) -> str:
    """Why a file, or the folder of a sharded checkpoint, is no whole one; empty when it is one. Every byte is compared with
    the archive's checksums.
    """
    if not file.exists():
        return f"expected a file written by cfg-distill fit, but `{file}` does not exist. `cfg-distill runs` lists the runs."
    if file.is_dir():
        return problem_of_folder(file)
    problem, before = damage(file), before_of(file)
    if not problem:
        return ""
    whole = before.is_file() and not damage(before)
    remedy = f"Take the one before it: `{before}`" if whole else "Take another checkpoint of the run"
    return f"`{file}` cannot be read as a checkpoint: {problem}. {remedy}."


def _loaded(file: Path) -> dict[str, Any]:
    if problem := problem_of_file(file):
        raise ConfigError(problem)
    try:
        content = read_folder(file) if file.is_dir() else torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # any: the bytes are a stranger's. Its text is not shown: it advises to run them.
        raise ConfigError(f"`{file}` {HIDES_CODE}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"expected a checkpoint of CFGDistillation, but `{file}` holds a {type(content).__name__}.")
    return content


# The start model


def spec_of(generator: Generator) -> dict[str, Any]:
    """The class path and plain arguments that make a generator again: :func:`generator_of` is the inverse.

    Raises:
        ConfigError: its class takes an argument that it does not keep under the same name.
    """
    kind, init_args = type(generator), {}
    for name, parameter in inspect.signature(kind).parameters.items():
        try:
            init_args[name] = _plain(attrgetter(name)(generator))
        except AttributeError as error:
            stars = {"VAR_POSITIONAL": "*", "VAR_KEYWORD": "**"}.get(parameter.kind.name, "")
            todo = "name each of its arguments, and keep" if stars else "keep"
            what = "them under their names" if stars else f"it as `self.{name}`"
            text = f"`{kind.__name__}.__init__` takes `{stars}{name}`: {todo} {what}, since a checkpoint holds every argument."
            raise ConfigError(text) from error
    return {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": init_args}


def _plain(value: Any) -> Any:
    """A dataclass as a dict, a path as text: a checkpoint is loaded without classes."""
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return str(value) if isinstance(value, Path) else value


def generator_of(spec: Mapping[str, Any], trust: Sequence[str] = ()) -> Generator:
    """A generator of a spec, without its weights.

    A spec is data: nothing is imported but the generators of this package and the modules, or packages, that the user
    trusts, and nothing is called but a subclass of Generator.

    Raises:
        ConfigError: no such class, not a trusted one, or other arguments than it takes.
    """
    kind = _class_of(spec["class_path"], trust)
    try:
        arguments = arguments_of(kind, spec["init_args"])
        inspect.signature(kind).bind(**arguments)
    except TypeError as error:
        text = f"its generator `{spec['class_path']}` takes other arguments than it holds: {error}. Take another checkpoint."
        raise ConfigError(text) from error
    return kind(**arguments)  # a mistake inside of the class keeps its traceback


def _class_of(class_path: Any, trust: Sequence[str]) -> type[Generator]:
    module, _, name = str(class_path).rpartition(".")
    if not is_trusted(str(class_path), trust, TRUSTED):
        raise ConfigError(
            f"its generator is `{class_path}`, and making it runs code of the module `{module}`. If you wrote that module, or"
            f" trust it, allow it with `@/trust` {module}"
        )
    try:
        found = vars(importlib.import_module(module)).get(name)
    except ModuleNotFoundError as error:
        if not f"{module}.".startswith(f"{error.name}."):
            raise  # the module is there, and lacks another one
        text = f"its generator is `{class_path}`, but there is no module `{error.name}`, neither installed nor in this folder."
        text += " Install it, or run the command where it lies."
        raise ConfigError(text) from error
    if not isinstance(found, type) or not issubclass(found, Generator) or inspect.isabstract(found):
        raise ConfigError(f"expected a generator, but `{class_path}` is none.")
    return found
