"""Samples among the outputs of a reference, prompt by prompt. Shapes: B prompts, G samples per prompt, R reference outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from cfg_distill.embedders import Embedder
from cfg_distill.embedders.similarity import counted, unit
from cfg_distill.errors import Context, Problem
from cfg_distill.metrics.base import Axis, EmbeddingMetric
from cfg_distill.references import (
    Bank,
    Banks,
    Contrasts,
    Directions,
    KernelChoice,
    Reference,
    pseudo_density,
    within,
    witness_pairs,
)
from cfg_distill.references.base import WithReference
from cfg_distill.rewards.base import degenerate_of
from cfg_distill.rewards.pairwise import mean_with_others
from cfg_distill.sampling.samples import Samples


class ReferredMetric(WithReference, EmbeddingMetric):
    """A metric that compares the samples of a prompt with a reference: a guard.

    Args:
        embedder: the frozen model, of samples and reference alike; not the reward's embedder alone.
        reference: what the samples are compared with.
    """

    axis: Axis = "guard"


class PseudoDensity(ReferredMetric):
    """How crowded the places of the samples are among real outputs: mean log density, 0 for a typical real output.

    Copies of a corpus score high, and noise scores low. See :func:`cfg_distill.references.pseudo_density`. Degenerate samples
    are left out; NaN where nothing is left.

    Args:
        k: neighbours whose mean distance is 1 / density.
        quantile: null takes the mean of log rho; a number takes the share of samples above that quantile of the reference's own
            densities.
    """

    higher_is_better = None

    def __init__(
        self, embedder: Embedder, reference: Reference, k: int = 10, quantile: float | None = None, **settings: Any
    ) -> None:
        super().__init__(embedder, reference, **settings)
        self.banks = Banks(reference, k, quantile)
        self.quantile = quantile

    def problems(self, context: Context = Context()) -> list[Problem]:
        return super().problems(context) + self.banks.problems()

    def problems_of_reference(self, prompts: Sequence[str]) -> list[Problem]:
        return self.banks.problems_of_prompts(prompts)

    def score(self, samples: Samples) -> Tensor:
        embedding_BGD = self.embedded(samples)
        banks = self.banks.of(samples.asked, *self.referred(samples, embedding_BGD))
        return torch.stack([self._of_prompt(row_GD, bank) for row_GD, bank in zip(embedding_BGD, banks, strict=True)])

    def _of_prompt(self, embedding_GD: Tensor, bank: Bank) -> Tensor:
        density_M = pseudo_density(embedding_GD[counted(embedding_GD)], bank)
        if self.quantile is None:
            return density_M.log().mean()
        return (density_M > bank.density_M.quantile(self.quantile)).float().mean()


class KernelDistance(ReferredMetric):
    r"""The squared kernel distance (MMD) between the samples of a prompt and its reference; unbiased in the samples.

    .. math:: \frac{\sum_{i \ne j} k(y_i, y_j)}{G (G-1)} - \frac{2}{G} \sum_{i, r} w_r k(y_i, v_r)
        + \sum_{rs} w_r w_s k(v_r, v_s)

    It may fall below 0. :class:`~cfg_distill.metrics.KAD` compares all samples of all prompts at once. A pair with a degenerate
    sample is as far off as the kernel allows, as in :class:`cfg_distill.rewards.Witness`. NaN for a group of one.

    Args:
        kernel: of the distance, as in :class:`cfg_distill.rewards.Witness`.
        bandwidths: of the kernel, as in :class:`cfg_distill.rewards.Witness`.
    """

    higher_is_better = False

    def __init__(
        self,
        embedder: Embedder,
        reference: Reference,
        kernel: Literal["gaussian", "energy"] = "gaussian",
        bandwidths: Sequence[float] = (),
        **settings: Any,
    ) -> None:
        super().__init__(embedder, reference, **settings)
        self.kernel = KernelChoice(kernel, bandwidths)

    def problems(self, context: Context = Context()) -> list[Problem]:
        return super().problems(context) + self.kernel.problems(self.reference.shared)

    def score(self, samples: Samples) -> Tensor:
        if samples.group < 2:
            return torch.full((len(samples.prompts),), torch.nan)
        embedding_BGD = self.embedded(samples).double()
        vectors_RD, weight_BR = (each.double() for each in self.referred(samples, embedding_BGD))
        counts_BG = ~degenerate_of(self.embedder, samples).to(embedding_BGD.device)
        pairs_BGG = witness_pairs(embedding_BGD, counts_BG, vectors_RD, weight_BR, self.kernel)
        return within(vectors_RD, weight_BR, self.kernel.of(vectors_RD)) - mean_with_others(pairs_BGG).mean(-1)


class PromptRetrieval(ReferredMetric):
    """The share of samples whose nearest prototype is that of their own prompt: adherence without a text encoder.

    The prototype of a prompt is the mean direction of its reference outputs. A collapse onto the prototype scores 1, so read it
    beside a diversity. A degenerate sample counts as lost.

    Args:
        against: a file of prompts to retrieve among.
        apart: prompts whose prototypes are nearer than this cosine distance mean the same, and do not compete.
    """

    higher_is_better = True

    def __init__(
        self, embedder: Embedder, reference: Reference, against: str, apart: float = 0.1, **settings: Any
    ) -> None:
        super().__init__(embedder, reference, **settings)
        self.contrasts = Contrasts(reference, against, apart)

    def problems(self, context: Context = Context()) -> list[Problem]:
        return super().problems(context) + self.contrasts.problems()

    def problems_of_reference(self, prompts: Sequence[str]) -> list[Problem]:
        return self.contrasts.problems_of_prompts(prompts)

    def score(self, samples: Samples) -> Tensor:
        embedding_BGD = self.embedded(samples)
        own_BD, others_CD, counts_BC = self.contrasts.at(
            samples.asked, self._frozen.on(self.device), embedding_BGD.shape[-1]
        )
        unit_BGD = unit(embedding_BGD)
        own_BG = (unit_BGD * unit(own_BD).to(unit_BGD).unsqueeze(1)).sum(-1)
        others_BGC = (unit_BGD @ unit(others_CD).to(unit_BGD).T).masked_fill(
            ~counts_BC.to(unit_BGD.device).unsqueeze(1), -torch.inf
        )
        found_BG = (own_BG > others_BGC.amax(-1)) & counted(embedding_BGD)
        return found_BG.float().mean(-1)


class CodeAccuracy(ReferredMetric):
    """The share of samples from which their own code can be read, as :class:`cfg_distill.rewards.CodeInformation` reads it.

    1 / K by chance. A degenerate sample counts as not read. NaN for samples without codes, and where all samples of a prompt
    have one label: that is a setting, and tells none from another.

    Args:
        against: a file of prompts, as in the reward.
        values: K.
    """

    axis = "diversity"

    def __init__(
        self, embedder: Embedder, reference: Reference, against: str, values: int = 4, **settings: Any
    ) -> None:
        super().__init__(embedder, reference, **settings)
        self.directions = Directions(reference, against, values)

    def problems(self, context: Context = Context()) -> list[Problem]:
        return super().problems(context) + self.directions.problems(context)

    def problems_of_reference(self, prompts: Sequence[str]) -> list[Problem]:
        return self.directions.listed.problems_of_prompts(prompts)

    def score(self, samples: Samples) -> Tensor:
        labels_BG = samples.rollout.labels_BG
        if labels_BG is None:
            return torch.full((len(samples.prompts),), torch.nan)
        embedding_BGD = self.embedded(samples)
        embedder = self._frozen.on(self.device)
        read_BG = self.directions.log_probs(embedding_BGD, samples.asked, embedder, temperature=1.0).argmax(-1)
        accuracy_B = ((read_BG == labels_BG.to(read_BG)) & counted(embedding_BGD)).float().mean(-1)
        is_told_B = (labels_BG != labels_BG[:, :1]).any(-1).to(read_BG.device)
        return accuracy_B.where(is_told_B, torch.nan)
