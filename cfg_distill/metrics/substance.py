"""A quality of text that bland, repeated, copied and broken text cannot buy.

Shapes: B prompts, G samples per prompt, N = B * G, K codebooks (1 for text), T positions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cfg_distill.embedders.base import texts_of
from cfg_distill.embedders.tokens import repeated_grams, words
from cfg_distill.errors import Context, Problem
from cfg_distill.generators import Generator
from cfg_distill.metrics.likelihood import LikelihoodMetric
from cfg_distill.sampling.samples import Samples

BROKEN, WHOLE = -7.0, -5.0
"""Mean log-probabilities per token: shuffled words lie below the first, written text and samples above the second."""
ENOUGH = 12
"""New words of a whole answer: a haiku has as many."""


def new_words(text: str, prompt: str) -> int:
    """The number of different words of a text that its prompt does not hold.

    Example:
        >>> new_words("A fox, and the fox's den.", "Write about a fox.")
        4
    """
    return len(set(words(text)) - set(words(prompt)))


def said_before(text: str, n: int = 4) -> float:
    """The share of a text's n-grams of words that stood in it before, in [0, 1); 0 when it holds none.

    Example:
        >>> said_before("Tick, tock, tick, tock, TICK, tock.", n=2)
        0.6
    """
    return repeated_grams(words(text), n)


def clipped_information(with_prompt: Tensor, without: Tensor, mask: Tensor, clip: float = 1.0) -> Tensor:
    r"""Mean information on the prompt per token, each token's share clipped.

    .. math:: \frac{1}{\sum_t m_t} \sum_t m_t \min(c, \max(-c, \log p(y_t \mid x, y_{<t}) - \log p(y_t \mid y_{<t})))

    The clip takes the pay from a few words that name the subject. Source of the unclipped quantity: Li et al., arXiv
    1510.03055, section 3.

    Args:
        with_prompt: log p(y_t | x, y_<t), ``[N, T]``.
        without: log p(y_t | y_<t), ``[N, T]``.
        mask: m, ``[N, T]``; an empty row counts 0.
        clip: c, in nats.

    Returns:
        ``[N]``, in [-c, c].

    Example:
        >>> two = torch.tensor([[-1.0, -2.0]])
        >>> clipped_information(two, torch.tensor([[-9.0, -1.5]]), torch.ones(1, 2, dtype=torch.bool))
        tensor([0.2500])
    """
    share_NT = (with_prompt - without).clamp(-clip, clip).where(mask, 0.0)
    return share_NT.sum(-1) / mask.sum(-1).clamp(min=1)


class Substance(LikelihoodMetric):
    r"""How much a text has to say to its prompt, from 0 to 1, by the base.

    .. math:: q = \max(0, I) \cdot F \cdot N \cdot (1 - R)

    I is the clipped information of the text on the prompt in nats per token, :func:`clipped_information`: bland text and
    text off the prompt have none. F is fluency: 0 where the mean log-probability per token given the prompt is -7 nats or less
    (shuffled words), 1 from -5 on. N is the number of different words that the prompt does not hold, over 12 and at most 1:
    copied prompts, loops and broken-off text have few. R is the share of 4-grams of words that stood before.

    It measures what guidance adds, as PMI does, but it cannot be had for less. A base of this kind understands little of
    what people write: written answers get less than its own samples do. So compare models with it, not models with people.
    docs/ladder.md has the cases that it was tested on.

    Args:
        generator: the base that the samples' models were trained from; it reads their very tokens.
        batch_size: prompts whose groups are read at once.
        clip: c, the most information that one token may give or take, in nats.
    """

    axis = "quality"

    def __init__(self, generator: Generator, batch_size: int = 4, clip: float = 1.0, **settings: Any) -> None:
        super().__init__(generator, batch_size, **settings)
        self.clip = clip

    def problems(self, context: Context = Context()) -> list[Problem]:
        found = super().problems(context)
        if not self.clip > 0:
            found.append(Problem("clip", f"expected a number above 0, but got {self.clip}."))
        return found

    def score(self, samples: Samples) -> Tensor:
        texts_of("Metric `Substance`", samples.outputs)
        mask_NT = samples.rollout.mask_NKT[:, 0].to(self.device)
        given_NT, alone_NT = (
            self._reader.log_likelihoods(samples, with_prompt, self.device)[:, 0] for with_prompt in (True, False)
        )
        information_N = clipped_information(given_NT, alone_NT, mask_NT, self.clip).clamp(min=0)
        mean_N = given_NT.sum(-1) / mask_NT.sum(-1).clamp(min=1)
        fluency_N = ((mean_N - BROKEN) / (WHOLE - BROKEN)).clamp(0, 1)
        pairs = [
            (prompt, text) for prompt, group in zip(samples.prompts, samples.groups(), strict=True) for text in group
        ]
        new_N = torch.tensor([min(1.0, new_words(text, prompt) / ENOUGH) for prompt, text in pairs])
        fresh_N = torch.tensor([1 - said_before(text) for _, text in pairs])
        quality_N = information_N * fluency_N * (new_N * fresh_N).to(information_N)
        return quality_N.unflatten(0, (len(samples.prompts), samples.group)).mean(-1)
