"""Seconds per sample at some numbers of rows: what guidance costs, and what a student saves, on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from cfg_distill.evaluation.measure import now
from cfg_distill.generators import Guidance, Predictor, PromptLike
from cfg_distill.sampling import Sampling, in_step, rollout

LONGEST = 64
"""Tokens that are timed: a longer sample takes in proportion, and a study must not wait for it."""
REPEATS = 3


def seconds_per_sample(
    predictor: Predictor,
    prompts: Sequence[PromptLike],
    sampling: Sampling,
    guidance: Guidance | None,
    rows: Sequence[int],
) -> list[dict[str, Any]]:
    """The time of samples of :data:`LONGEST` tokens, or of ``sampling.max_new_tokens`` when these are fewer.

    A sample that ends early would make a model look fast. So all are decoded to their full length, as if there were no end
    token. Each time is the shortest of three, after a run that warms up.

    Args:
        predictor: the model, loaded, or another predictor over loaded models.
        prompts: some prompts; they are repeated when there are fewer than rows.
        sampling: temperature and filters.
        guidance: sample under guidance; None for no guidance.
        rows: samples at once.

    Returns:
        For each number of rows: ``rows``, ``tokens`` of a sample, ``seconds`` per sample.
    """
    tokens = min(sampling.max_new_tokens, LONGEST)
    found = []
    for number in rows:
        some = [prompts[place % len(prompts)] for place in range(number)]
        rollout(predictor, some, replace(sampling, samples=1, max_new_tokens=min(tokens, 4)), guidance)
        whole = replace(sampling, samples=1, max_new_tokens=tokens, drop_finished=False)
        seconds = min(_seconds(predictor, some, whole, guidance) for _ in range(REPEATS))
        found.append({"rows": number, "tokens": tokens, "seconds": seconds / number})
    return found


def _seconds(
    predictor: Predictor, prompts: Sequence[PromptLike], sampling: Sampling, guidance: Guidance | None
) -> float:
    began = now(predictor.parts[0].device)
    with in_step(lambda done: False):
        rollout(predictor, prompts, sampling, guidance)
    return now(predictor.parts[0].device) - began
