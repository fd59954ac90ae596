"""Fronts of quality and diversity, their hypervolume, and intervals of their points. P prompts, S seeds, M points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cfg_distill.evaluation.headline import Headline
from cfg_distill.evaluation.intervals import LEVEL, RESAMPLES, Interval, Resampler

KINDS = {"baselines": ("base", "guidance"), "students": ("student", "merge")}
"""The kinds of systems of each hypervolume. A ``model`` of ``cfg-distill evaluate`` can be either: it counts among all."""


ROWS = ("real", "degenerate")
"""The kinds of the rows of a ladder, which no system drew: they show the range of a metric, and compete with nothing."""


def plain_filters(points: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The filters of a point that counts as unfiltered: those that all samples share, or none.

    Args:
        points: entries of front.json.
    """
    found: dict[str, Any] = {}
    for key, none in (("top_k", 0), ("top_p", 1.0), ("min_p", 0.0)):
        values = {none if p.get(key) is None else p[key] for p in points if p["kind"] not in ROWS}
        found[key] = values.pop() if len(values) == 1 else none
    return found


def is_filtered(point: Mapping[str, Any], plain: Mapping[str, Any]) -> bool:
    """Whether a point has another filter than the plain ones, and so lies on no sweep."""
    return any(point.get(key) not in (value, None) for key, value in plain.items())


def swept(points: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The baselines that lie on sweeps: samples of the base, told apart by temperature and guidance alone.

    A filter, a template of prompts, a start model or another model (one that was fine-tuned) is on no such line.

    Args:
        points: entries of front.json; the model of the first baseline is the base.
    """
    baselines = [p for p in points if p["kind"] in KINDS["baselines"]]
    plain = plain_filters(points) | {"prompt": None, "anneal": None, "schedule": None}
    return [p for p in baselines if p.get("model") == baselines[0].get("model") and not is_filtered(p, plain)]


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
    points_M2 = _as_points(points)
    return float(hypervolumes_of(points_M2[:, :1], points_M2[:, 1:], reference)[0])


def hypervolumes(points: Sequence[Mapping[str, Any]], headline: Headline | None) -> list[dict[str, Any]]:
    """The entry ``hypervolume`` of front.json: for each pair of headline metrics, how much each kind of systems reaches.

    The reference is 0 in a metric whose means are all at least 0, so that studies compare; else it is the lowest mean.

    Args:
        points: systems as front.json lists them; a pair leaves out the systems that lack one of its metrics. Rows of a ladder
            (:data:`ROWS`) are left out.
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
        drawn = [
            p for p in points if p["kind"] not in ROWS and all(metric in p[axis] for axis, metric in metrics.items())
        ]
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


def mixture_diversity(at_least: ArrayLike, quality: ArrayLike, diversity: ArrayLike) -> Any:
    r"""The largest diversity of a mixture of points whose quality is ``at_least``: their front, continued flat.

    .. math:: \max \sum_m a_m d_m \quad \text{where} \quad a_m \ge 0, \; \sum_m a_m = 1, \; \sum_m a_m q_m \ge q

    This is a linear programme with one constraint beside the sum, so its optimum mixes at most two points: one whose
    quality is enough, and one whose quality is not. Where no mixture has the quality, the front goes on flat from its end of
    best quality: the result is the diversity of the best point. So a comparison beyond the front asks for at least the
    diversity of the best rival, and the front has no jump at its end.

    Args:
        at_least: q, a number or one number per resample, ``[B]``.
        quality: q_m, ``[M]`` or ``[M, B]``.
        diversity: d_m, of the same shape.

    Returns:
        A number, or one per resample.

    Example:
        >>> mixture_diversity(0.5, [0.0, 1.0], [0.8, 0.2])
        0.5
        >>> mixture_diversity(1.5, [0.0, 1.0], [0.8, 0.2])
        0.2
    """
    wanted = np.asarray(at_least, dtype=float)
    quality_MB, diversity_MB = (np.asarray(values, dtype=float) for values in (quality, diversity))
    best_quality = quality_MB.max(axis=0)
    wanted = np.minimum(wanted, best_quality)
    enough_MB = quality_MB >= wanted
    best = np.where(enough_MB, diversity_MB, -np.inf).max(axis=0)
    for good_quality, good_diversity, enough in zip(quality_MB, diversity_MB, enough_MB, strict=True):
        # The other point has less than the wanted quality, and this one at least as much: the divisor is above 0.
        mixes = enough & ~enough_MB
        share_MB = (wanted - quality_MB) / np.where(mixes, good_quality - quality_MB, 1.0)
        mixed_MB = np.where(mixes, share_MB * good_diversity + (1 - share_MB) * diversity_MB, -np.inf)
        best = np.maximum(best, mixed_MB.max(axis=0))
    return float(best) if np.ndim(best) == 0 else best


def hypervolumes_of(quality_MB: NDArray[np.float64], diversity_MB: NDArray[np.float64], corner: Sequence[float]) -> Any:
    """:func:`hypervolume` of every resample at once: ``[M, B]`` twice to ``[B]``.

    Args:
        quality_MB: the first coordinate.
        diversity_MB: the second coordinate.
        corner: the reference.
    """
    # Points from right to left. Each adds the strip from its height down to the largest height so far:
    #     y |  +--+             strip of the third point: x3 (y3 - y2)
    #       |  +--+--+          strip of the second:      x2 (y2 - y1)
    #       |  +--+--+--+       strip of the first:       x1 y1
    #       +--------------- x
    # A point with no width, or below the height so far, adds nothing.
    order_MB = np.argsort(-quality_MB, axis=0, kind="stable")
    width_MB = np.clip(np.take_along_axis(quality_MB, order_MB, 0) - corner[0], 0, None)
    height_MB = np.maximum.accumulate(
        np.clip(np.take_along_axis(diversity_MB, order_MB, 0) - corner[1], 0, None), axis=0
    )
    return (width_MB * np.diff(height_MB, axis=0, prepend=0.0)).sum(axis=0)


def usual_temperature(points: Sequence[Mapping[str, Any]]) -> float:
    """The temperature of most points; 1 for no points."""
    temperatures = [p["temperature"] for p in points]
    return float(max(temperatures, key=temperatures.count, default=1.0))


def bootstrap_interval(values: ArrayLike, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Mean over prompts, sampling seeds and training seeds, with its interval: see :mod:`cfg_distill.evaluation.intervals`.

    Prompts are the clusters: samples of one prompt are no independent evidence. To compare two systems on the same prompts,
    give the DIFFERENCE of their values: the effect of a prompt on both cancels.

    Args:
        values: ``[P]``, ``[P, S]`` or ``[R, P, S]``: R training seeds, P prompts, S sampling seeds; NaN where a metric did not
            apply, left out of every mean.
        level: of the interval.
        resamples: number of bootstrap resamples.
        seed: of the resamples; the same values and seed give the same interval.

    Raises:
        ValueError: no value at all, or not one to three dimensions.

    Example:
        >>> bootstrap_interval([2.0, 2.0, 2.0])
        Interval(mean=2.0, low=2.0, high=2.0)
    """
    cells = np.asarray(values, dtype=float)
    shape = cells.shape
    if cells.ndim == 1:
        cells = cells[:, None]
    if cells.ndim == 2:
        cells = cells[None]
    if cells.ndim != 3 or not np.isfinite(cells).any():
        raise ValueError(f"Expected argument `values` of shape [P], [P, S] or [R, P, S] with a value but got {shape}.")
    return Resampler.of(cells, resamples, seed).interval(lambda means_MB: means_MB[0], level)


def _as_points(points: ArrayLike) -> NDArray[np.float64]:
    points_M2 = np.asarray(points, dtype=float)
    if points_M2.ndim != 2 or points_M2.shape[1] != 2:
        raise ValueError(f"Expected argument `points` of shape [M, 2] but got {points_M2.shape}.")
    return points_M2
