"""Exporting the student of a checkpoint as a model folder, with its card, and pushing it to a hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from cfg_distill.checkpoints.content import STUDENT, Checkpoint, Which, generator_of, read, trained_names
from cfg_distill.errors import ConfigError, Problem, problems_of
from cfg_distill.files import problems_of_out, staged_folder
from cfg_distill.folders import base_of, resolve, write_checksums
from cfg_distill.folders.card import ONLY_MERGED, copy_notices, write_card
from cfg_distill.folders.history import of_student, terms_of
from cfg_distill.folders.publishing import problems_of_push, pushed
from cfg_distill.generators import Generator


def export(
    checkpoint: str | Path,
    out: str | Path,
    weights: Which | None = None,
    merged: bool = False,
    overwrite: bool = False,
    trust: Sequence[str] = (),
    push: str = "",
) -> str:
    """Write the student as a folder, whole or not at all; returns sentences that say which weights it took, and what it did.

    A LoRA student becomes an adapter folder, or on request a whole model.

    Args:
        checkpoint: a file that ``cfg-distill fit`` wrote.
        out: the folder to write.
        weights: ``raw`` or ``ema``; None takes the averages when the checkpoint holds them.
        merged: add the adapter of a LoRA student to its base.
        overwrite: replace ``out``, if it holds nothing but a model.
        trust: modules of the user's own that a checkpoint may name.
        push: the name of a repository on the hub that receives the folder; empty for none.

    Raises:
        ConfigError: a broken checkpoint, or one without the averages asked for, that does not fit its start model or holds
            weights that are no numbers; a student without an adapter to merge; an ``out`` that must not be replaced; a hub that
            cannot be pushed to.
    """
    out = Path(out).expanduser()
    found = problems_of_out(out, [checkpoint], overwrite) + (problems_of_push(push) if push else [])
    try:
        content = read(Path(checkpoint).expanduser())
    except ConfigError as error:
        found += error.under("checkpoint")
    if found:
        raise ConfigError(found)
    took: Which = weights or ("ema" if content.averages else "raw")
    generator, state = _start_of(content, out, merged, took, overwrite, trust)
    lora = generator.lora
    history = of_student(content.base, content.card, content.file, content.step, took)
    if push and lora is not None and not merged and not history.base_is_on_hub:
        raise ConfigError(Problem("push", f"expected a model that others can load, but {ONLY_MERGED}."))
    _take(generator.load(), state, content.file)
    if merged:
        generator.merge_adapter()
    with staged_folder(out) as folder:
        generator.save(folder)
        write_checksums(folder)
        copy_notices(generator.path, folder)
        write_card(folder, out.name, history)
    kind = "the averages of StudentEMA" if took == "ema" else "the raw (live) weights"
    form = "" if lora is None else ", merged into its base" if merged else f", an adapter of {base_of(out)}"
    step = "?" if content.step is None else content.step
    said = f"Wrote {out}: {kind} of {content.file} at step {step}{form}."
    if lora is not None and not merged and not history.base_is_on_hub:
        said += f" To be published: {ONLY_MERGED}."
    said += f"\nLicence: {terms_of(history.licence)}"
    return f"{said}\n{pushed(out, push)}" if push else said


def _start_of(
    content: Checkpoint, out: Path, merged: bool, weights: Which, overwrite: bool, trust: Sequence[str]
) -> tuple[Generator, dict[str, Tensor]]:
    """The start model, before it is loaded, and the weights that it takes."""
    try:
        generator = generator_of(content.generator, trust)
    except ConfigError as error:
        raise ConfigError(error.under("checkpoint")) from error
    found = [Problem("checkpoint", f"its start model is needed again. {problem}") for problem in problems_of(generator)]
    if not found:
        found = problems_of_out(out, [resolve(generator.path)], overwrite)
    if merged and generator.lora is None:
        found.append(Problem("merged", f"the student of `{content.file}` is no adapter. Leave it out."))
    found += [problem.under("weights") for problem in content.problems_of(weights)]
    if found:
        raise ConfigError(found)
    state = content.student(weights)
    # Averages are float32; the student may be less.
    return generator, {name.removeprefix(STUDENT): value.to(content.live[name].dtype) if name in content.live else value
                       for name, value in state.items()}  # fmt: skip


def _take(generator: Generator, state: Mapping[str, Tensor], file: Path) -> None:
    """Put the student's weights into its start model."""
    real = {name for name, weight in generator.named_parameters() if weight.is_floating_point()}
    if wrong := [name for name in sorted(real & state.keys()) if not state[name].is_floating_point()]:
        raise ConfigError(
            f"Checkpoint `{file}` holds integers as weights: {', '.join(wrong[:8])}. Take another checkpoint."
        )
    try:
        result = generator.load_state_dict(state, strict=False)
    except RuntimeError as error:  # torch's for shapes that differ
        wrong = [" ".join(str(error).split())]
    else:
        wrong = sorted({*result.unexpected_keys, *(trained_names(generator) & set(result.missing_keys))})
    if wrong:
        raise ConfigError(
            f"Checkpoint `{file}` does not fit its start model `{generator.path}`: {', '.join(wrong[:8])}. Take the"
            " start model that it was trained from, or another checkpoint."
        )
    if broken := [name for name, weight in generator.named_parameters() if not torch.isfinite(weight).all()]:
        raise ConfigError(
            f"Checkpoint `{file}` holds weights that are no numbers (NaN or infinite): {', '.join(broken[:8])}. The run had"
            " diverged by then. Take an earlier checkpoint."
        )
