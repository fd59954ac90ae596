"""The guards against samples that are none: the share of empty ones, and of text that loops or is rubbish."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cfg_distill.embedders import Embedder, Frozen, is_empty
from cfg_distill.embedders.degeneration import degenerate
from cfg_distill.errors import Context, Problem, problems_of
from cfg_distill.metrics.base import EachText, SampleMetric
from cfg_distill.sampling.samples import Samples


class Degeneration(EachText):
    """The share of a prompt's samples that loop, say nothing or fall apart: see :func:`degenerate`."""

    def score_text(self, text: str) -> float:
        return degenerate(text)


class EmptyShare(SampleMetric):
    """The share of a prompt's samples that are empty or degenerate, and so earn no diversity: a guard for every recipe.

    Read it beside each measure of diversity, in which such samples count 0.

    Args:
        embedder: its rule decides (:meth:`~cfg_distill.embedders.Embedder.degenerate`), and its weights are not loaded. None
            takes the rule for any sample: text without a letter or digit, silent sound.
    """

    axis = "guard"
    higher_is_better = False

    def __init__(self, embedder: Embedder | None = None, **settings: Any) -> None:
        super().__init__(**settings)
        # In a box, as the embedders of all metrics: it enters no state dict.
        self._frozen = None if embedder is None else Frozen(embedder)

    def problems(self, context: Context = Context()) -> list[Problem]:
        return [] if self._frozen is None else problems_of(self._frozen.model, context, under="embedder.init_args")

    def score(self, samples: Samples) -> Tensor:
        if self._frozen is None:
            degenerate_N = torch.tensor([is_empty(output) for output in samples.outputs], dtype=torch.bool)
        else:
            degenerate_N = self._frozen.model.degenerate(samples.outputs)
        return degenerate_N.float().unflatten(0, (len(samples.prompts), samples.group)).mean(-1)


__all__ = ["Degeneration", "EmptyShare", "degenerate", "is_empty"]
