"""What rewards under an embedder share. Shapes: N samples, B prompts, G samples per prompt, D embedding width."""

from __future__ import annotations

from typing import Any, Self

from torch import Tensor

from cfg_distill.embedders import Embedder, Frozen, embedded
from cfg_distill.errors import Context, Problem, blamed, problems_of
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
