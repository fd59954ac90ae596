r"""Statistics of ratings: intervals over raters and prompts, agreement, and how many more ratings would decide.

Shapes: P prompts, R raters, U units (things that were rated), B resamples. NaN stands for a rating that is missing.

Ratings have two sources of chance beside the noise of each answer: the prompts and the raters. The model behind the power
calculation is

.. math:: x_{pr} = \mu + a_p + b_r + e_{pr}, \qquad
          \operatorname{Var} \bar x = \frac{\sigma_a^2}{P} + \frac{\sigma_b^2}{R} + \frac{\sigma_e^2}{PR}
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from cfg_distill.evaluation.intervals import LEVEL, Interval, t_quantile

RESAMPLES = 4000
FEWEST_PROMPTS = 6
"""With fewer prompts no comparison is decided: five that all agree do not exclude chance at 95 % (2 / 2^5 is more than 5 %)."""
MOST = 10_000
"""More prompts or raters than this are no answer."""
POWER = 0.8
"""The probability that as many further ratings as are asked for decide."""


def crossed_interval(
    values: ArrayLike,
    bounds: tuple[float, float] = (-math.inf, math.inf),
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    r"""Mean of ratings and its bootstrap interval: prompts and raters are redrawn together.

    A resample weighs the rating of prompt p by rater r with the product of the times that both were drawn (Owen, 2007: The
    pigeonhole bootstrap). Its deviations have the right shape, but count the noise of single answers up to three times. So
    they are scaled to the standard error that the variances give (:func:`spread`), and by the quantile of Student's t to
    that of the normal distribution: three raters tell little of the next three. The degrees of freedom are Satterthwaite's:

    .. math:: A = \frac{\sigma_a^2}{P} + \frac{\sigma_e^2}{PR}, \quad B = \frac{\sigma_b^2}{R}, \quad s^2 = A + B, \quad
              \nu = \frac{s^4}{A^2 / (P - 1) + B^2 / (R - 1)}

    Where ratings are missing, :math:`1/P` is :math:`\sum_p n_p^2 / n^2` with the :math:`n_p` of n ratings that prompt p has,
    likewise :math:`1/R`, and :math:`1/PR` is :math:`1/n`: one rater who rated most items weighs most.

    Args:
        values: ``[P, R]``; NaN for a missing rating. One rater, or one prompt, is taken as it is and not redrawn.
        bounds: the least and the largest mean that there can be.
        resamples: number of bootstrap resamples.
        seed: of the resamples.

    Raises:
        ValueError: no value at all, or not two dimensions.

    Example:
        >>> crossed_interval([[4.0, 4.0], [4.0, 4.0]], resamples=100)
        Interval(mean=4.0, low=4.0, high=4.0)
    """
    values_PR = _ratings(values)
    known_PR = np.isfinite(values_PR)
    filled_PR = np.where(known_PR, values_PR, 0.0)
    mean = float(values_PR[known_PR].mean())
    random = np.random.default_rng(seed)
    prompts_BP, raters_BR = (_draws(random, resamples, number) for number in values_PR.shape)
    sums_B = ((prompts_BP @ filled_PR) * raters_BR).sum(1)
    counts_B = ((prompts_BP @ known_PR) * raters_BR).sum(1)
    deviations_B = sums_B[counts_B > 0] / counts_B[counts_B > 0] - mean
    if deviations_B.std() > 0:
        deviations_B *= _standard_error(values_PR) / deviations_B.std()
    low, high = np.clip(mean + np.quantile(deviations_B, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]), *bounds)
    return Interval(mean, float(low), float(high))


def _standard_error(values_PR: np.ndarray) -> float:
    """The standard error of the mean, times Student's quantile over the normal one."""
    known_PR = np.isfinite(values_PR)
    a, b, e = spread(values_PR)
    prompts_P, raters_R, number = known_PR.sum(1), known_PR.sum(0), known_PR.sum()
    by_prompts = a * (prompts_P**2).sum() / number**2 + e / number
    by_raters = b * (raters_R**2).sum() / number**2
    error, quantile = _error_and_quantile(
        float(by_prompts), float(by_raters), int((prompts_P > 0).sum()), int((raters_R > 0).sum())
    )
    return error * quantile / NormalDist().inv_cdf((1 + LEVEL) / 2)


def _error_and_quantile(by_prompts: float, by_raters: float, prompts: int, raters: int) -> tuple[float, float]:
    """The standard error of a mean from the two parts of its square, and Student's quantile for it."""
    square = by_prompts + by_raters
    if square == 0:
        return 0.0, 0.0
    terms = [by_prompts**2 / (prompts - 1) if prompts > 1 else 0.0, by_raters**2 / (raters - 1) if raters > 1 else 0.0]
    freedom = max(square**2 / sum(terms), 1.0) if sum(terms) else 1.0
    return math.sqrt(square), t_quantile((1 + LEVEL) / 2, freedom)


def _draws(random: np.random.Generator, resamples: int, number: int) -> np.ndarray:
    """How often each of some things is drawn in each resample, ``[B, number]``."""
    if number == 1:
        return np.ones((resamples, 1))
    return random.multinomial(number - 1, np.full(number, 1 / number), size=resamples).astype(float)


def win_interval(values: ArrayLike) -> Interval:
    """The share of comparisons that a system wins, and its interval. A win is 1, a loss 0, and equality 1/2.

    Where all comparisons agree, a bootstrap has no width. Then the open bound is the exact one of Clopper and Pearson, 1934,
    with a prompt as one trial: the answers of several raters to one prompt are no independent evidence.

    Example:
        >>> win_interval([[1.0]] * 10)
        Interval(mean=1.0, low=0.6915..., high=1.0)
    """
    values_PR = _ratings(values)
    interval = crossed_interval(values_PR, (0.0, 1.0))
    prompts = int(np.isfinite(values_PR).any(axis=1).sum())
    bound = ((1 - LEVEL) / 2) ** (1 / prompts)
    if interval.mean == 1:
        return interval._replace(low=bound)
    if interval.mean == 0:
        return interval._replace(high=1 - bound)
    return interval


class Spread(NamedTuple):
    """Variances of ratings.

    Attributes:
        prompt: between prompts.
        rater: between raters; 0 where there is one rater alone.
        rest: of single answers; with one rater it is part of ``prompt``, with one prompt part of ``rater``, and of ``prompt``
            where no two raters share a prompt.
    """

    prompt: float
    rater: float
    rest: float


def spread(values: ArrayLike) -> Spread:
    r"""The three variances, from the mean squared differences of pairs of ratings.

    Two ratings of one rater on two prompts differ by :math:`2 (\sigma_a^2 + \sigma_e^2)` on average, two raters on one
    prompt by :math:`2 (\sigma_b^2 + \sigma_e^2)`, and other pairs by twice the sum of all three. A variance that comes out
    below 0 is 0. No cell needs to be filled.

    Args:
        values: ``[P, R]``.
    """
    values_PR = _ratings(values)
    known_PR = np.isfinite(values_PR)
    filled_PR = np.where(known_PR, values_PR, 0.0)

    def half_squares(sums: np.ndarray, squares: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
        """Over groups of ratings: the sum of (x - y)^2 / 2 over ordered pairs within a group, and the number of pairs."""
        return float((counts * squares - sums**2).sum()), float((counts * (counts - 1)).sum())

    def within(axis: int | None) -> tuple[float, float]:
        parts = (filled_PR, filled_PR**2, known_PR.astype(float))
        return half_squares(*(np.atleast_1d(part.sum(axis)) for part in parts))

    same_rater, same_prompt, everything = within(0), within(1), within(None)
    other = tuple(whole - one - two for whole, one, two in zip(everything, same_rater, same_prompt, strict=True))
    one_rater = same_rater[0] / same_rater[1] if same_rater[1] else 0.0  # prompt and rest
    one_prompt = same_prompt[0] / same_prompt[1] if same_prompt[1] else 0.0  # rater and rest
    if not other[1]:  # one rater, or one prompt
        return Spread(one_rater, one_prompt, 0.0)
    total = other[0] / other[1]
    if not same_prompt[1]:  # raters that share no prompt
        return Spread(one_rater, max(total - one_rater, 0.0), 0.0)
    return Spread(max(total - one_prompt, 0.0), max(total - one_rater, 0.0), max(one_rater + one_prompt - total, 0.0))


class More(NamedTuple):
    """What would decide a comparison, each with the other number as it is. None: no number up to :data:`MOST` would.

    Attributes:
        prompts: further prompts, judged by the same raters.
        raters: further raters, on the same prompts.
    """

    prompts: int | None
    raters: int | None


def more_to_decide(difference: float, variances: Spread, prompts: int, raters: int) -> More:
    r"""How many more prompts, or raters, would decide a comparison four times in five, if its difference is the true one.

    The interval of :func:`crossed_interval` excludes 0 with the probability :data:`POWER` when
    :math:`|d| \\ge (t + z_{power}) s`, with its standard error s and quantile t for the larger numbers.

    Args:
        difference: d, of paired ratings from 0.
        variances: of the paired differences.
        prompts: P of today.
        raters: R of today.

    Example:
        >>> more_to_decide(0.5, Spread(1.0, 0.0, 0.0), prompts=12, raters=3)
        More(prompts=22, raters=None)
    """
    z = NormalDist().inv_cdf(POWER)
    a, b, e = variances

    def decides(prompts: int, raters: int) -> bool:
        by_prompts = a / prompts + e / (prompts * raters)
        error, quantile = _error_and_quantile(by_prompts, b / raters, prompts, raters)
        return abs(difference) >= (quantile + z) * error and difference != 0

    def least(now: int, enough: Callable[[int], bool]) -> int | None:
        """The least further number that is enough, by bisection."""
        few, many = now - 1, MOST
        if not enough(many):
            return None
        while many - few > 1:
            middle = (few + many) // 2
            few, many = (few, middle) if enough(middle) else (middle, many)
        return many - now

    return More(
        least(prompts, lambda number: decides(number, raters)),
        least(raters, lambda number: decides(prompts, number)) if raters > 1 else None,
    )


# Agreement


def ordinal_distance(counts: np.ndarray) -> np.ndarray:
    r"""Krippendorff's squared distance of ordered values, ``[V, V]``: the ratings between two values, half of both ends.

    .. math:: \delta_{ck}^2 = \Big( \sum_{g=c}^{k} n_g - \frac{n_c + n_k}{2} \Big)^2

    Args:
        counts: how often each of V values was given, in their order.
    """
    middle_V = np.cumsum(counts) - counts / 2
    distance_VV: np.ndarray = (middle_V[:, None] - middle_V[None]) ** 2
    return distance_VV


def krippendorff_alpha(ratings: ArrayLike) -> float:
    r"""Krippendorff's alpha of ordered ratings: 1 is perfect agreement of raters, 0 what chance would give.

    .. math:: \alpha = 1 - \frac{D_o}{D_e} = 1 - (n - 1) \frac{\sum_{ck} o_{ck} \delta_{ck}^2}{\sum_{ck} n_c n_k \delta_{ck}^2}

    with the coincidences :math:`o_{ck}`: of each unit with m ratings, every ordered pair counts 1 / (m - 1). Source:
    Krippendorff, 2011 (Computing Krippendorff's alpha-reliability).

    Args:
        ratings: ``[R, U]``; NaN for a missing rating. Units with one rating are left out.

    Returns:
        Alpha; NaN where no unit has two ratings, or all ratings are equal, which leaves nothing to agree upon.

    Example:
        >>> krippendorff_alpha([[1, 2, 3, 4], [1, 2, 4, 4]])
        0.91...
    """
    ratings_RU = _ratings(ratings)
    pairable_U = np.isfinite(ratings_RU).sum(0) > 1
    ratings_RU = ratings_RU[:, pairable_U]
    values_V = np.unique(ratings_RU[np.isfinite(ratings_RU)]) if pairable_U.any() else np.array([])
    if len(values_V) < 2:
        return math.nan
    counts_UV = (ratings_RU[:, :, None] == values_V).sum(0).astype(float)
    weights_U1 = 1 / (counts_UV.sum(1, keepdims=True) - 1)
    coincidences_VV = (weights_U1 * counts_UV).T @ counts_UV
    coincidences_VV -= np.diag((weights_U1 * counts_UV).sum(0))  # a rating is no pair with itself
    counts_V = coincidences_VV.sum(1)
    distance_VV = ordinal_distance(counts_V)
    observed = float((coincidences_VV * distance_VV).sum())
    expected = float((np.outer(counts_V, counts_V) * distance_VV).sum())
    return float(1 - (counts_V.sum() - 1) * observed / expected)


def _ratings(values: ArrayLike) -> np.ndarray:
    ratings = np.asarray(values, dtype=float)
    if ratings.ndim != 2 or not np.isfinite(ratings).any():
        raise ValueError(f"Expected two dimensions with a value but got {ratings.shape}.")
    return ratings
