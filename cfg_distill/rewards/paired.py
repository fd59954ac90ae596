"""Samples and samples of the start model with the same openings. Shapes: B prompts, G samples per prompt, D embedding width."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from cfg_distill.embedders import Embedder
from cfg_distill.embedders.similarity import both_count, counted, unit
from cfg_distill.errors import ConfigError, Context, Problem, problems_of_positive
from cfg_distill.rewards.embedded import UnderEmbedder
from cfg_distill.rewards.pairwise import PairwiseReward
from cfg_distill.rewards.sample import SampleReward
from cfg_distill.sampling.samples import Samples


class Paired(UnderEmbedder):
    """A reward that compares a sample with the one of the start model that shares its opening.

    Both are independent given the opening, and a sample's siblings have other openings. So the baselines of the other base
    classes are right as they stand. It needs openings: ``model.opening: {tokens: 16}``.
    """

    is_factor = False

    @property
    def needs_fit(self) -> str:
        return "it compares samples that go on from openings of the start model."

    def problems(self, context: Context = Context()) -> list[Problem]:
        found = super().problems(context)
        if context.training and not context.opening:
            text = "expected an opening, which samples share with those of the start model, but got none. Take {tokens: 16}."
            found.append(Problem("/model.opening", text))
        return found

    def pair(self, samples: Samples) -> tuple[Tensor, Tensor]:
        """The directions of samples and start samples, ``[B, G, D]`` each, of length 1; zero for degenerate ones."""
        if not samples.start:
            raise ConfigError(Problem("", "expected samples with openings, but they have none. Set `@/model.opening`."))
        return unit(self.embedded(samples)), unit(self.embedded(samples, samples.start))


class PairedContrast(Paired, SampleReward):
    r"""Each sample nearer to the start sample of its own opening than to those of its siblings.

    .. math:: r_i = \log \frac{e^{\cos(e(y_i), e(s_i)) / \tau}}{\sum_j e^{\cos(e(y_i), e(s_j)) / \tau}}

    with s_j the start model's samples. It keeps the variety that the start model has from opening to opening: a student whose
    samples become alike cannot be told apart. A degenerate sample gets the lowest value. A degenerate start sample is compared
    with nothing, and the sample of its opening gets 0. A student that stays the start model
    is paid most, so it is for use beside the divergence. Source: arXiv 2205.03805, whose pairs share noise; the half of its
    generator alone.

    Args:
        embedder: the frozen model.
        temperature: tau.
    """

    def __init__(self, embedder: Embedder, temperature: float = 0.1) -> None:
        super().__init__(embedder)
        self.temperature = temperature

    def problems(self, context: Context = Context()) -> list[Problem]:
        return super().problems(context) + problems_of_positive(temperature=self.temperature)

    def score(self, samples: Samples) -> Tensor:
        drawn_BGD, start_BGD = self.pair(samples)
        with torch.autocast(drawn_BGD.device.type, enabled=False):
            cosine_BGG = (drawn_BGD @ start_BGD.mT).masked_fill(~counted(start_BGD).unsqueeze(-2), -math.inf)
        own_BG = (cosine_BGG / self.temperature).log_softmax(-1).diagonal(dim1=-2, dim2=-1)
        lowest = -math.log1p((samples.group - 1) * math.exp(min(2 / self.temperature, 700.0)))
        return torch.where(counted(drawn_BGD), torch.where(counted(start_BGD), own_BG, 0.0), lowest)


class SimilarityMatch(Paired, PairwiseReward):
    r"""Two samples as similar as the start samples of their openings: the diversity of the start model, pair by pair.

    .. math:: r(y_i, y_j) = - (\cos(e(y_i), e(y_j)) - \cos(e(s_i), e(s_j)))^2

    A pair with a degenerate sample gets the lowest value, -4; any other with a degenerate start sample 0. Source: arXiv
    2203.09301, whose pairs share a latent.

    Args:
        embedder: the frozen model.
        baseline: see :class:`PairwiseReward`.
        momentum: see :class:`PairwiseReward`.
    """

    def __init__(
        self,
        embedder: Embedder,
        baseline: Literal["pairwise", "running_mean"] = "pairwise",
        momentum: float = 0.95,
    ) -> None:
        super().__init__(embedder, baseline=baseline, momentum=momentum)

    def pairs(self, samples: Samples) -> Tensor:
        drawn_BGD, start_BGD = self.pair(samples)
        with torch.autocast(drawn_BGD.device.type, enabled=False):
            gap_BGG = drawn_BGD @ drawn_BGD.mT - start_BGD @ start_BGD.mT
        value_BGG = torch.where(both_count(start_BGD), -gap_BGG.square(), 0.0)
        return torch.where(both_count(drawn_BGD), value_BGG, -4.0)
