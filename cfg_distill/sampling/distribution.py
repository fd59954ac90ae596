"""The distribution that tokens are drawn from: temperature and filters over logits, all stated by the recipe."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cfg_distill.errors import Context, Problem, problems_of_counts

COLDEST = 1e-6
"""The lowest temperature above 0: logits divided by less may overflow, which looks like a model that diverged."""
HOTTEST = 100.0
"""The highest temperature: above it a token that a model forbids by a large negative logit would be drawn."""


@dataclass
class Sampling:
    """How samples are drawn. Every parameter is stated here, so that no default of a library applies unseen.

    Args:
        samples: G, samples per prompt.
        max_new_tokens: T, the longest sample.
        temperature: divides the logits; 0 takes the likeliest token (not while training).
        top_k: keep the k likeliest tokens; 0 keeps all.
        top_p: keep the likeliest tokens whose probabilities first reach p; 1 keeps all.
        min_p: keep the tokens at least this many times as likely as the likeliest; 0 keeps all. (Nguyen et al., ICLR 2025,
            arXiv 2407.01082.)
        drop_finished: decode only the rows whose sample has not ended. It changes the speed, and of the samples the rounding.
        pack_weights: keep a second copy of the weights while sampling, in the form that multiplies few rows fastest: oneDNN's
            layout on a CPU in float32, the lower precision under mixed precision. It changes the speed, and of the samples
            the rounding.
    """

    samples: int = 4
    max_new_tokens: int = 128
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    drop_finished: bool = True
    pack_weights: bool = True

    @property
    def plain(self) -> bool:
        """Whether samples are drawn from the model's own distribution: temperature 1, no filter."""
        return self.temperature == 1 and self.top_k == 0 and self.top_p == 1 and self.min_p == 0

    def problems(self, context: Context = Context()) -> list[Problem]:
        """What is wrong with these settings. It depends on the model's longest sample, and on training or not."""
        found = problems_of_counts(samples=self.samples)
        found += self.problems_of_length(context.longest)
        if not self.temperature >= 0 or (context.training and self.temperature == 0):
            random = "a number above 0 (on-policy samples must be random)"
            wanted = random if context.training else "a number of at least 0"
            text = f"expected {wanted}, but got {self.temperature}. Use 1 for the model's own."
            found.append(Problem("temperature", text))
        elif 0 < self.temperature < COLDEST:
            text = f"expected at least {COLDEST:g}, since logits overflow below, but got {self.temperature:g}."
            greedy = "" if context.training else " Use 0 for the likeliest token."
            found.append(Problem("temperature", text + greedy))
        elif self.temperature > HOTTEST:
            text = f"expected at most {HOTTEST:g}, which is noise, but got {self.temperature:g}."
            found.append(Problem("temperature", f"{text} Use 1 for the model's own."))
        if self.top_k < 0:
            found.append(Problem("top_k", f"expected 0 (keep all) or more, but got {self.top_k}."))
        if not 0 < self.top_p <= 1:
            found.append(Problem("top_p", f"expected a number in (0, 1], but got {self.top_p}."))
        if not 0 <= self.min_p <= 1:
            found.append(Problem("min_p", f"expected a number from 0 (keep all) to 1, but got {self.min_p}."))
        return found

    def problems_of_length(self, longest: int | None) -> list[Problem]:
        """What is wrong with the length, whatever the prompts are: at most one problem."""
        if found := problems_of_counts(max_new_tokens=self.max_new_tokens):
            return found
        if longest is not None and self.max_new_tokens > longest:
            text = (
                f"expected at most {longest}, since the model has no positions for a longer sample, but got"
                f" {self.max_new_tokens}. Lower it."
            )
            return [Problem("max_new_tokens", text)]
        return []

    def log_probs(self, logits: Tensor) -> Tensor:
        """Log-probabilities of the sampling distribution, float32: ``[..., V]`` to ``[..., V]``; -inf where filtered."""
        return self._filtered(logits).log_softmax(-1)

    def probs(self, logits: Tensor) -> Tensor:
        """Probabilities of the sampling distribution, float32: ``[..., V]`` to ``[..., V]``."""
        return self._filtered(logits).softmax(-1)

    def _filtered(self, logits: Tensor) -> Tensor:
        logits = logits.float()
        if self.temperature == 0:
            likeliest = torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).bool()
            # Its own logit, and not 0: NaN must be seen, as at any temperature.
            return logits.masked_fill(~likeliest, -torch.inf)
        if self.temperature != 1:
            logits = logits / self.temperature
        if self.top_k:
            smallest = logits.topk(min(self.top_k, logits.shape[-1])).values[..., -1:]
            logits = logits.masked_fill(logits < smallest, -torch.inf)
        if self.top_p < 1:
            ordered, order = logits.sort(descending=True)
            kept = in_nucleus(ordered.softmax(-1), self.top_p)
            logits = logits.masked_fill(~kept.gather(-1, order.argsort(-1)), -torch.inf)
        if self.min_p:
            # p >= min_p * p_max, as logits. Earlier filters scale all probabilities alike, so the order does not matter.
            least = logits.max(-1, keepdim=True).values + math.log(self.min_p)
            logits = logits.masked_fill(logits < least, -torch.inf)
        return logits


def in_nucleus(ordered_probs: Tensor, p: float) -> Tensor:
    """Which tokens, the likeliest first, are among those that first reach probability p: ``[..., V]``."""
    # A token stays while the mass before it is below p: the likeliest one always does.
    return ordered_probs.cumsum(-1) - ordered_probs < p


BLOCK = 256
"""Neighbouring tokens whose mass is summed before a draw looks among them: about the root of a large vocabulary."""


def draw_tokens(probs: Tensor, uniform: Tensor) -> Tensor:
    """One token per row by inverse transform sampling.

    The draw has two levels. The uniform number chooses a block of tokens; the rest of it chooses a token of the block::

        block mass   |----0.2----|------0.5------|---0.3---|       uniform number 0.4: block 1, and 0.4 of the way into it
        within it                |--.1--|-.2-|-.2-|                0.4 of 0.5 is 0.2: its second token

    The cumulative sums in float64 then run over hundreds of numbers per row, not over the vocabulary. On a large vocabulary
    this is tens of times faster than ``torch.multinomial``, and the distribution is the same.

    Args:
        probs: probabilities, ``[..., V]``.
        uniform: a float64 number in [0, 1) for each draw, ``[...]``.

    Returns:
        Indices of tokens, ``[...]``; never one of probability zero.
    """
    blocks = torch.nn.functional.pad(probs, (0, -probs.shape[-1] % BLOCK)).unflatten(-1, (-1, BLOCK))
    block, rest = _invert(blocks.sum(-1), uniform.unsqueeze(-1))
    inner, _ = _invert(blocks.take_along_dim(block.unsqueeze(-1), -2).squeeze(-2), rest)
    # With NaN probabilities the result is arbitrary; clamp it, since an out-of-range index would abort a CUDA process.
    return (block * BLOCK + inner).squeeze(-1).clamp(max=probs.shape[-1] - 1)


def _invert(mass: Tensor, fraction: Tensor) -> tuple[Tensor, Tensor]:
    """The index at which the cumulative mass passes a fraction of the whole mass, and the fraction of that index's own mass."""
    cumulative = mass.double().cumsum(-1)
    whole = cumulative[..., -1:]
    target = torch.minimum(fraction * whole, torch.nextafter(whole, torch.zeros_like(whole)))
    # right=True takes the first index whose cumulative mass EXCEEDS the target: never one without mass.
    index = torch.searchsorted(cumulative, target, right=True)
    index = index.clamp(max=mass.shape[-1] - 1)  # no index passes NaN
    own = mass.gather(-1, index).double()
    return index, ((target - cumulative.gather(-1, index) + own) / own).clamp(0, 1)
