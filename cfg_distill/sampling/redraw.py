r"""Degenerate samples drawn again. Shapes: B prompts, G samples per prompt, K codebooks, T positions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from cfg_distill.sampling.rollout import Rollout
from cfg_distill.sampling.samples import Samples


def redrawn(
    samples: Samples,
    degenerate: Callable[[Samples], Tensor],
    draw: Callable[[Sequence[int], int], Samples],
    attempts: int,
    pad_token: int,
) -> tuple[Samples, Tensor, int]:
    r"""Replace degenerate samples by new draws of their prompts, a few times.

    A sample takes the draw of its own place in the new group. So the samples of a group stay independent, each with the
    distribution

    .. math:: q(y) = p(y)\, \frac{1 - d^{n+1}}{1 - d} \ \text{ where } c(y) = 1, \qquad q(y) = p(y)\, d^n
        \ \text{ where } c(y) = 0

    with p the student's distribution, c(y) = 0 for a degenerate sample, d the probability of one under p, and n the attempts.

    Args:
        samples: B groups.
        degenerate: which samples of such groups are degenerate, ``[B, G]``.
        draw: new groups of the prompts with some numbers in the batch, for the number of the attempt, from 1.
        attempts: n.
        pad_token: what stands behind the end of a sample.

    Returns:
        The samples; which of them are still degenerate, ``[B, G]``; the number of samples that were replaced by a sound one.
    """
    degenerate_BG = degenerate(samples).cpu()
    num_before = int(degenerate_BG.sum())
    for attempt in range(1, attempts + 1):
        (of_prompt_P,) = degenerate_BG.any(1).nonzero(as_tuple=True)
        if not len(of_prompt_P):
            break
        again = draw(of_prompt_P.tolist(), attempt)
        taken_BG = torch.zeros_like(degenerate_BG)
        taken_BG[of_prompt_P] = degenerate_BG[of_prompt_P] & ~degenerate(again).cpu()
        samples = _replaced(samples, again, of_prompt_P, taken_BG, pad_token)
        degenerate_BG = degenerate_BG & ~taken_BG
    return samples, degenerate_BG, num_before - int(degenerate_BG.sum())


def _replaced(samples: Samples, again: Samples, of_prompt_P: Tensor, taken_BG: Tensor, pad_token: int) -> Samples:
    """The samples, with those of ``taken_BG`` from the new groups of the prompts ``of_prompt_P``."""
    length = max(each.rollout.tokens_BGKT.shape[-1] for each in (samples, again))
    old, new = (each.rollout.padded(length, pad_token) for each in (samples, again))
    where_BG11 = taken_BG.to(old.tokens_BGKT.device)[..., None, None]

    def mixed(old_BGKT: Tensor, new_PGKT: Tensor) -> Tensor:
        new_BGKT = old_BGKT.clone()
        new_BGKT[of_prompt_P.to(old_BGKT.device)] = new_PGKT
        return torch.where(where_BG11, new_BGKT, old_BGKT)

    outputs, start = list(samples.outputs), list(samples.start)
    for place, b in enumerate(of_prompt_P.tolist()):
        for g in range(samples.group):
            if taken_BG[b, g]:
                n, new_n = b * samples.group + g, place * samples.group + g
                outputs[n] = again.outputs[new_n]
                start[n : n + 1] = again.start[new_n : new_n + 1]  # nothing without openings
    drawn = Rollout(
        mixed(old.tokens_BGKT, new.tokens_BGKT),
        mixed(old.mask_BGKT, new.mask_BGKT),
        mixed(old.log_probs_BGKT, new.log_probs_BGKT),
        old.labels_BG,  # which are the new ones', too: see Seeds.group_words
        max(old.opening, new.opening),
        old.steps_behind,
    )
    return replace(samples, outputs=outputs, rollout=drawn, start=start)
