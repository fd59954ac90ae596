"""The protocol of a reference, and what its users share. Shapes: B prompts, G samples per prompt, R reference outputs, D
embedding width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from cfg_distill.embedders import Embedder, Frozen
from cfg_distill.errors import ConfigError, Context, Problem, blamed, listed, problems_of
from cfg_distill.generators import PromptLike
from cfg_distill.sampling.samples import Samples
from cfg_distill.sampling.start import StartModel


def problems_of_length(tokens: int, context: Context) -> list[Problem]:
    """Why outputs of a number of tokens cannot be compared with samples, whose length an encoder sees."""
    if context.length is None or tokens >= context.length:
        return []
    text = f"expected at least {context.length}, as many as the samples have, but got {tokens}. Raise it."
    return [Problem("tokens", text)]


class Reference(ABC):
    """A frozen set of outputs with which samples are compared: override :meth:`parts`, and :meth:`weight` if prompts matter.

    It is no module. Its vectors are made by the embedder of whoever compares, so that both have one width. They are in no
    checkpoint: they are made anew from their source. Cut the outputs to the samples' length, since an encoder sees length.

    Attributes:
        shared: whether all prompts share one set of outputs, of which the weights choose; else each has outputs of its own.
    """

    shared = True
    chosen_by = ""
    """The setting that says which outputs belong to a prompt."""
    if_none = "Add some, or leave the prompts out."
    """What to do for prompts that have too few outputs."""
    _known: tuple[Embedder, Tensor, Tensor] | None = None

    @property
    def draws_from_start(self) -> bool:
        """Whether it draws samples of the fit's start model while the fit trains."""
        return False

    @abstractmethod
    def parts(self) -> Iterator[Sequence[Any]]:
        """The R outputs, some at a time: a collection need not fit the memory."""

    def weight(self, prompts: Sequence[str]) -> Tensor:
        """How much each output counts for each prompt, ``[B, R]``, at least 0; or ``[B, 1]`` where all count alike."""
        return torch.ones(len(prompts), 1)

    def size(self) -> int | None:
        """R, where it is known without reading the outputs."""
        return None

    def number(self, prompt: str) -> int | None:
        """How many outputs belong to a prompt, degenerate ones included; None where only loading can say."""
        weight_R = self.weight([prompt])[0]
        alike = len(weight_R) == 1 and self.size() != 1
        return self.size() if alike and weight_R.item() > 0 else int((weight_R > 0).sum())

    def problems(self, context: Context = Context()) -> list[Problem]:
        """What is wrong with the settings, found without loading weights."""
        return []

    def problems_of_prompts(self, prompts: Sequence[str], at_least: int = 1) -> list[Problem]:
        """One problem for all prompts that have fewer outputs than needed, found without loading weights.

        Args:
            prompts: all that will be asked.
            at_least: outputs that each of them needs.
        """
        numbers = {prompt: self.number(prompt) for prompt in prompts}
        few = [
            f"{prompt!r} ({number})" for prompt, number in numbers.items() if number is not None and number < at_least
        ]
        if not few:
            return []
        outputs = "1 output" if at_least == 1 else f"{at_least} outputs"
        text = f"expected at least {outputs} for every prompt, but {len(few)} of {len(numbers)} have fewer: "
        return [Problem(self.chosen_by, f"{text}{listed(few, 3)}. {self.if_none}")]

    def load(self) -> Self:
        """Load what the reference needs; does nothing the second time."""
        return self

    def attach(self, start: StartModel) -> None:  # noqa: B027 - most references need none
        """Take the start model of a fit, loaded; called once, behind :meth:`load`."""

    def vectors(self, embedder: Embedder) -> Tensor:
        """The vectors of all outputs, ``[R, D]``, degenerate ones included; made the first time, on the embedder's device."""
        return self._read(embedder, ())[0]

    def at(self, prompts: Sequence[PromptLike], embedder: Embedder, width: int | None = None) -> tuple[Tensor, Tensor]:
        """The vectors, ``[R, D]``, and their weights for each prompt, ``[B, R]``, of sum 1; a degenerate output has weight 0.

        Args:
            prompts: B prompts.
            embedder: of the samples, and so of the outputs.
            width: D of the samples' vectors; None where they are not compared.

        Raises:
            ConfigError: no output belongs to a prompt; the embedder gave the samples vectors of another width.
        """
        vectors_RD, counts_R = self._read(embedder, prompts)
        if width is not None and len(vectors_RD) and vectors_RD.shape[-1] != width:
            text = f"expected vectors of one width from {type(embedder).__name__}, but it gave the reference"
            text = f"{text} {vectors_RD.shape[-1]} numbers per output, and the samples {width}."
            raise ConfigError(Problem("", f"{text} Make the width a constant of the embedder."))
        weight_BR = self.weight([*map(str, prompts)]).to(vectors_RD) * counts_R.to(vectors_RD)
        total_B1 = weight_BR.sum(-1, keepdim=True)
        if lonely := [
            str(prompt) for prompt, total in zip(prompts, total_B1.flatten().tolist(), strict=True) if not total > 0
        ]:
            text = f"expected reference outputs for every prompt, but none belongs to {lonely[0]!r}"
            more = f" and {len(lonely) - 1} more" if len(lonely) > 1 else ""
            raise ConfigError(Problem("", f"{text}{more}. {self.if_none}"))
        return vectors_RD, weight_BR / total_B1

    def _read(self, embedder: Embedder, prompts: Sequence[PromptLike]) -> tuple[Tensor, Tensor]:
        """The vectors of the outputs for these prompts, ``[R, D]``, and which of them count, ``[R]``."""
        if self._known is None or self._known[0] is not embedder:
            self.load()
            vectors, counts = [], []
            for outputs in self.parts():
                if outputs:
                    vectors.append(embedder.embed(outputs))
                    counts.append(~embedder.degenerate(outputs))
            if not vectors:
                return torch.zeros(0, 0), torch.zeros(0, dtype=torch.bool)
            self._known = embedder, torch.cat(vectors), torch.cat(counts)
        return self._known[1:]


class WithReference:
    """A reward or a metric that compares samples with a frozen reference; to be named before the class that has the embedder.

    Args:
        embedder: the frozen model, of samples and reference alike.
        reference: what the samples are compared with.
        settings: of the classes behind it.
    """

    _frozen: Frozen[Embedder]

    # The class that has the embedder stands behind this one, where mypy does not see its methods.
    def __init__(self, embedder: Embedder, reference: Reference, **settings: Any) -> None:
        super().__init__(embedder, **settings)  # type: ignore[call-arg]
        self._reference = Frozen(reference)

    @property
    def reference(self) -> Reference:
        """What the samples are compared with."""
        return self._reference.model

    def problems(self, context: Context = Context()) -> list[Problem]:
        own = super().problems(context)  # type: ignore[misc]
        return own + problems_of(self.reference, context, under="reference.init_args")

    def problems_of_prompts(self, prompts: Sequence[str]) -> list[Problem]:
        return [each.under("reference.init_args") for each in self.problems_of_reference(prompts)]

    def problems_of_reference(self, prompts: Sequence[str]) -> list[Problem]:
        """Why the reference has no outputs, or too few, for some of these prompts, by the keys of the reference."""
        return self.reference.problems_of_prompts(prompts)

    def load(self) -> Self:
        self.reference.load()
        return super().load()  # type: ignore[misc]

    def referred(self, samples: Samples, embedding_BGD: Tensor) -> tuple[Tensor, Tensor]:
        """The vectors of the reference, ``[R, D]``, and their weights, ``[B, R]``, on the device of the samples' vectors."""
        with blamed(self.reference, "reference"):  # the embedder is where it has just made the samples' vectors
            vectors_RD, weight_BR = self.reference.at(samples.asked, self._frozen.model, embedding_BGD.shape[-1])
        return vectors_RD.to(embedding_BGD.device), weight_BR.to(embedding_BGD.device)
