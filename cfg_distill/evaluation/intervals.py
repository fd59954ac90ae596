r"""Intervals of anything that is computed from means of systems: one bootstrap over prompts and training seeds together.

How sure is a number? It would have come out otherwise on other prompts, with other samples, and after another training run.
An interval must hold all three.

- **Prompts** are redrawn with replacement, the same ones for all systems and metrics. So a hard prompt weighs on both sides of
  a comparison alike. All samples of a prompt move with it: a redraw of prompts carries the noise of their samples already
  (Davison and Hinkley, 1997, section 3.8). To redraw the sampling seeds as well would count that noise twice: intervals of
  pure sampling noise then cover .98 in place of .95.
- **Few prompts.** Percentiles of a bootstrap over P values are too narrow, by the factor :math:`\sqrt{(P-1)/P}\, z / t_{P-1}`
  of normal values. They are moved outwards by it (the expanded percentile interval of Hesterberg, 2015, The American
  Statistician 69).
- **Training seeds.** Three training runs cannot be redrawn like prompts: percentiles of three values cover .77 where training
  is all that varies. So their spread widens the interval by a t quantile. With the jackknife deviations :math:`D_r` of the R
  training seeds (for a mean: how far the mean of seed r is from the mean of all),

  .. math:: w^2 = t_{R-1}^2 \max\Big(0, \frac{\sum_r D_r^2 - \frac12 N}{R (R - 1)}\Big), \qquad
            \text{low} = h - \sqrt{(h - l)^2 + w^2}

  where h is the number, l the lower end under redrawn prompts (the upper end likewise), and N what the sum of squares would be
  if the training runs differed by the noise of their samples only. That noise is in l already, so part of it is taken off: all
  of it would leave intervals that cover .94 where the spread of the runs is middling, and none would cover .99 where the runs
  are alike. To add squares of distances is the method of variance estimates recovery (Zou and Donner, 2008, Statistics in
  Medicine 27). Runs of separate chains of training add their :math:`w^2`.

- **Fronts.** A front takes the best of several systems, so its noise makes it too high, and every height too low; a resample
  makes it higher again. So intervals of heights take bias-corrected percentiles (Efron, 1981): shares of a normal distribution
  that is moved by :math:`2 z_0`, where :math:`\Phi(z_0)` is the share of resamples below the number itself.

Coverage in simulation, with 96 prompts and 2 sampling seeds, by the standard deviation that training adds: from none to nearly
all (the noise of one run's samples is .005). `tests/evaluation/test_intervals.py` repeats it with 24 prompts, where a false
``above`` between two equally trained chains comes up in .007 to .010 of the studies.

    training seeds    0     .003   .006   .01    .02    .05
    1                 .943                                        nothing is known about another training run
    2                 .975  .969   .957   .935   .921   .932      two seeds are too few, and their intervals very wide
    3                 .975  .973   .968   .961   .952   .950
    5                 .967  .965   .968   .966   .960   .950

Shapes: M systems, R training seeds, P prompts, S sampling seeds, B resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Statistic = Callable[..., Floats]
"""From the means of each metric, ``[M, B]``, to a number per resample, ``[B]``."""

RESAMPLES = 2000
LEVEL = 0.95
NOISE_TAKEN_OFF = 0.5
"""The share of the sampling noise that is taken off the spread of training runs."""
LEAST_PROMPTS = 8
LEAST_TRAINING_SEEDS = 3
"""Below these, intervals cover less than they say, or are too wide to decide anything. Prompts without a value do not count."""


class Interval(NamedTuple):
    """A mean and the bounds of its confidence interval."""

    mean: float
    low: float
    high: float


def plainly(interval: Interval, form: str = ".3f") -> str:
    """A number and its interval as text.

    Example:
        >>> plainly(Interval(0.0123, 0.001, 0.02))
        '0.012 [0.001, 0.020]'
    """
    mean, low, high = (format(value, form) for value in interval)
    return f"{mean} [{low}, {high}]"


def signed(interval: Interval) -> str:
    """A difference and its interval as text.

    Example:
        >>> signed(Interval(0.0123, -0.001, 0.02))
        '+0.012 [-0.001, +0.020]'
    """
    return plainly(interval, "+.3f")


def highest_share(events: int, number: int) -> float:
    """The upper end of the exact 95 % interval of a share, of ``events`` among ``number`` draws (Clopper and Pearson, 1934).

    Example:
        >>> round(highest_share(0, 100), 4), highest_share(3, 3)
        (0.0362, 1.0)
    """
    from scipy.special import betaincinv

    return float(betaincinv(events + 1, number - events, 0.975)) if events < number else 1.0


class Resampler:
    """The means of systems, on all prompts and on redrawn prompts.

    Args:
        values: for each metric, the values of each system, ``[R, P, S]``; NaN where a metric does not apply. A value that is
            NaN in one system is left out of all. R may differ between systems.
        chains: the chain of training of each system. Systems of one chain stand or fall with the same training seeds. Systems
            with R = 1 have nothing to redraw, whatever their chain.
        resamples: B.
        seed: of the redraws; the same seed gives the same intervals.

    Attributes:
        prompts: the number of prompts with a value; of several metrics, the least of their numbers.
        all: for each metric, the means on all prompts, ``[M, 1]``.
        redrawn: for each metric, the means on redrawn prompts, ``[M, B]``.
    """

    def __init__(
        self, values: Sequence[Sequence[Floats]], chains: Sequence[str], resamples: int = RESAMPLES, seed: int = 0
    ) -> None:
        self.chains = list(chains)
        self._sums: list[list[Floats]] = []  # metric, system -> [R, P]
        self._counts: list[Floats] = []  # metric -> [P]
        self._left_out: dict[tuple[bool, str, int], list[Floats]] = {}
        known: list[int] = []  # metric -> prompts with a value
        for systems in values:
            if (
                len({values_RPS.shape[-1] for values_RPS in systems}) > 1
            ):  # sampled under different seeds: prompts pair them
                systems = [_means_of_prompts(values_RPS) for values_RPS in systems]
            missing_PS = np.any([np.isnan(values_RPS).any(axis=0) for values_RPS in systems], axis=0)
            if missing_PS.all():
                raise ValueError("Expected a prompt on which every system has a value, but there is none.")
            known.append(int((~missing_PS).any(axis=1).sum()))
            kept = [np.where(missing_PS, 0.0, values_RPS) for values_RPS in systems]
            if missing_PS.shape[0] == 1:  # one prompt: its sampling seeds are all that can be redrawn
                self._sums.append([values_RPS[:, 0] for values_RPS in kept])
                self._counts.append((~missing_PS[0]).astype(float))
            else:
                self._sums.append([values_RPS.sum(-1) for values_RPS in kept])
                self._counts.append((~missing_PS).sum(-1).astype(float))
        self.prompts = min(known)
        # A prompt without a value moves no mean, however often it is drawn. So it makes no interval narrower.
        self._clusters = min(int((counts_P > 0).sum()) for counts_P in self._counts)
        all_prompts = len(self._counts[0])
        self._ones_1P = np.ones((1, all_prompts))
        self._times_BP = _times_drawn(all_prompts, resamples, seed)
        self.all = self._means(self._ones_1P)
        self.redrawn = self._means(self._times_BP)

    @classmethod
    def of(cls, values: Floats, resamples: int = RESAMPLES, seed: int = 0) -> Resampler:
        """Of one quantity, ``[R, P, S]``."""
        return cls([[values]], ["own"], resamples, seed)

    def interval(self, statistic: Statistic, level: float = LEVEL, corrected: bool = False) -> Interval:
        """A number computed from the means, and its interval.

        Args:
            statistic: takes the means of each metric, ``[M, B]``, and returns ``[B]``.
            level: of the interval.
            corrected: for the bias of a front.
        """
        value, redrawn_B = float(statistic(*self.all)[0]), statistic(*self.redrawn)
        outside = outer_share(self._clusters, level)
        shares = _moved(redrawn_B, value, outside) if corrected else [outside, 1 - outside]
        low, high = np.nanquantile(redrawn_B, shares)
        widened = sum(self._seed_width(statistic, chain, level) ** 2 for chain in self._trained())
        below, above = max(value - low, 0.0), max(high - value, 0.0)
        return Interval(
            value,
            float(low - (math.sqrt(below**2 + widened) - below)),
            float(high + (math.sqrt(above**2 + widened) - above)),
        )

    def _means(self, times_BP: Floats, left_out: tuple[str, int] | None = None) -> list[Floats]:
        """The means of each metric, ``[M, B]``, by how often each prompt was drawn; without one training seed of a chain."""
        found = []
        with np.errstate(invalid="ignore"):  # a resample of prompts without a value has no mean
            for sums, counts_P in zip(self._sums, self._counts, strict=True):
                runs_MP = np.stack([self._runs(*system, left_out) for system in zip(sums, self.chains, strict=True)])
                found.append(runs_MP @ times_BP.T / (times_BP @ counts_P))
        return found

    def _runs(self, sums_RP: Floats, chain: str, left_out: tuple[str, int] | None) -> Floats:
        if left_out is None or chain != left_out[0] or len(sums_RP) == 1:
            return sums_RP.mean(axis=0)
        return np.delete(sums_RP, left_out[1], axis=0).mean(axis=0)

    def _means_without(self, redrawn: bool, chain: str, run: int) -> list[Floats]:
        """The means without one training seed; kept, since several numbers may be asked for."""
        key = (redrawn, chain, run)
        if key not in self._left_out:
            self._left_out[key] = self._means(self._times_BP if redrawn else self._ones_1P, (chain, run))
        return self._left_out[key]

    def _trained(self) -> list[str]:
        """The chains with several training seeds."""
        return list(
            dict.fromkeys(chain for sums_RP, chain in zip(self._sums[0], self.chains, strict=True) if len(sums_RP) > 1)
        )

    def _seed_width(self, statistic: Statistic, chain: str, level: float) -> float:
        """w of one chain: half the width that its training seeds add."""
        number = max(
            len(sums_RP) for sums_RP, its_chain in zip(self._sums[0], self.chains, strict=True) if its_chain == chain
        )

        def deviations(redrawn: bool) -> Floats:
            """The jackknife deviations of the training seeds, ``[R, B]``."""
            without_RB = np.stack([statistic(*self._means_without(redrawn, chain, run)) for run in range(number)])
            return (number - 1) * (without_RB.mean(axis=0) - without_RB)

        squares = float((deviations(redrawn=False) ** 2).sum())
        correction = self._clusters / max(self._clusters - 1, 1)
        noise = float(np.nanvar(deviations(redrawn=True), axis=1).sum()) * correction
        variance = max(0.0, squares - NOISE_TAKEN_OFF * noise) / (number * (number - 1))
        return t_quantile((1 + level) / 2, number - 1) * math.sqrt(variance)


def _moved(redrawn_B: Floats, value: float, outside: float) -> list[float]:
    """The shares of bias-corrected percentiles. Resamples that equal the number count half."""
    below = float((redrawn_B < value).mean() + (redrawn_B <= value).mean()) / 2
    normal = NormalDist()
    # At most one resample from either end: a number that all resamples exceed is off by an unknown amount.
    bias = normal.inv_cdf(min(max(below, 1 / len(redrawn_B)), 1 - 1 / len(redrawn_B)))
    # The quantile of the upper share by symmetry: of 2 prompts, 1 - outside is 1 in floating point.
    lower = normal.inv_cdf(max(outside, 1e-300))
    return [normal.cdf(2 * bias + lower), normal.cdf(2 * bias - lower)]


@lru_cache(maxsize=8)
def _times_drawn(clusters: int, resamples: int, seed: int) -> Floats:
    """How often each prompt is drawn in each resample, ``[B, P]``; every row adds up to P."""
    drawn_BP = np.random.default_rng(seed).integers(clusters, size=(resamples, clusters))
    cells = drawn_BP + clusters * np.arange(resamples)[:, None]
    return np.bincount(cells.ravel(), minlength=resamples * clusters).reshape(resamples, clusters).astype(float)


def _means_of_prompts(values_RPS: Floats) -> Floats:
    """The mean of each prompt over its sampling seeds, ``[R, P, 1]``; NaN where none has a value."""
    kept_RPS = ~np.isnan(values_RPS)
    with np.errstate(invalid="ignore"):
        means: Floats = np.where(kept_RPS, values_RPS, 0.0).sum(-1, keepdims=True) / kept_RPS.sum(-1, keepdims=True)
    return means


def shortage(prompts: int) -> str:
    """Why some prompts decide nothing, in words; empty where they suffice.

    Args:
        prompts: the number of prompts with a value, as :attr:`Resampler.prompts` has it.

    Example:
        >>> shortage(3), shortage(8)
        ('3 prompts with a value are fewer than the 8 that an interval needs', '')
    """
    if prompts >= LEAST_PROMPTS:
        return ""
    number = "1 prompt with a value is" if prompts == 1 else f"{prompts} prompts with a value are"
    return f"{number} fewer than the {LEAST_PROMPTS} that an interval needs"


def outer_share(clusters: int, level: float = LEVEL) -> float:
    r"""The share of resamples outside each end of an interval: :math:`\Phi(-\sqrt{P/(P-1)}\, t_{P-1})`.

    For many prompts this is (1 - level) / 2. For few it is less, since percentiles of a bootstrap are too narrow.

    Args:
        clusters: P, the number of prompts with a value that are redrawn.
        level: of the interval.
    """
    if clusters < 2:
        return (1 - level) / 2
    return NormalDist().cdf(-math.sqrt(clusters / (clusters - 1)) * t_quantile((1 + level) / 2, clusters - 1))


def t_quantile(share: float, freedom: float) -> float:
    """The number below which a share of Student's t distribution lies.

    Args:
        share: above 0 and below 1.
        freedom: degrees of freedom, above 0.

    Example:
        >>> round(t_quantile(0.975, 2), 3)
        4.303
    """
    from scipy.special import stdtrit

    return float(stdtrit(freedom, share))
