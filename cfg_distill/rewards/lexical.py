"""A reward for tokens that are rare on average. Shapes: N rows (B x G samples), K codebooks, T positions, V vocabulary."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cfg_distill.errors import ConfigError, Context, Problem, problems_of_shares
from cfg_distill.rewards.running import RunningMean, all_reduced
from cfg_distill.rewards.sample import SampleReward
from cfg_distill.sampling import Rollout
from cfg_distill.sampling.samples import Samples
from cfg_distill.sampling.start import StartModel


def token_counts(tokens: Tensor, mask: Tensor, vocabulary: int) -> Tensor:
    """How often each sample holds each token: ``[N, K, T]`` tokens and mask to ``[N, K, V]`` float32."""
    counts_NKV = torch.zeros(*tokens.shape[:2], vocabulary, device=tokens.device)
    return counts_NKV.scatter_add_(2, torch.where(mask, tokens, 0), mask.float())


class AverageOutput(RunningMean):
    """D: the share of each token among the tokens of past batches, over all ranks, ``[K, V]``.

    In expectation a drawn token is the distribution that it was drawn from, so D is the average output distribution of the
    student along the past, without a pass of the model. Read it before :meth:`take` sees the batch.

    Args:
        momentum: the part of the past that is kept at each batch.
        ignored_tokens: numbers of tokens whose share counts as 0; end tokens are among them always.
    """

    def __init__(self, momentum: float, ignored_tokens: Sequence[int] = ()) -> None:
        super().__init__(momentum)
        self.ignored_tokens = tuple(ignored_tokens)

    def problems(self) -> list[Problem]:
        """What is wrong with the settings."""
        found = problems_of_shares(momentum=self.momentum)
        if wrong := [token for token in self.ignored_tokens if token < 0]:
            found.append(Problem("ignored_tokens", f"expected numbers of at least 0, but got {wrong[0]}."))
        return found

    def attach(self, start: StartModel) -> None:
        """Take the size of the vocabulary, and the end tokens."""
        shape = start.vocabulary()
        if unknown := [token for token in self.ignored_tokens if token >= shape[1]]:
            text = f"expected numbers below {shape[1]}, the size of the vocabulary, but got {unknown[0]}."
            raise ConfigError(Problem("ignored_tokens", text))
        self.value = nn.Buffer(torch.zeros(shape))
        self.updates = nn.Buffer(torch.zeros(shape[0], 1, dtype=torch.long))  # one count for the tokens of a codebook
        self.ignored_tokens = tuple({*self.ignored_tokens, *start.generator.end_tokens})

    def counts(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """How often each sample holds each token that is not ignored, ``[N, K, V]``, and its tokens, ``[N, K, 1]``."""
        counts_NKV = token_counts(rollout.tokens_NKT, rollout.mask_NKT, self.value.shape[-1])
        total_NK1 = counts_NKV.sum(-1, keepdim=True)
        counts_NKV[..., list(self.ignored_tokens)] = 0
        return counts_NKV, total_NK1

    def take(self, rollout: Rollout) -> None:
        """Take in the tokens of a batch, and those of the other ranks."""
        whole_KV = all_reduced(torch.cat(self.counts(rollout), dim=-1).sum(0).to(self.value))
        self.update(whole_KV[:, :-1], whole_KV[:, -1:])


class AvgOutScore(SampleReward):
    r"""Tokens that are rare on average: one minus the mean share of a sample's tokens in what was drawn before.

    .. math:: r(y) = 1 - \frac{1}{|y|} \sum_{k, t} D_k(y_{kt})

    D is of the batches before this one, so the leave-one-out mean is its right baseline. It spreads the tokens of the whole
    corpus, and says nothing of siblings or of order. An empty sample is worth 0. Source: arXiv 2001.05467.

    Args:
        momentum: the part of the past that D keeps at each batch. It moves in train mode only.
        ignored_tokens: numbers of tokens that count as share 0: bar signs, say, which are frequent for a reason. End tokens are
            among them always.
    """

    def __init__(self, momentum: float = 0.99, ignored_tokens: Sequence[int] = ()) -> None:
        super().__init__()
        self.past = AverageOutput(momentum, ignored_tokens)

    def problems(self, context: Context = Context()) -> list[Problem]:
        return super().problems(context) + self.past.problems()

    @property
    def needs_fit(self) -> str:
        return "it compares with what was drawn before."

    def attach(self, start: StartModel) -> None:
        self.past.attach(start)

    def score(self, samples: Samples) -> Tensor:
        counts_NKV, total_NK1 = self.past.counts(samples.rollout)
        share_N = (counts_NKV * self.past.value.to(counts_NKV)).sum((1, 2)) / total_NK1.sum((1, 2)).clamp(min=1)
        if self.training:
            self.past.take(samples.rollout)
        value_BG = (1 - share_N).unflatten(0, (len(samples.prompts), samples.group))
        return value_BG.masked_fill(self.degenerate(samples).to(value_BG.device), 0.0)
