"""Fronts of quality and diversity, their hypervolume, and intervals of their points. P prompts, S seeds, M points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cfg_distill.evaluation.headline import Headline

KINDS = {"baselines": ("base", "guidance"), "students": ("student", "merge")}
"""The kinds of systems of each hypervolume. A ``model`` of ``cfg-distill evaluate`` can be either: it counts among all."""


class Interval(NamedTuple):
    """A mean and the bounds of its confidence interval."""

    mean: float
    low: float
    high: float


def pareto(points: ArrayLike) -> NDArray[np.bool_]:
    """Which points no other point beats: ``[M, 2]`` to ``[M]``. In both coordinates larger is better.

    One point beats another if it is at least as good in both coordinates and better in one. So equal points stay together.

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
    """The area of the union of the boxes between a reference corner and each point. In both coordinates larger is better.

    Only points that are better than the reference in both coordinates count. So choose one reference, below all systems
    that are compared. Source: Zitzler and Thiele, 1998.

    Args:
        points: ``[M, 2]``.
        reference: the corner, two numbers in the order of the coordinates.

    Example:
        >>> hypervolume([[1.0, 3.0], [2.0, 2.0], [1.0, 2.0]], reference=(0.0, 0.0))
        5.0
    """
    shifted_M2 = np.clip(_as_points(points) - np.asarray(reference, dtype=float), 0, None)
    # Points from right to left. Each adds the strip from its height down to the largest height so far:
    #     y |  +--+             strip of the third point: x3 (y3 - y2)
    #       |  +--+--+          strip of the second:      x2 (y2 - y1)
    #       |  +--+--+--+       strip of the first:       x1 y1
    #       +--------------- x
    area, height = 0.0, 0.0
    for x, y in sorted(shifted_M2.tolist(), reverse=True):
        area += x * max(0.0, y - height)
        height = max(height, y)
    return area


def hypervolumes(points: Sequence[Mapping[str, Any]], headline: Headline | None) -> list[dict[str, Any]]:
    """The entry ``hypervolume`` of front.json: for each pair of headline metrics, how much each kind of systems reaches.

    The reference is 0 in a metric whose means are all at least 0, so that studies compare; else it is the lowest mean.

    Args:
        points: systems as front.json lists them; a pair leaves out the systems that lack one of its metrics.
        headline: the metrics; None, where an axis has no metric, gives an empty list.

    Returns:
        For each pair: ``quality`` and ``diversity`` (the metrics), ``reference`` (the corner, by metric), the hypervolume of
        the ``baselines``, of the ``students`` (with their merges) and of ``all`` systems, None where there are none; and
        ``front``, the names of the systems that no other beats.
    """
    if headline is None:
        return []
    entries = []
    for diversity in filter(None, (headline.diversity, headline.independent)):
        metrics = {"quality": headline.quality, "diversity": diversity}
        drawn = [p for p in points if all(metric in p[axis] for axis, metric in metrics.items())]
        means_M2 = np.array([[p[axis][metric]["mean"] for axis, metric in metrics.items()] for p in drawn]).reshape(
            -1, 2
        )
        reference = np.minimum(means_M2.min(axis=0, initial=0.0), 0.0).tolist()
        members = {kind: np.array([p["kind"] in kinds for p in drawn], dtype=bool) for kind, kinds in KINDS.items()}
        members["all"] = np.ones(len(drawn), dtype=bool)
        entries.append(
            metrics
            | {"reference": dict(zip(metrics.values(), reference, strict=True))}
            | {kind: hypervolume(means_M2[of_M], reference) if of_M.any() else None for kind, of_M in members.items()}
            | {"front": [p["name"] for p, is_best in zip(drawn, pareto(means_M2), strict=True) if is_best]}
        )
    return entries


def mixture_diversity(at_least: float, quality_M: np.ndarray, diversity_M: np.ndarray) -> float:
    r"""The largest diversity of a mixture of points whose quality is ``at_least``; 0 where no mixture has it.

    .. math:: \max \sum_m a_m d_m \quad \text{where} \quad a_m \ge 0, \; \sum_m a_m = 1, \; \sum_m a_m q_m \ge q

    This is a linear programme with one constraint beside the sum, so its optimum mixes at most two points: one whose
    quality is enough, and one whose quality is not.

    Args:
        at_least: q.
        quality_M: q_m.
        diversity_M: d_m.

    Example:
        >>> mixture_diversity(0.5, np.array([0.0, 1.0]), np.array([0.8, 0.2]))
        0.5
    """
    enough = quality_M >= at_least
    if not enough.any():
        return 0.0
    best = diversity_M[enough].max()
    for good_quality, good_diversity in zip(quality_M[enough], diversity_M[enough], strict=True):
        for quality, its_diversity in zip(quality_M[~enough], diversity_M[~enough], strict=True):
            share = (at_least - quality) / (good_quality - quality)
            best = max(best, share * good_diversity + (1 - share) * its_diversity)
    return float(best)


def bootstrap_interval(values: ArrayLike, level: float = 0.95, resamples: int = 2000, seed: int = 0) -> Interval:
    """Mean over prompts and seeds with a percentile bootstrap interval: prompts are redrawn, and within each its seeds.

    Prompts are the clusters: samples of one prompt are no independent evidence. With few seeds, redrawing them makes the
    interval a little too wide, never too narrow. To compare two systems on the same prompts, give the DIFFERENCE of their
    values: the effect of a prompt on both cancels. Source: Davison and Hinkley, 1997, section
    3.8.

    Args:
        values: ``[P]`` or ``[P, S]``; NaN where a metric did not apply, left out of every mean.
        level: of the interval.
        resamples: number of bootstrap resamples.
        seed: of the resamples; the same values and seed give the same interval.

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
    # As many resamples at once as fit some megabytes.
    chunk = max(1, 500_000 // values_PS.size)
    for start in range(0, resamples, chunk):
        draws = min(chunk, resamples - start)
        rows_RP1 = random.integers(prompts, size=(draws, prompts, 1))
        drawn_RPS = values_PS[rows_RP1, random.integers(seeds, size=(draws, prompts, seeds))]
        counts_R = np.isfinite(drawn_RPS).sum((1, 2))
        # A resample of nothing but NaN has no mean.
        means += (np.nansum(drawn_RPS, (1, 2))[counts_R > 0] / counts_R[counts_R > 0]).tolist()
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(np.nanmean(values_PS)), float(low), float(high))


def _as_points(points: ArrayLike) -> NDArray[np.float64]:
    points_M2 = np.asarray(points, dtype=float)
    if points_M2.ndim != 2 or points_M2.shape[1] != 2:
        raise ValueError(f"Expected argument `points` of shape [M, 2] but got {points_M2.shape}.")
    return points_M2
