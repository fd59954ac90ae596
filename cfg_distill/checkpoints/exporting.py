"""Exporting the student of a checkpoint as a model folder, with its card, and pushing it to a hub."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from cfg_distill.checkpoints.content import STUDENT, Checkpoint, Which, adapter_in, generator_of, read, trained_names
from cfg_distill.errors import ConfigError, Problem, problems_of
from cfg_distill.files import expanded, problems_of_out, staged_folder
from cfg_distill.folders import base_of, problems_of_folder, resolve, write_checksums
from cfg_distill.folders.adapters import Adapter, difference
from cfg_distill.folders.card import ONLY_MERGED, copy_notices, write_card
from cfg_distill.folders.history import History, of_student, terms_of
from cfg_distill.folders.llama_cpp import Conversion
from cfg_distill.folders.numbers import not_numbers
from cfg_distill.folders.publishing import problems_of_push, pushed
from cfg_distill.generators import Generator
from cfg_distill.generators.lora import read_adapter, standing_in


def export(checkpoint: str | Path, out: str | Path, **settings: Any) -> str:
    """Write the student as a folder, whole or not at all; returns sentences that say which weights it took, and what it did.

    Args:
        checkpoint: a file that ``cfg-distill fit`` wrote.
        out: the folder to write.
        settings: the further fields of :class:`ExportRequest`.

    Raises:
        ConfigError: see :meth:`ExportRequest.run`.
    """
    return ExportRequest(checkpoint, out, **settings).run()


@dataclass(frozen=True)
class ExportRequest:
    """The student of a checkpoint as a folder. A LoRA student becomes an adapter folder, or on request a whole model.

    Args:
        checkpoint: a file that ``cfg-distill fit`` wrote.
        out: the folder to write.
        weights: ``raw`` or ``ema``; None takes the averages when the checkpoint holds them.
        merged: add the adapter of a LoRA student to its base.
        overwrite: replace ``out``, if it holds nothing but a model.
        trust: modules of the user's own that a checkpoint may name.
        push: the name of a repository on the hub that receives the folder; empty for none.
        relative_to: an adapter folder of the same base: write the difference to it, as one adapter; empty for none.
        gguf: also convert the folder for llama.cpp, by its own converter.
        finish: a function of the written folder and the model's name that may change its card, before the folder is pushed; its
            answer is a sentence, or empty.
    """

    checkpoint: str | Path
    out: str | Path
    weights: Which | None = None
    merged: bool = False
    overwrite: bool = False
    trust: Sequence[str] = ()
    push: str = ""
    relative_to: str = ""
    gguf: bool = False
    finish: Callable[[Path, str], str] | None = None

    def run(self) -> str:
        """Write the folder; returns sentences that say which weights it took, and what it did.

        Raises:
            ConfigError: a broken checkpoint, or one without the averages asked for, that does not fit its start model or holds
                weights that are no numbers; a student without an adapter to merge or to compare; an ``out`` that must not be
                replaced; a hub that cannot be pushed to; an architecture that llama.cpp does not know.
        """
        out = expanded(self.out)
        found = problems_of_out(out, [self.checkpoint, *filter(None, [self.relative_to])], self.overwrite)
        found += problems_of_push(self.push) if self.push else []
        try:
            content = read(expanded(self.checkpoint))
        except ConfigError as error:
            found += error.under("checkpoint")
        if found:
            raise ConfigError(found)
        took: Which = self.weights or ("ema" if content.averages else "raw")
        generator, state = self._start_of(content, out, took)
        adapter = generator.lora is not None and not self.merged
        written = self._difference(generator, content, took) if self.relative_to else None
        history = of_student(content.base, content.card, content.file, content.step, took, self.relative_to)
        history = history if adapter else replace(history, dialled=False)  # a whole model has no scale to turn
        if self.push and adapter and not history.base_is_on_hub:
            raise ConfigError(Problem("push", f"expected a model that others can load, but {ONLY_MERGED}."))
        conversion = Conversion(out, base_of(generator.path), adapter) if self.gguf else None
        if conversion is not None and (found := conversion.problems(self.overwrite, written)):
            raise ConfigError(found)
        _take(generator.load(), state, content.file)
        if self.merged:
            generator.merge_adapter()
        with _written(generator, written), staged_folder(out) as folder:
            generator.save(folder)
            write_checksums(folder)
            copy_notices(generator.path, folder)
            write_card(folder, out.name, history)
            finished = "" if self.finish is None else self.finish(folder, out.name)
        said = [self._said(out, content, took, adapter, history), f"Licence: {terms_of(history.licence)}"]
        said += [finished] if finished else []
        said += [] if conversion is None else [conversion.run()]
        return "\n".join([*said, pushed(out, self.push)] if self.push else said)

    def _start_of(self, content: Checkpoint, out: Path, took: Which) -> tuple[Generator, dict[str, Tensor]]:
        """The start model, before it is loaded, and the weights that it takes."""
        try:
            generator = generator_of(content.generator, self.trust)
        except ConfigError as error:
            raise ConfigError(error.under("checkpoint")) from error
        found = [
            Problem("checkpoint", f"its start model is needed again. {problem}") for problem in problems_of(generator)
        ]
        if not found:
            found = problems_of_out(out, [resolve(generator.path)], self.overwrite)
        if self.merged and generator.lora is None:
            found.append(Problem("merged", f"the student of `{content.file}` is no adapter. Leave it out."))
        if self.relative_to and generator.lora is None:
            text = (
                f"expected a student that is an adapter, but that of `{content.file}` is a whole model. Leave it out."
            )
            found.append(Problem("relative_to", text))
        elif self.relative_to and self.merged:
            text = "expected without `@.merged`: a difference is of use as an adapter only. Give one of the two."
            found.append(Problem("relative_to", text))
        found += [problem.under("weights") for problem in content.problems_of(took)]
        if found:
            raise ConfigError(found)
        state = content.student(took)
        # Averages are float32; the student may be less.
        return generator, {
            name.removeprefix(STUDENT): value.to(content.live[name].dtype) if name in content.live else value
            for name, value in state.items()
        }

    def _difference(self, generator: Generator, content: Checkpoint, took: Which) -> Adapter:
        """The adapter of the checkpoint less that of ``relative_to``.

        Raises:
            ConfigError: the latter is no adapter of the same base, or changes other layers.
        """
        found = problems_of_folder(self.relative_to) or generator.problems_of_base(self.relative_to)
        if found:
            raise ConfigError([replace(problem, key="relative_to") for problem in found])
        scale = content.lora_scale or 1.0
        student = adapter_in(content.student(took), lambda layer: scale)
        try:
            other = read_adapter(self.relative_to, generator.adapter_prefix)
        except ConfigError as error:
            raise ConfigError(error.under("relative_to")) from error
        wrong = [layer for layer, factors in other.items()
                 if layer not in student or factors.delta_shape != student[layer].delta_shape]  # fmt: skip
        if wrong:
            text = (
                f"expected changes of layers that the student changes too, but `{self.relative_to}` changes"
                f" {', '.join(wrong[:5])}. Name the adapter that the student began from."
            )
            raise ConfigError(Problem("relative_to", text))
        return difference(student, other)

    def _said(self, out: Path, content: Checkpoint, took: Which, adapter: bool, history: History) -> str:
        kind = "the averages of StudentEMA" if took == "ema" else "the raw (live) weights"
        form = ", merged into its base" if self.merged else f", an adapter of {base_of(out)}" if adapter else ""
        less = f", less {self.relative_to}" if self.relative_to else ""
        step = "?" if content.step is None else content.step
        said = f"Wrote {out}: {kind} of {content.file} at step {step}{form}{less}."
        return f"{said} To be published: {ONLY_MERGED}." if adapter and not history.base_is_on_hub else said


@contextmanager
def _written(generator: Generator, adapter: Adapter | None) -> Iterator[None]:
    """Another adapter in the generator until the context ends; None for its own weights."""
    if adapter is None:
        yield
        return
    with standing_in(generator.model, adapter):
        yield


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
    if broken := not_numbers(generator.named_parameters()):
        raise ConfigError(
            f"Checkpoint `{file}` holds weights that are no numbers (NaN or infinite): {', '.join(broken[:8])}. The run had"
            " diverged by then. Take an earlier checkpoint."
        )
