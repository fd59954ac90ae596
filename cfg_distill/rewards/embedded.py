"""What rewards under an embedder share. Shapes: N samples, B prompts, G samples per prompt, D embedding width."""

from __future__ import annotations

from collections.abc import Sequence
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

    def embedded(self, samples: Samples, outputs: Sequence[Any] | None = None) -> Tensor:
        """The vectors of the groups, ``[B, G, D]``, on the samples' device; zero for degenerate samples.

        Args:
            samples: B groups.
            outputs: B * G others in the place of the samples' own; None for these.
        """
        with blamed(self.embedder, "embedder"):
            embedder = self._frozen.on(samples.rollout.tokens_BGKT.device)
            embedding_ND = embedded(embedder, samples.outputs if outputs is None else outputs)
        return embedding_ND.unflatten(0, (len(samples.prompts), samples.group))

    def degenerate(self, samples: Samples) -> Tensor:
        return degenerate_of(self.embedder, samples)
