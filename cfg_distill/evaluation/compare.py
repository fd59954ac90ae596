"""Paired comparisons of systems on the same prompts: a hard prompt weighs on both sides alike.

The intervals carry the noise of prompts and sampling seeds. They do not carry the noise of training, which takes students
of several training seeds. Shapes: M systems, P prompts, S sampling seeds, R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cfg_distill.evaluation.front import Interval, bootstrap_interval, mixture_diversity
from cfg_distill.evaluation.system import System

RESAMPLES = 2000


def difference(left: System, right: System, metric: str) -> Interval:
    """How far ``left`` is above ``right`` in one metric: the mean difference and its 95 % interval.

    Raises:
        ValueError: the systems were evaluated on different prompts.
    """
    left_PS, right_PS = paired([left, right], metric)
    return bootstrap_interval(left_PS - right_PS)


def paired(systems: Sequence[System], metric: str) -> np.ndarray:
    """The values of several systems on their common prompts, ``[M, P, S]``. A value that is NaN in one system is NaN in all.

    Raises:
        ValueError: the systems were evaluated on different prompts.
    """
    if any(system.prompts != systems[0].prompts for system in systems):
        raise ValueError(f"Expected systems on the same prompts but got {[system.name for system in systems]}.")
    values_MPS = np.stack([system.cells(metric) for system in systems])
    values_MPS[:, np.isnan(values_MPS).any(axis=0)] = np.nan
    return values_MPS


def height_above(
    system: System, front: Sequence[System], quality: str, diversity: str, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    r"""How far a system lies above the front of others, along the diversity axis, with a 95 % interval.

    A mixture of systems answers a share of the prompts by one system and the rest by another. The front holds every point
    that a mixture reaches, so no stronger front can be made of these systems:

    .. math:: h = d - \max\Big\{\sum_m a_m d_m : a_m \ge 0, \sum_m a_m = 1, \sum_m a_m q_m \ge q\Big\}

    with q and d the quality and diversity of the system, q_m and d_m of the systems of the front. The maximum counts as 0
    where no mixture has the quality q. Prompts, and the seeds within each prompt, are redrawn jointly for all systems and
    both metrics.

    Args:
        system: the system whose height is asked for.
        front: the systems below it.
        quality: the quality metric.
        diversity: the diversity metric.
        resamples: number of bootstrap resamples.
        seed: of the resamples; the same seed gives the same interval.

    Returns:
        The height on all prompts, and its interval.

    Raises:
        ValueError: the systems were evaluated on different prompts.
    """
    quality_MPS, diversity_MPS = (paired([system, *front], metric) for metric in (quality, diversity))
    random = np.random.default_rng(seed)
    _, prompts, seeds = quality_MPS.shape

    def height(prompt: np.ndarray, seed: np.ndarray) -> float:
        quality_M, diversity_M = (np.nanmean(v[:, prompt, seed], axis=(1, 2)) for v in (quality_MPS, diversity_MPS))
        return float(diversity_M[0] - mixture_diversity(quality_M[0], quality_M[1:], diversity_M[1:]))

    everything = np.arange(prompts)[:, None], np.arange(seeds)[None]
    heights_R = [
        height(random.integers(prompts, size=(prompts, 1)), random.integers(seeds, size=(prompts, seeds)))
        for _ in range(resamples)
    ]
    low, high = np.quantile(heights_R, [0.025, 0.975])
    return Interval(height(*everything), float(low), float(high))
