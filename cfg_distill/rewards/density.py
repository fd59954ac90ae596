"""Away from what is common among real outputs, or towards it. Shapes: B prompts, G samples per prompt, M outputs of a bank."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cfg_distill.embedders import Embedder
from cfg_distill.errors import Context, Problem
from cfg_distill.references import Bank, Banks, Reference, pseudo_density
from cfg_distill.rewards.compared import Compared
from cfg_distill.rewards.sample import SampleReward
from cfg_distill.sampling.samples import Samples


class Density(Compared, SampleReward):
    r"""Pseudo density: samples in crowded places of the reference are made rarer, or more frequent.

    .. math:: r(y) = \log a(y), \qquad a(y) = \begin{cases} w & \rho(y) > \tau \\ 1 & \text{otherwise} \end{cases}

    with rho the density of the sample among the reference outputs of its prompt
    (:func:`~cfg_distill.references.pseudo_density`), tau a quantile of their own densities and w ``weight_above``. Samples
    rejected with acceptance a would have the law p a / Z. That law is the optimum of this reward at weight 1 beside the KL of
    sequences (``score_term: true``): the same at the cost of one sample. Without the score term it is near that. A w below 1
    asks for variety, a w above 1 for fidelity. A degenerate sample gets the lowest value.

    A corpus knows no prompt, so keep a reference that matches prompts, or fame wins over the prompt. Source: arXiv 2407.08659;
    there it selects training data and samples.

    Args:
        embedder: the frozen model, of samples and reference alike.
        reference: real outputs, at least k + 1 for each prompt.
        k: neighbours whose mean distance is 1 / density.
        quantile: of the reference's own densities, which is tau. Densities have a narrow range, so tau is no fixed number.
        weight_above: w.
        smooth: take log rho itself, clipped at the reference's 5 % and 95 % quantiles, times the sign of log w. Without the
            clip noise would be the most novel.
    """

    is_factor = False

    def __init__(
        self,
        embedder: Embedder,
        reference: Reference,
        k: int = 10,
        quantile: float = 0.5,
        weight_above: float = 0.25,
        smooth: bool = False,
    ) -> None:
        super().__init__(embedder, reference)
        self.banks = Banks(reference, k, quantile)
        self.quantile = quantile
        self.weight_above = weight_above
        self.smooth = smooth

    def problems(self, context: Context = Context()) -> list[Problem]:
        found = super().problems(context) + self.banks.problems()
        if not 0 < self.weight_above < math.inf or self.weight_above == 1:
            text = f"expected a number above 0 other than 1, but got {self.weight_above}. Below 1 asks for variety."
            found.append(Problem("weight_above", text))
        return found

    def problems_of_reference(self, prompts: Sequence[str]) -> list[Problem]:
        return self.banks.problems_of_prompts(prompts)

    def score(self, samples: Samples) -> Tensor:
        embedding_BGD = self.embedded(samples)
        banks = self.banks.of(samples.asked, *self.referred(samples, embedding_BGD))
        with torch.autocast(embedding_BGD.device.type, enabled=False):
            rows = [self._of_prompt(row_GD, bank) for row_GD, bank in zip(embedding_BGD, banks, strict=True)]
        value_BG = torch.stack([value_G for value_G, _ in rows])
        lowest_B1 = torch.stack([lowest for _, lowest in rows]).unsqueeze(-1)
        return torch.where(self.degenerate(samples).to(value_BG.device), lowest_B1, value_BG)

    def _of_prompt(self, embedding_GD: Tensor, bank: Bank) -> tuple[Tensor, Tensor]:
        """The values of a group, and the lowest that there can be."""
        density_G, log_weight = pseudo_density(embedding_GD, bank), math.log(self.weight_above)
        if not self.smooth:
            above_G = density_G > bank.density_M.quantile(self.quantile)
            return log_weight * above_G.float(), embedding_GD.new_tensor(min(0.0, log_weight))
        low, high = bank.density_M.quantile(bank.density_M.new_tensor([0.05, 0.95])).log().unbind()
        value_G = density_G.log().clamp(low, high)
        return (value_G, low) if log_weight > 0 else (-value_G, -high)
