"""What rewards under an embedder share, and those that compare samples with a reference.

Shapes: B prompts, G samples per prompt, R reference outputs, D embedding width.
"""

from __future__ import annotations

from typing import Any, Self

from torch import Tensor

from cfg_distill.embedders import Embedder, Frozen, embedded
from cfg_distill.errors import Context, Problem, blamed, problems_of
from cfg_distill.references import Reference
from cfg_distill.rewards.base import Reward, degenerate_of
from cfg_distill.sampling.samples import Samples


class UnderEmbedder(Reward):
    """A reward that looks at samples through a frozen embedder; to be named before the class that holds the baseline.

    Args:
        embedder: the frozen model. It is rebuilt from the recipe, never saved.
        settings: of the class that holds the baseline.
    """

    def __init__(self, embedder: Embedder, **settings: Any) -> None:
        super().__init__(**settings)
        self._frozen = Frozen(embedder)

    @property
    def embedder(self) -> Embedder:
        """The frozen model."""
        return self._frozen.model

    def problems(self, context: Context = Context()) -> list[Problem]:
        return super().problems(context) + problems_of(self.embedder, context, under="embedder.init_args")

    def load(self) -> Self:
        self.embedder.load()
        return self

    def embedded(self, samples: Samples) -> Tensor:
        """The vectors of the groups, ``[B, G, D]``, on the samples' device; zero for degenerate samples."""
        with blamed(self.embedder, "embedder"):
            embedding_ND = embedded(self._frozen.on(samples.rollout.tokens_BGKT.device), samples.outputs)
        return embedding_ND.unflatten(0, (len(samples.prompts), samples.group))

    def degenerate(self, samples: Samples) -> Tensor:
        return degenerate_of(self.embedder, samples)


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

    def load(self) -> Self:
        self.reference.load()
        return super().load()

    def referred(self, samples: Samples) -> tuple[Tensor, Tensor]:
        """The vectors of the reference, ``[R, D]``, and their weights for each prompt, ``[B, R]``, on the samples' device."""
        device = samples.rollout.tokens_BGKT.device
        with blamed(self.reference, "reference"):
            vectors_RD, weight_BR = self.reference.at(samples.prompts, self._frozen.on(device))
        return vectors_RD.to(device), weight_BR.to(device)
