"""Nearer to real outputs and apart from each other, as far as a kernel sees. B prompts, G samples, R references."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from cfg_distill.embedders import Embedder
from cfg_distill.errors import Context, Problem
from cfg_distill.references import KernelChoice, Reference, witness_pairs
from cfg_distill.rewards.compared import Compared
from cfg_distill.rewards.pairwise import PairwiseReward
from cfg_distill.sampling.samples import Samples


class Witness(Compared, PairwiseReward):
    r"""Minus the kernel distance (MMD) between the samples of a prompt and a reference, as a reward on pairs.

    .. math:: r(y, y') = a(y) + a(y') - k(y, y'), \qquad a(y) = \sum_r w_r\, k(y, v_r)

    Its mean over pairs is minus the squared maximum mean discrepancy, up to the reference's own term: samples are drawn to the
    reference and pushed off their siblings. So diversity rises to the reference's own and stops there. Pairwise cosine
    diversity is the case w = 0 with a linear kernel. A pair with a degenerate sample gets the lowest value that the kernel
    allows: far from the reference, and on top of each other. Source: Gretton et al., JMLR 2012; as a generator's loss, arXiv
    2308.14048, whose Dirichlet weights on the data do not change the expected gradient.

    Args:
        embedder: the frozen model, of samples and reference alike.
        reference: real outputs.
        kernel: ``gaussian``, the mean over ``bandwidths``; ``energy``, minus the distance.
        bandwidths: of the Gaussian kernel; empty takes 0.5, 1 and 2 times the median distance of the reference. Unit vectors in
            many dimensions lie at one distance, and a kernel as wide as that compares little more than means.
        baseline: see :class:`PairwiseReward`.
        momentum: see :class:`PairwiseReward`.
    """

    is_factor = False

    def __init__(
        self,
        embedder: Embedder,
        reference: Reference,
        kernel: Literal["gaussian", "energy"] = "gaussian",
        bandwidths: Sequence[float] = (),
        baseline: Literal["pairwise", "running_mean"] = "pairwise",
        momentum: float = 0.95,
    ) -> None:
        super().__init__(embedder, reference, baseline=baseline, momentum=momentum)
        self.kernel = KernelChoice(kernel, bandwidths)

    def problems(self, context: Context = Context()) -> list[Problem]:
        return super().problems(context) + self.kernel.problems(self.reference.shared)

    def pairs(self, samples: Samples) -> Tensor:
        embedding_BGD = self.embedded(samples)
        vectors_RD, weight_BR = self.referred(samples, embedding_BGD)
        counts_BG = ~self.degenerate(samples).to(embedding_BGD.device)
        with torch.autocast(embedding_BGD.device.type, enabled=False):
            return witness_pairs(embedding_BGD, counts_BG, vectors_RD, weight_BR, self.kernel)
