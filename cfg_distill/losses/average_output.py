"""Average output: probability moves off what is frequent on average. Shapes: N rows, K codebooks, V vocabulary, M cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from cfg_distill.errors import Context, Problem
from cfg_distill.losses.base import Loss, LossInputs
from cfg_distill.losses.chunked import Cells, CellTerm
from cfg_distill.rewards.lexical import AverageOutput
from cfg_distill.sampling.samples import Samples
from cfg_distill.sampling.start import StartModel


class MinAvgOut(Loss):
    r"""The overlap of each predicted distribution with the average output, summed over cells: no reward, and no embedder.

    .. math:: L = \sum_{n, k, t} \sum_v D_k(v)\, \text{student}(v \mid y_{n, <t})

    With D at rest its gradient is that of half the collision probability of the marginal, so it raises the Renyi-2 entropy of
    the tokens of the whole corpus. ``siblings`` takes for D the tokens of the other samples of the prompt: their overlap falls.
    The gradient through the sampling is left out, as in the paper, which trains on given texts. Source: arXiv 2001.05467.

    Args:
        weight: the factor of this term.
        warmup_steps: optimiser steps over which the weight rises from 0.
        momentum: the part of the past that D keeps at each batch. It moves in train mode only.
        scope: whose tokens D counts: of the ``corpus``, all samples of the batches before this one; or of the ``siblings``.
        ignored_tokens: numbers of tokens that count as share 0: bar signs, say, which are frequent for a reason. End tokens are
            among them always.
    """

    def __init__(
        self,
        weight: float = 100.0,
        warmup_steps: int = 0,
        momentum: float = 0.99,
        scope: Literal["corpus", "siblings"] = "corpus",
        ignored_tokens: Sequence[int] = (),
    ) -> None:
        super().__init__(weight, warmup_steps)
        self.past = AverageOutput(momentum, ignored_tokens)
        self.scope = scope

    def problems(self, context: Context = Context()) -> list[Problem]:
        found = super().problems(context) + self.past.problems()
        if self.scope not in ("corpus", "siblings"):
            found.append(Problem("scope", f"expected `corpus` or `siblings`, but got `{self.scope}`."))
        if self.scope == "siblings" and context.samples == 1:
            text = "expected at least 2 samples per prompt for the scope `siblings`, but got 1."
            found.append(Problem("/model.sampling.samples", f"{text} Set it to 4, say."))
        return found

    def attach(self, start: StartModel) -> None:
        self.past.attach(start)

    @torch.no_grad()
    def advantage(self, samples: Samples) -> Tensor:
        """D for each sample of the batch, ``[N, K, V]``; then D takes in the batch for the next one."""
        if self.scope == "siblings":
            average_NKV = self._of_siblings(samples)
        else:
            # One copy for all rows: a vocabulary of 49,152 would take 6 MB for 32 of them.
            average_NKV = self.past.value.clone().expand(len(samples.outputs), -1, -1)
        self.logs = {"collision": self.past.value.square().sum(-1).mean()}
        if self.training:
            self.past.take(samples.rollout)
        return average_NKV

    def _of_siblings(self, samples: Samples) -> Tensor:
        shares = []
        for counts in self.past.counts(samples.rollout):
            group_BGKV = counts.unflatten(0, (len(samples.prompts), samples.group))
            shares.append((group_BGKV.sum(1, keepdim=True) - group_BGKV).flatten(0, 1))
        return shares[0] / shares[1].clamp(min=1)

    def cells(self, inputs: LossInputs) -> CellTerm:
        average_NKV = inputs.advantage_N
        assert average_NKV is not None

        def overlap(cells: Cells) -> Tensor:
            average_MV = average_NKV[cells.row_M, cells.codebook].to(cells.student_log_probs_MV)
            return (average_MV * cells.student_log_probs_MV.exp()).sum(-1)

        return overlap
