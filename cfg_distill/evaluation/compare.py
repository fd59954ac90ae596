"""Paired comparisons of systems on the same prompts: a hard prompt weighs on both sides alike.

Intervals hold the noise of prompts, of sampling, and of training where systems have several training seeds
(:mod:`cfg_distill.evaluation.intervals`). With one training seed they say nothing about another training run.
Shapes: M systems, R training seeds, P prompts, S sampling seeds, B resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cfg_distill.evaluation.front import hypervolumes_of, mixture_diversity
from cfg_distill.evaluation.intervals import RESAMPLES, Floats, Interval, Resampler
from cfg_distill.evaluation.system import System

LEVELS = 17
"""Levels of quality at which the heights of a curve are averaged."""


class Height(NamedTuple):
    """How far a system lies above a front.

    Attributes:
        mean: the height on all prompts.
        low: the lower end of its interval.
        high: the upper end.
        beyond: whether no system of the front has this quality. The height is then the distance from the diversity of the
            front's best system.
        beyond_share: the share of resamples in which that is so.
    """

    mean: float
    low: float
    high: float
    beyond: bool
    beyond_share: float


def difference(left: System, right: System, metric: str) -> Interval:
    """How far ``left`` is above ``right`` in one metric: the mean difference and its 95 % interval.

    Raises:
        ValueError: the systems were evaluated on different prompts, or have a value on no common one.
    """
    return between(resampler([left, right], [metric]))


def between(means: Resampler) -> Interval:
    """How far the first of two systems is above the second, from their means."""
    return means.interval(lambda means_MB: means_MB[0] - means_MB[1])


def missing(systems: Sequence[System], metrics: Sequence[str]) -> dict[str, int]:
    """How many prompts a comparison leaves out in part or whole, since a metric is NaN there in one of the systems.

    Returns:
        Metric -> number of prompts, of the metrics that leave out any.
    """
    found = {}
    for metric in metrics:
        lost_P = np.any([np.isnan(system.cells(metric)).any(axis=1) for system in systems], axis=0)
        if lost_P.any():
            found[metric] = int(lost_P.sum())
    return found


def resampler(
    systems: Sequence[System], metrics: Sequence[str], resamples: int = RESAMPLES, seed: int = 0
) -> Resampler:
    """The means of several systems under several metrics, on all and on redrawn prompts.

    Raises:
        ValueError: the systems were evaluated on different prompts, or have a value on no common one.
    """
    if any(system.prompts != systems[0].prompts for system in systems):
        raise ValueError(f"Expected systems on the same prompts but got {[system.name for system in systems]}.")
    values = [[system.runs(metric) for system in systems] for metric in metrics]
    return Resampler(values, [system.chain for system in systems], resamples, seed)


def height_above(
    system: System, front: Sequence[System], quality: str, diversity: str, resamples: int = RESAMPLES, seed: int = 0
) -> Height:
    r"""How far a system lies above the front of others, along the diversity axis, with a 95 % interval.

    A mixture of systems answers a share of the prompts by one system and the rest by another. The front holds every point
    that a mixture reaches, so no stronger front can be made of these systems:

    .. math:: h = d - \max\Big\{\sum_m a_m d_m : a_m \ge 0, \sum_m a_m = 1, \sum_m a_m q_m \ge q\Big\}

    with q and d the quality and diversity of the system, q_m and d_m of the systems of the front. Where no mixture has the
    quality q, the system is compared with the front's system of best quality, in resamples too: a system must not be called
    above a front for being beyond its end.

    Args:
        system: the system whose height is asked for.
        front: the systems below it.
        quality: the quality metric.
        diversity: the diversity metric.
        resamples: number of bootstrap resamples.
        seed: of the resamples; the same seed gives the same interval.

    Returns:
        The height on all prompts, its interval, and how often no system of the front had the quality.

    Raises:
        ValueError: the systems were evaluated on different prompts, or have a value on no common one.
    """
    return height_of(0, resampler([system, *front], [quality, diversity], resamples, seed), slice(1, None))


def height_of(place: int, means: Resampler, front: slice | Sequence[int]) -> Height:
    """:func:`height_above` of one of the systems of a resampler.

    Args:
        place: of the system.
        means: of quality and diversity.
        front: the places of the front's systems.
    """

    def height(quality_MB: Floats, diversity_MB: Floats) -> Floats:
        below: Floats = mixture_diversity(quality_MB[place], quality_MB[front], diversity_MB[front])
        return diversity_MB[place] - below

    beyond = [quality_MB[place] > quality_MB[front].max(axis=0) for quality_MB in (means.all[0], means.redrawn[0])]
    return Height(*means.interval(height, corrected=True), bool(beyond[0][0]), float(beyond[1].mean()))


def mean_height(means: Resampler, curve: Sequence[int], front: Sequence[int]) -> Interval:
    r"""How far the front of a curve of systems lies above the front of others, on average over the curve's qualities.

    .. math:: \frac{1}{n} \sum_{i=1}^n F_{\text{curve}}(q_i) - F_{\text{front}}(q_i)

    with F the largest diversity of a mixture whose quality is at least q, and the q_i evenly spaced from the lowest quality
    of the curve to its highest. These levels stay as they are in resamples.

    Args:
        means: of quality and diversity.
        curve: the places of the systems of the curve: a merge at each knob.
        front: the places of the front's systems.
    """
    ends = means.all[0][list(curve), 0]
    levels = np.linspace(ends.min(), ends.max(), LEVELS)

    def height(quality_MB: Floats, diversity_MB: Floats) -> Floats:
        above, below = (
            np.mean([mixture_diversity(q, quality_MB[of], diversity_MB[of]) for q in levels], axis=0)
            for of in (list(curve), list(front))
        )
        difference_B: Floats = above - below
        return difference_B

    return means.interval(height, corrected=True)


def hypervolume_difference(
    means: Resampler, left: Sequence[int], right: Sequence[int], corner: Sequence[float]
) -> Interval:
    """The hypervolume of some systems less that of others: :func:`cfg_distill.evaluation.front.hypervolume`.

    Args:
        means: of quality and diversity.
        left: the places of the first systems.
        right: the places of the second.
        corner: the reference, in quality and diversity.
    """

    def volume(quality_MB: Floats, diversity_MB: Floats) -> Floats:
        first, second = (hypervolumes_of(quality_MB[of], diversity_MB[of], corner) for of in (list(left), list(right)))
        between: Floats = first - second
        return between

    return means.interval(volume, corrected=True)


def dominated_share(means: Resampler, curve: Sequence[int], others: Sequence[int]) -> Interval:
    """The share of systems that a system of a curve beats in both metrics: at least as good in each, better in one.

    Args:
        means: of quality and diversity.
        curve: the places of the systems of the curve.
        others: the places of the systems that may be dominated.
    """

    def share(quality_MB: Floats, diversity_MB: Floats) -> Floats:
        # [curve, others, B]
        quality, diversity = (
            values[list(curve), None] - values[None, list(others)] for values in (quality_MB, diversity_MB)
        )
        beaten = (quality >= 0) & (diversity >= 0) & ((quality > 0) | (diversity > 0))
        part: Floats = beaten.any(axis=0).mean(axis=0)
        return part

    mean, low, high = means.interval(share)
    # The noise of few training seeds is taken for normal, and so may reach beyond what a share can be.
    return Interval(mean, max(low, 0.0), min(high, 1.0))
