"""What rewards share that compare samples with a reference. Shapes: B prompts, G samples per prompt, R reference outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from torch import Tensor

from cfg_distill.embedders import Embedder, Frozen
from cfg_distill.errors import Context, Problem, blamed, problems_of
from cfg_distill.references import Reference
from cfg_distill.rewards.embedded import UnderEmbedder
from cfg_distill.sampling.samples import Samples
from cfg_distill.sampling.start import StartModel


class Compared(UnderEmbedder):
    """A reward that compares samples with a frozen reference.

    Args:
        embedder: the frozen model, of samples and reference alike.
        reference: what the samples are compared with.
        settings: of the class that holds the baseline.
    """

    def __init__(self, embedder: Embedder, reference: Reference, **settings: Any) -> None:
        super().__init__(embedder, **settings)
        self._reference = Frozen(reference)

    @property
    def reference(self) -> Reference:
        """What the samples are compared with."""
        return self._reference.model

    def problems(self, context: Context = Context()) -> list[Problem]:
        return super().problems(context) + problems_of(self.reference, context, under="reference.init_args")

    def problems_of_prompts(self, prompts: Sequence[str]) -> list[Problem]:
        return [each.under("reference.init_args") for each in self.problems_of_reference(prompts)]

    def problems_of_reference(self, prompts: Sequence[str]) -> list[Problem]:
        """Why the reference has no outputs, or too few, for some of these prompts, by the keys of the reference."""
        return self.reference.problems_of_prompts(prompts)

    def load(self) -> Self:
        self.reference.load()
        return super().load()

    def attach(self, start: StartModel) -> None:
        self.reference.attach(start)

    def referred(self, samples: Samples, embedding_BGD: Tensor) -> tuple[Tensor, Tensor]:
        """The vectors of the reference, ``[R, D]``, and their weights, ``[B, R]``, on the device of the samples' vectors."""
        embedder = self._frozen.on(samples.rollout.tokens_BGKT.device)
        with blamed(self.reference, "reference"):
            vectors_RD, weight_BR = self.reference.at(samples.asked, embedder, embedding_BGD.shape[-1])
        return vectors_RD.to(embedding_BGD.device), weight_BR.to(embedding_BGD.device)
