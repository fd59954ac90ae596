"""``cfg-distill export``: the student of a Lightning checkpoint as a plain Hugging Face folder, or as an adapter folder."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from cfg_distill.cli.arguments import Arguments, refuse_existing
from cfg_distill.cli.types import members
from cfg_distill.errors import ConfigError
from cfg_distill.folders import base_of

if TYPE_CHECKING:
    from cfg_distill.generators import Generator

_STUDENT = "student."
_AVERAGES = "StudentEMA"


def run(argv: Sequence[str]) -> None:
    parser = Arguments("export", "Write the student of a checkpoint as a folder that transformers alone loads.")
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="FILE", help="written by cfg-distill fit")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder to write")
    kinds = "the live weights, or the averages of StudentEMA; default: the averages when the checkpoint holds them"
    parser.add_argument("--weights", choices=("raw", "ema"), help=kinds)
    parser.add_argument(
        "--merged", action="store_true", help="a LoRA student as a whole model, without its adapter apart"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing model folder")
    given = parser.read(argv)
    found = _problems_of_checkpoint(given.checkpoint) + refuse_existing(given.out, given.overwrite, model=True)
    if found:
        raise ConfigError(found)
    print(export(given.checkpoint, given.out, given.weights, given.merged))


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
    averages = content.get("callbacks", {}).get(_AVERAGES, {}).get("weights") or {}
    if weights == "ema" and not averages:
        raise ConfigError(
            f"Option `--weights`: expected averages of StudentEMA, but `{checkpoint}` holds none."
            " Pass --weights raw, or train with the callback."
        )
    state = {name: value for name, value in content["state_dict"].items() if name.startswith(_STUDENT)}
    took_averages = bool(averages) and weights != "raw"
    if took_averages:
        # Averages are float32 and cover what training moves; the rest is as it was.
        state |= {name: value.to(state[name].dtype) for name, value in averages.items()}
    generator = _generator(content["generator"], checkpoint)
    lora = generator.lora
    if merged and lora is None:
        raise ConfigError(f"Option `--merged`: the student of `{checkpoint}` is no adapter. Leave it out.")
    _take(generator.load(), {name.removeprefix(_STUDENT): value for name, value in state.items()}, checkpoint)
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
    from cfg_distill.frozen import trained_names

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


def _problems_of_checkpoint(file: Path) -> list[str]:
    if not file.exists():
        return [f"Option `--checkpoint`: expected a file written by cfg-distill fit, but `{file}` does not exist."]
    if file.is_dir():
        return [
            f"Option `--checkpoint`: expected one file, but `{file}` is a folder (a sharded checkpoint). Make one file"
            f" of it: python -m lightning.pytorch.utilities.consolidate_checkpoint {file}"
        ]
    return []


def _read(file: Path) -> dict[str, Any]:
    import pickle

    import torch

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
    from cfg_distill.cli.checks import find_class
    from cfg_distill.generators import Generator

    found = find_class(spec["class_path"], (Generator,), "a Generator")
    if isinstance(found, str):
        raise ConfigError(f"Checkpoint `{checkpoint}`: its generator cannot be made: {found}")
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
