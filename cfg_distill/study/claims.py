"""The orderings that must hold (Cideron et al., ICLR 2025), each with a verdict and its evidence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from cfg_distill.evaluation import System, difference, height_above
from cfg_distill.evaluation.front import KINDS
from cfg_distill.evaluation.intervals import Interval
from cfg_distill.study.config import Claims, Headline

Verdict = Literal["holds", "fails", "undecided"]


def above(interval: Any) -> Verdict:
    """Whether a difference is positive: decided when the interval leaves 0 out."""
    return "holds" if interval.low > 0 else "fails" if interval.high < 0 else "undecided"


def not_below(interval: Interval, margin: float) -> Verdict:
    """Whether a system is at most a margin below another: decided when the interval lies on one side of minus the margin."""
    return "holds" if interval.low > -margin else "fails" if interval.high < -margin else "undecided"


def all_of(*verdicts: Verdict) -> Verdict:
    """The verdict on several parts: one part that fails decides, and one undecided part leaves the rest undecided."""
    return "fails" if "fails" in verdicts else "undecided" if "undecided" in verdicts else "holds"


def judge(systems: Mapping[str, System], names: Claims, headline: Headline) -> list[dict[str, str]]:
    """The claims of front.json: ``claim``, ``verdict``, ``evidence``.

    Verdicts rest on the headline quality and diversity. Where the headline names an independent measure of diversity, the
    evidence shows the difference under that measure too.

    Args:
        systems: name -> system, all of the study.
        names: which systems the orderings are about, and the margin within which a quality counts as reached.
        headline: the metrics.
    """
    court = _Court(systems, names, headline)
    claims = [court.student_reaches_guidance(), court.guidance_costs_diversity(), court.reward_restores_diversity()]
    claims.append(court.merge_is_above_the_baselines())
    return [*claims, court.merge_is_above_plain_temperature()] if names.temperature else claims


class _Court:
    """The systems of the claims, and one method per claim."""

    def __init__(self, systems: Mapping[str, System], names: Claims, headline: Headline) -> None:
        self.headline, self.margin = headline, names.margin
        self.start, self.guided = systems[names.start], systems[names.guidance]
        self.student, self.diverse, self.merge = (systems[n] for n in (names.quality, names.diversity, names.merge))
        self.baselines = [system for system in systems.values() if system.kind in KINDS["baselines"]]
        self.cooler = [self.start, *(systems[name] for name in names.temperature)]

    def student_reaches_guidance(self) -> dict[str, str]:
        ratio = self.student.relative_cost / self.guided.relative_cost
        reached, gained = self._quality(self.student, self.guided), self._quality(self.guided, self.start)
        return _claim(
            "Distillation reaches the quality of guidance, which is above the base, at half its forward cost",
            all_of(not_below(reached, self.margin), above(gained), "holds" if ratio <= 0.5 else "fails"),
            f"{self._quality_shown(self.student, self.guided)}, margin {self.margin:g};"
            f" {self._quality_shown(self.guided, self.start)}; cost ratio {ratio:g}",
        )

    def guidance_costs_diversity(self) -> dict[str, str]:
        lost, inherited = self._diversity(self.start, self.guided), self._diversity(self.start, self.student)
        return _claim(
            "Guidance lowers diversity, and pure distillation inherits the loss",
            all_of(above(lost), above(inherited)),
            f"{self._diversity_shown(self.start, self.guided)}; {self._diversity_shown(self.start, self.student)}",
        )

    def reward_restores_diversity(self) -> dict[str, str]:
        return _claim(
            "With the diversity reward, diversity is above that of guidance",
            above(self._diversity(self.diverse, self.guided)),
            self._diversity_shown(self.diverse, self.guided),
        )

    def merge_is_above_the_baselines(self) -> dict[str, str]:
        height = self._height(self.baselines)
        reached, gained = self._quality(self.merge, self.guided), self._diversity(self.merge, self.guided)
        return _claim(
            "The half-way merge reaches the quality of guidance at more diversity, above the baselines' front",
            all_of(not_below(reached, self.margin), above(gained), above(height)),
            f"{self._quality_shown(self.merge, self.guided)}, margin {self.margin:g};"
            f" {self._diversity_shown(self.merge, self.guided)}; height above the front of {len(self.baselines)} baselines"
            f" and their mixtures = {shown(height)}",
        )

    def merge_is_above_plain_temperature(self) -> dict[str, str]:
        height = self._height(self.cooler)
        return _claim(
            "The half-way merge is above the front of plain temperature",
            above(height),
            f"height of {self.merge.name} above the front of {', '.join(system.name for system in self.cooler)} and their"
            f" mixtures = {shown(height)}",
        )

    def _quality(self, left: System, right: System) -> Interval:
        return difference(left, right, self.headline.quality)

    def _diversity(self, left: System, right: System) -> Interval:
        return difference(left, right, self.headline.diversity)

    def _height(self, others: list[System]) -> Any:
        return height_above(self.merge, others, self.headline.quality, self.headline.diversity)

    def _quality_shown(self, left: System, right: System) -> str:
        return f"quality({left.name}) - quality({right.name}) = {shown(self._quality(left, right))}"

    def _diversity_shown(self, left: System, right: System) -> str:
        text = f"diversity({left.name}) - diversity({right.name}) = {shown(self._diversity(left, right))}"
        independent = self.headline.independent
        return (
            text
            if independent is None
            else f"{text}, under {independent} {shown(difference(left, right, independent))}"
        )


def _claim(claim: str, verdict: Verdict, evidence: str) -> dict[str, str]:
    return {"claim": claim, "verdict": verdict, "evidence": evidence}


def shown(interval: Any) -> str:
    """``+0.012 [-0.003, +0.027]``."""
    return f"{interval.mean:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


def finding(systems: Mapping[str, System], names: Claims, headline: Headline) -> str:
    """One neutral line for the picture: the half-way merge against the guidance that was distilled."""
    merge, guided = systems[names.merge], systems[names.guidance]
    quality, diversity = (difference(merge, guided, metric).mean for metric in (headline.quality, headline.diversity))
    cost = "half its cost" if merge.relative_cost * 2 == guided.relative_cost else "equal cost"
    return f"{merge.name}: quality {quality:+.3f}, diversity {diversity:+.3f} against {guided.name}, at {cost}"
