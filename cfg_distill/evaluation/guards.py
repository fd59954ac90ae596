"""Guards: bounds that a system must keep, so that no claim is bought by silence, loops or empty samples. No torch in here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self

from cfg_distill.errors import ConfigError

if TYPE_CHECKING:
    from cfg_distill.evaluation.intervals import Floats, Interval
    from cfg_distill.evaluation.system import System

Verdict = Literal["holds", "fails", "undecided"]

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_BOUND = re.compile(rf"\s*(<=|>=|<|>)\s*(?:({_NUMBER})|base(?:\s*([*+-])\s*({_NUMBER}))?)\s*")
ENOUGH = 3
"""Prompts with an event from which redraws of prompts tell how sure a share is."""
_EXPECTED = "expected a bound such as `< 0.02`, `<= base + 0.01` or `< base * 1.5`"


@dataclass(frozen=True)
class Guard:
    """A bound on a metric, absolute or relative to the base: value below (or above) factor * base + offset.

    Attributes:
        metric: its name.
        sign: ``<``, ``<=``, ``>`` or ``>=``.
        factor: of the base's value; 0 for an absolute bound.
        offset: what is added.
    """

    metric: str
    sign: str
    factor: float
    offset: float

    @classmethod
    def parse(cls, metric: str, bound: str) -> Self:
        """A guard from its metric and its bound.

        Raises:
            ConfigError: the bound cannot be read.

        Example:
            >>> Guard.parse("rest_share", "<= base + 0.01")
            Guard(metric='rest_share', sign='<=', factor=1.0, offset=0.01)
        """
        found = _BOUND.fullmatch(str(bound))
        if found is None:
            raise ConfigError(f"{_EXPECTED}, but got {bound!r}.")
        sign, absolute, operator, number = found.groups()
        if absolute is not None:
            return cls(metric, sign, 0.0, float(absolute))
        if operator == "*":
            return cls(metric, sign, float(number), 0.0)
        return cls(metric, sign, 1.0, float(number) * (-1 if operator == "-" else 1) if operator else 0.0)

    def __str__(self) -> str:
        if not self.factor:
            return f"{self.metric} {self.sign} {self.offset:g}"
        base = "base" if self.factor == 1 else f"base * {self.factor:g}"
        more = f" {'+' if self.offset > 0 else '-'} {abs(self.offset):g}" if self.offset else ""
        return f"{self.metric} {self.sign} {base}{more}"

    def excess(self, system: System, base: System) -> Interval:
        """How far the metric lies above its bound, with an interval: a guard with ``<`` holds while all of it is below 0.

        Of a share of rare events, few draws say little even where none has happened: redraws of zeros are zeros. Where fewer
        than three prompts have an event, the interval reaches as high as the exact one of as many draws as there are samples;
        not under a bound such as `<= base`, which has no room for that.

        Raises:
            ValueError: see :func:`cfg_distill.evaluation.compare.resampler`.
        """
        from cfg_distill.evaluation.compare import resampler

        def above(means_MB: Floats) -> Floats:
            excess: Floats = means_MB[0] - self.factor * means_MB[-1] - self.offset
            return excess

        found = resampler([system, base] if self.factor else [system], [self.metric]).interval(above)
        value = self.value(system)
        return (
            found._replace(high=max(found.high, found.mean + value.high - value.mean))
            if self._is_rare(system)
            else found
        )

    def value(self, system: System) -> Interval:
        """The metric of a system with its interval, which reaches to the exact end where events are rare."""
        import numpy as np

        from cfg_distill.evaluation.intervals import highest_share

        found = system.interval(self.metric)
        if not self._is_rare(system):
            return found
        number = int(np.isfinite(system.runs(self.metric)).sum()) * system.samples
        return found._replace(high=max(found.high, highest_share(round(found.mean * number), number)))

    def _is_rare(self, system: System) -> bool:
        """Whether the metric is a share of events that few prompts have, below a bound with room above the base's share."""
        import numpy as np

        if not self.sign.startswith("<") or self.offset <= 0:
            return False
        events_RPS = system.runs(self.metric) * system.samples
        events = events_RPS[np.isfinite(events_RPS)]
        is_of_events = events.min() >= 0 and events.max() <= system.samples and np.allclose(events, events.round())
        return bool(is_of_events and (np.nansum(events_RPS, axis=(0, 2)) > 0).sum() < ENOUGH)

    def verdict(self, excess: Interval) -> Verdict:
        """Whether the guard holds: decided when the whole interval of the excess lies on one side of 0."""
        ends = (excess.low, excess.high) if self.sign.startswith("<") else (-excess.high, -excess.low)
        strict = len(self.sign) == 1
        if ends[1] < 0 or (ends[1] == 0 and not strict):
            return "holds"
        return "fails" if ends[0] > 0 or (ends[0] == 0 and strict) else "undecided"


def guards_of(bounds: dict[str, str]) -> list[Guard]:
    """The guards of metric -> bound.

    Raises:
        ConfigError: all bounds that cannot be read, by metric.
    """
    guards, problems = [], []
    for metric, bound in bounds.items():
        try:
            guards.append(Guard.parse(metric, bound))
        except ConfigError as error:
            problems += error.under(metric)
    if problems:
        raise ConfigError(problems)
    return guards
