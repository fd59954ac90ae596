"""Fronts of quality and diversity, and intervals of their points. P prompts, S seeds, R resamples, M points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray


class Interval(NamedTuple):
    """A mean and the bounds of its confidence interval."""

    mean: float
    low: float
    high: float


def pareto(points: ArrayLike) -> NDArray[np.bool_]:
    """Which points no other point beats: ``[M, 2]`` to ``[M]``. Both coordinates are better when larger.

    A point is beaten by one that is at least as good in both and better in one; equal points stay together.

    Example:
        >>> pareto([[1.0, 3.0], [2.0, 2.0], [1.0, 2.0]]).tolist()
        [True, True, False]
    """
    points_M2 = _as_points(points)
    # [M, M]: column j beats row i.
    no_worse_MM = np.all(points_M2[None] >= points_M2[:, None], axis=-1)
    better_MM = np.any(points_M2[None] > points_M2[:, None], axis=-1)
    beaten_M: NDArray[np.bool_] = np.any(no_worse_MM & better_MM, axis=1)
    return ~beaten_M


def hypervolume(points: ArrayLike, reference: Sequence[float]) -> float:
    """The area between the reference and the front of the points; both coordinates are better when larger.

    Only points better than the reference in both coordinates count: choose it once, below all systems that are
    compared.
    Source: Zitzler and Thiele, 1998.

    Args:
        points: ``[M, 2]``.
        reference: the corner, two numbers.

    Example:
        >>> hypervolume([[1.0, 3.0], [2.0, 2.0], [1.0, 2.0]], reference=(0.0, 0.0))
        5.0
    """
    shifted_M2 = np.clip(_as_points(points) - np.asarray(reference, dtype=float), 0, None)
    # From the right, each point adds the strip above the highest one so far.
    area, height = 0.0, 0.0
    for x, y in sorted(shifted_M2.tolist(), reverse=True):
        area += x * max(0.0, y - height)
        height = max(height, y)
    return area


def bootstrap_interval(values: ArrayLike, level: float = 0.95, resamples: int = 2000, seed: int = 0) -> Interval:
    """Mean over prompts and seeds with a percentile bootstrap interval: prompts are redrawn, and within each its seeds.

    Prompts are the clusters: the samples of one prompt are no independent evidence. Drawing the seeds too makes the
    interval a little wide rather than narrow when there are few of them. To compare two systems on the same prompts
    give the DIFFERENCE of their values: what the prompts do to both cancels. Source: Davison and Hinkley, 1997, section
    3.8.

    Args:
        values: ``[P]`` or ``[P, S]``; NaN where a metric did not apply, left out of every mean.
        level: of the interval.
        resamples: bootstrap draws.
        seed: of the draws; the same values and seed give the same interval.

    Raises:
        ValueError: no value at all, or not one or two dimensions.

    Example:
        >>> bootstrap_interval([0.0, 1.0, 2.0, 3.0], resamples=200)
        Interval(mean=1.5, low=0.5, high=2.5)
    """
    values_PS = np.asarray(values, dtype=float)
    if values_PS.ndim == 1:
        values_PS = values_PS[:, None]
    if values_PS.ndim != 2 or not np.isfinite(values_PS).any():
        raise ValueError(f"Expected argument `values` of shape [P] or [P, S] with a value but got {values_PS.shape}.")
    prompts, seeds = values_PS.shape
    random = np.random.default_rng(seed)
    means: list[float] = []
    # Many draws at once, as many as fit some megabytes.
    chunk = max(1, 500_000 // values_PS.size)
    for start in range(0, resamples, chunk):
        draws = min(chunk, resamples - start)
        rows_RP1 = random.integers(prompts, size=(draws, prompts, 1))
        drawn_RPS = values_PS[rows_RP1, random.integers(seeds, size=(draws, prompts, seeds))]
        counts_R = np.isfinite(drawn_RPS).sum((1, 2))
        # A draw of nothing but NaN says nothing.
        means += (np.nansum(drawn_RPS, (1, 2))[counts_R > 0] / counts_R[counts_R > 0]).tolist()
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(np.nanmean(values_PS)), float(low), float(high))


def _as_points(points: ArrayLike) -> NDArray[np.float64]:
    points_M2 = np.asarray(points, dtype=float)
    if points_M2.ndim != 2 or points_M2.shape[1] != 2:
        raise ValueError(f"Expected argument `points` of shape [M, 2] but got {points_M2.shape}.")
    return points_M2
