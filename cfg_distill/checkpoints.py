"""What a checkpoint of a distillation holds: the names of its weights, reading it, exporting the student."""

from __future__ import annotations

import dataclasses
import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_type_hints

import torch
from torch import Tensor, nn

from cfg_distill.errors import ConfigError
from cfg_distill.folders import base_of
from cfg_distill.generators import Generator
from cfg_distill.recipe.classes import find_class
from cfg_distill.recipe.types import members

STUDENT = "student."
AVERAGES = "StudentEMA"


def trained_names(module: nn.Module) -> set[str]:
    """The names of a state dict that training moves.

    All, buffers included, of a model whose parameters are all trained; of one with frozen parameters those that are not: its
    buffers belong to the frozen part.
    """
    state = module.state_dict(keep_vars=True)
    trained = {name for name, tensor in state.items() if tensor.requires_grad}
    frozen = any(isinstance(tensor, nn.Parameter) and not tensor.requires_grad for tensor in state.values())
    return trained if frozen else set(state)


def student_weights(module: Any) -> dict[str, Tensor]:
    """What training moves of the student: parameters and, unless some are frozen, floating buffers; named as in a checkpoint.

    Of a LoRA student that is the adapter.

    A tied tensor stands under each of its names. Of a sharded student (FSDP2) these are the shards, also after a forward
    that left the parameters gathered: asking for a state dict shards them again.

    Args:
        module: the LightningModule; its ``student`` is looked at.
    """
    trained = trained_names(module.student)
    return {
        f"student.{name}": tensor.detach()
        for name, tensor in module.student.state_dict(keep_vars=True).items()
        if name in trained and tensor.is_floating_point()
    }


def write_student(module: Any, values: Mapping[str, Tensor]) -> None:
    """Copy values, by their names in a checkpoint, into the student; names that it lacks are an error of ours."""
    weights = student_weights(module)
    with torch.no_grad():
        for name, value in values.items():
            weights[name].copy_(value)


def export(checkpoint: Path, out: Path, weights: str | None = None, merged: bool = False) -> str:
    """Write the folder, whole or not at all; returns a sentence that says which weights it took.

    A LoRA student becomes an adapter folder, or on request a whole model.

    Args:
        checkpoint: a file that ``cfg-distill fit`` wrote.
        out: the folder; replaced if it is there.
        weights: ``raw`` or ``ema``; None takes the averages when the checkpoint holds them.
        merged: add the adapter of a LoRA student to its base.

    Raises:
        ConfigError: the file is no such checkpoint, holds no averages although they are asked for, or does not fit its start
            model; a student that is no adapter shall be merged.
    """
    content = _read(checkpoint)
    averages = content.get("callbacks", {}).get(AVERAGES, {}).get("weights") or {}
    if weights == "ema" and not averages:
        raise ConfigError(
            f"Option `--weights`: expected averages of StudentEMA, but `{checkpoint}` holds none."
            " Pass --weights raw, or train with the callback."
        )
    state = {name: value for name, value in content["state_dict"].items() if name.startswith(STUDENT)}
    took_averages = bool(averages) and weights != "raw"
    if took_averages:
        # Averages are float32 and cover what training moves; the rest is as it was.
        state |= {name: value.to(state[name].dtype) for name, value in averages.items()}
    generator = _generator(content["generator"], checkpoint)
    lora = generator.lora
    if merged and lora is None:
        raise ConfigError(f"Option `--merged`: the student of `{checkpoint}` is no adapter. Leave it out.")
    _take(generator.load(), {name.removeprefix(STUDENT): value for name, value in state.items()}, checkpoint)
    if merged:
        generator.merge_adapter()

    staged = out.with_name(f".{out.name}.partial")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    generator.save(staged)
    # The library's writer lets nobody but the owner read the weights; whoever may read the configuration may read them.
    for file in staged.glob("*.safetensors"):
        shutil.copymode(next(staged.glob("*config.json")), file)
    shutil.rmtree(out, ignore_errors=True)
    staged.rename(out)
    kind = "the averages of StudentEMA" if took_averages else "the raw (live) weights"
    form = "" if lora is None else ", merged into its base" if merged else f", an adapter of {base_of(out)}"
    return f"Wrote {out}: {kind} of {checkpoint} at step {content.get('global_step', '?')}{form}."


def _take(generator: Generator, state: dict[str, Any], checkpoint: Path) -> None:
    try:
        result = generator.load_state_dict(state, strict=False)
    except RuntimeError as error:  # torch's for shapes that differ
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"Checkpoint `{checkpoint}` does not fit its start model `{generator.path}`: {reason}"
        ) from error
    wrong = sorted({*result.unexpected_keys, *(trained_names(generator) & set(result.missing_keys))})
    if wrong:
        raise ConfigError(
            f"Checkpoint `{checkpoint}` does not fit its start model `{generator.path}`: {', '.join(wrong[:8])}."
        )


def _read(file: Path) -> dict[str, Any]:
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"Option `--checkpoint`: `{file}` cannot be read as a checkpoint: {reason}") from error
    if not isinstance(content, dict) or not {"generator", "state_dict"} <= content.keys():
        raise ConfigError(
            f"Option `--checkpoint`: expected a checkpoint of CFGDistillation, but `{file}` names no generator."
        )
    return content


def _generator(spec: dict[str, Any], checkpoint: Path) -> Generator:
    try:
        found = find_class(spec["class_path"], (Generator,), "a Generator")
    except ConfigError as error:
        raise ConfigError(
            [f"Checkpoint `{checkpoint}`: its generator: {each.text}" for each in error.problems]
        ) from error
    generator = found(**_arguments(found, spec["init_args"]))
    if problems := generator.problems():
        raise ConfigError([f"Checkpoint `{checkpoint}`: its start model is needed again. {text}" for text in problems])
    return generator


def _arguments(kind: type, plain: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a generator from those of its :meth:`spec`, where a dataclass is a dict."""
    made = dict(plain)
    for name, hint in get_type_hints(kind.__init__).items():  # type: ignore[misc]
        settings = next((each for each in members(hint) if dataclasses.is_dataclass(each)), None)
        if isinstance(settings, type) and isinstance(made.get(name), dict):
            made[name] = settings(**made[name])
    return made
