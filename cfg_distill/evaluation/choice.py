"""The choice of one system to ship: as good as the guided base within a margin, its guards held, as diverse as possible.

It has the rule alone. Which systems and bounds it is about, the study file or the command line says.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from cfg_distill.errors import ConfigError, Problem, nearest
from cfg_distill.evaluation.compare import between, resampler
from cfg_distill.evaluation.guards import Guard, guards_of
from cfg_distill.evaluation.intervals import Interval, Resampler, plainly, shortage, signed
from cfg_distill.evaluation.system import System

MARGIN = 0.02
"""How far below the guided base a quality may lie, where nobody says."""
CANDIDATES = ("student", "merge", "model")
"""The kinds of systems that can be shipped: none of them needs guidance."""
_SENTENCE = re.compile(r"\s*([^<>=]*[^<>=\s])\s*([<>].*)")


@dataclass(frozen=True)
class Rule:
    """What a system must keep to be chosen, and the metrics that decide.

    Attributes:
        quality: the metric of quality that decides.
        diversity: the metrics of diversity that decide: the least gain under any of them counts.
        margin: how far below the guided base the quality may lie.
        guards: bounds.
    """

    quality: str
    diversity: Sequence[str]
    margin: float = MARGIN
    guards: Sequence[Guard] = ()


class Gain(NamedTuple):
    """The least gain of diversity over the guided base, as a share of the guided base's own, and its metric."""

    share: float
    metric: str


@dataclass
class Candidate:
    """A system beside the guided base.

    Attributes:
        system: the system.
        differences: metric -> system minus guided base, paired by prompt; of all axes. A metric that has a value in both on no
            prompt is left out.
        judged: the metrics of them that have a value in both on enough prompts for an interval.
        quality: the difference in the quality that decides; None where it cannot be judged.
        gain: the least gain of diversity; None where the rest of the rule is not kept.
        broken: the guards that do not hold, and what cannot be judged, each as a phrase.
    """

    system: System
    differences: dict[str, Interval]
    judged: frozenset[str]
    quality: Interval | None
    gain: Gain | None = None
    broken: list[str] = field(default_factory=list)


@dataclass
class Choice:
    """One recommended system, or none.

    Attributes:
        chosen: the recommended candidate; None where no candidate keeps the rule.
        nearest: the recommended candidate, or the one that misses least; None where there are no candidates.
        guided: the system that all were compared with.
        rule: what had to be kept.
        candidates: all, in the order of the study.
        left_out: the metrics of diversity that could not decide, since the guided base, or a point that keeps the rest of the
            rule, has them on too few prompts.
    """

    chosen: Candidate | None
    nearest: Candidate | None
    guided: System
    rule: Rule
    candidates: list[Candidate]
    left_out: list[str] = field(default_factory=list)

    @property
    def reason(self) -> str:
        """Why this one, in one sentence."""
        guided, margin = f"`{self.guided.name}`", self.rule.margin
        if self.nearest is None:
            return "The study has no student and no merge, so there is nothing to choose."
        name = f"`{self.nearest.system.name}`"
        if self.chosen is None:
            return f"No point keeps the rule; the nearest is {name}: {'; '.join(self.why_not(self.nearest))}."
        gain, quality = self.chosen.gain, self.chosen.quality
        assert gain is not None and quality is not None
        found = self.chosen.differences[gain.metric]
        diversity = (
            f"under that measure, {gain.metric}, its diversity is {abs(100 * gain.share):.0f} %"
            f" {'higher' if gain.share >= 0 else 'lower'} ({signed(found)})"
        )
        if found.low <= 0 <= found.high:
            diversity += ", and no difference is shown"
        elif gain.share > 0 and (number := sum(each.gain is not None for each in self.candidates)) > 1:
            diversity += f"; the largest of {number} such gains is rather too high"
        left_out = f"; {', '.join(self.left_out)} did not count, which too few prompts have" if self.left_out else ""
        return (
            f"{name} is, under its least favourable measure, the most diverse point whose quality is"
            f" not more than {margin:g} below {guided}"
            f" ({signed(quality)}); {diversity}{left_out};"
            f" {'every guard holds' if self.rule.guards else 'no guard was set'}."
        )

    def why_not(self, candidate: Candidate) -> list[str]:
        """Why a candidate is not the choice, one phrase each; empty for the choice itself."""
        if candidate is self.chosen:
            return []
        why = [*self._short_of_quality(candidate), *candidate.broken]
        if not why and candidate.gain is None:
            why = ["its diversity cannot be judged: too few prompts have a value"]
        elif not why and self.chosen is not None and candidate.gain and self.chosen.gain:
            mine, its = candidate.gain, self.chosen.gain
            why = [
                f"less diverse: {mine.metric} {_percent(mine.share)}, where `{self.chosen.system.name}` has at least"
                f" {_percent(its.share)}"
            ]
        return why

    def _short_of_quality(self, candidate: Candidate) -> list[str]:
        margin, quality = self.rule.margin, candidate.quality
        if quality is None or _reaches(quality, self.rule):
            return []
        is_below = quality.high < -margin
        verdict = f"is more than {margin:g} below" if is_below else f"may be more than {margin:g} below"
        advice = "" if is_below else "; more prompts or seeds would decide"
        return [f"quality {verdict} `{self.guided.name}`: {signed(quality)}{advice}"]

    def entry(self) -> dict[str, Any]:
        """The entry ``choice`` of front.json."""
        system = None if self.chosen is None else self.chosen.system
        return {
            "system": None if system is None else system.name,
            "knob": None if system is None else system.knob,
            "nearest": None if self.nearest is None else self.nearest.system.name,
            "reason": self.reason,
            "against": self.guided.name,
            "margin": self.rule.margin,
            "guards": list(map(str, self.rule.guards)),
            "quality": self.rule.quality,
            "diversity": list(self.rule.diversity),
            "left_out": self.left_out,
            "rejected": [
                {"system": each.system.name, "why": "; ".join(why)}
                for each in self.candidates
                if (why := self.why_not(each))
            ],
            "differences": {
                each.system.name: {metric: value._asdict() for metric, value in each.differences.items()}
                for each in self.candidates
            },
        }


def choose(systems: Iterable[System], guided: System, rule: Rule, base: System | None = None) -> Choice:
    r"""Choose the point to ship.

    A candidate is any student or merge (:data:`CANDIDATES`), at any temperature, sampled without a start model. Among the
    candidates that keep the rule, the one with the largest least gain is chosen:

    .. math:: \arg\max_m \min_k \frac{d_{mk} - d_{gk}}{|d_{gk}|}
        \quad \text{where} \quad \text{low}(q_m - q_g) > -\varepsilon \text{ and all guards hold}

    with q the quality and d_k the metrics of diversity, g the guided base, :math:`\varepsilon` the margin, and low the lower
    end of the paired 95 % interval. Gains are shares of the guided base's own diversity, so that metrics of different ranges
    compare.

    Fewer prompts with a value than an interval needs (:data:`cfg_distill.evaluation.intervals.LEAST_PROMPTS`) decide nothing. A
    candidate with so few under the quality or a guard does not keep the rule. A metric of diversity is left out for all where
    the guided base, or a candidate that keeps the rest of the rule, has so few.

    Where none keeps the rule, the nearest is the one that breaks the fewest guards, and among these the one that would need
    the smallest margin.

    Args:
        systems: all systems of a study.
        guided: the guidance that was distilled.
        rule: what must be kept.
        base: the base without guidance, for the guards that are relative to it; None takes the guided base.

    Raises:
        ValueError: the systems were evaluated on different prompts.
    """
    systems = list(systems)
    if any(each.prompts != guided.prompts for each in systems if each.kind in CANDIDATES):
        raise ValueError(f"Expected systems on the prompts of {guided.name}, but some have others.")
    shippable = [each for each in systems if each.kind in CANDIDATES and each.anneal is None and each.guidance == 1]
    candidates = [_candidate(each, guided, rule, base or guided) for each in shippable]
    kept = [each for each in candidates if not each.broken and each.quality and _reaches(each.quality, rule)]
    deciding = [metric for metric in rule.diversity if all(metric in each.judged for each in kept)]
    for each in kept:
        each.gain = min((_gain(each, guided, metric) for metric in deciding), default=None)
    chosen = max((each for each in kept if each.gain), key=_rank, default=None)
    closest = max(candidates, key=_nearness, default=None)
    left_out = [metric for metric in rule.diversity if metric not in deciding]
    return Choice(chosen, chosen or closest, guided, rule, candidates, left_out)


def _rank(kept: Candidate) -> tuple[float, float]:
    """The largest is chosen, of the candidates that keep the rule."""
    assert kept.gain is not None and kept.quality is not None
    return kept.gain.share, kept.quality.mean


def _nearness(candidate: Candidate) -> tuple[float, float]:
    """The largest is the nearest, where no candidate keeps the rule."""
    return -len(candidate.broken), -math.inf if candidate.quality is None else candidate.quality.low


def problems_of_rule(rule: Rule, systems: Sequence[System]) -> list[Problem]:
    """What is wrong with a rule: a margin below 0 or infinite, or a guard on a metric that the systems do not have."""
    known = list(dict.fromkeys(metric for system in systems for metric in system.axes))
    problems = [
        Problem(
            "guard", f"expected one of the metrics {known}, but got `{guard.metric}`.{nearest(guard.metric, known)}"
        )
        for guard in rule.guards
        if guard.metric not in known
    ]
    if not 0 <= rule.margin < math.inf:
        problems.insert(0, Problem("margin", f"expected a finite number of at least 0, but got {rule.margin:g}."))
    return problems


def _candidate(system: System, guided: System, rule: Rule, base: System) -> Candidate:
    """A candidate, its guards judged; its gain is open."""
    found = {metric: means for metric in guided.axes if (means := _means([system, guided], metric))}
    differences = {metric: between(means) for metric, means in found.items()}
    judged = frozenset(metric for metric, means in found.items() if not shortage(means.prompts))
    quality = differences[rule.quality] if rule.quality in judged else None
    broken = [] if quality else [f"{rule.quality} cannot be judged: {_few(found.get(rule.quality))}"]
    for guard in rule.guards:
        if guard.metric not in system.values or guard.metric not in base.values:
            broken.append(f"guard {guard} cannot be judged: it was evaluated without {guard.metric}")
            continue
        few = _few(_means([system, base] if guard.factor else [system], guard.metric))
        if few:
            broken.append(f"guard {guard} cannot be judged: {few}")
        elif guard.verdict(guard.excess(system, base)) != "holds":
            value = guard.value(system)
            broken.append(f"guard {guard} does not hold: {plainly(value, '.3g')}")
    return Candidate(system, differences, judged, quality, broken=broken)


def _means(systems: Sequence[System], metric: str) -> Resampler | None:
    """The means of systems under one metric; None where no prompt has a value in all of them."""
    if any(metric not in each.values for each in systems):
        return None
    try:
        return resampler(systems, [metric])
    except ValueError:
        return None


def _few(means: Resampler | None) -> str:
    """Why a metric cannot be judged; empty where it can."""
    return shortage(0 if means is None else means.prompts)


def _gain(candidate: Candidate, guided: System, metric: str) -> Gain:
    level, gained = abs(guided.interval(metric).mean), candidate.differences[metric].mean
    return Gain(gained / level if level else gained, metric)


def _reaches(quality: Interval, rule: Rule) -> bool:
    return quality.low > -rule.margin


def _percent(share: float) -> str:
    return f"{100 * share:+.0f} %"


def default_rule(claims: Mapping[str, Any] | None, quality: str, diversity: Sequence[str]) -> Rule:
    """The rule of a study: the margin and guards of its claims.

    Args:
        claims: the claims of the study file; None for none.
        quality: the headline quality.
        diversity: all metrics of diversity.
    """
    claims = claims or {}
    margin = claims.get("margin")
    return Rule(quality, diversity, MARGIN if margin is None else float(margin), guards_of(claims.get("guards") or {}))


def guard_of(text: str) -> Guard:
    """A guard as it is typed: ``METRIC<BOUND``.

    Raises:
        ConfigError: it is none.

    Example:
        >>> str(guard_of("rest_share<0.02"))
        'rest_share < 0.02'
    """
    found = _SENTENCE.fullmatch(text)
    if found is None:
        wanted = 'expected a metric, `<` or `>`, and a bound, as in "rest_share<0.02"'
        raise ConfigError(Problem("", f"{wanted}, but got `{text}`."))
    return Guard.parse(found[1], found[2])
