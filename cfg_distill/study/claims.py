"""What a study sets out to show, each claim with a verdict and its evidence (the orderings: Cideron et al., ICLR 2025).

A claim has parts, and guards of the student that it is about. One part or guard that fails decides; one that is undecided
leaves the claim undecided. So a claim holds by chance less often than its strictest part: at most in .025 of the studies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cfg_distill.evaluation import System, difference
from cfg_distill.evaluation.compare import Height, between, height_of, missing, resampler
from cfg_distill.evaluation.front import KINDS
from cfg_distill.evaluation.guards import Guard, Verdict, guards_of
from cfg_distill.evaluation.headline import Headline
from cfg_distill.evaluation.intervals import LEAST_PROMPTS, Interval, Resampler, plainly, shortage, signed
from cfg_distill.study.parts import Claims


def above(interval: Interval | Height) -> Verdict:
    """Whether a difference is positive: decided when the interval leaves 0 out."""
    return "holds" if interval.low > 0 else "fails" if interval.high < 0 else "undecided"


def not_below(interval: Interval, margin: float) -> Verdict:
    """Whether a system is at most a margin below another: decided when the interval lies on one side of minus the margin."""
    return "holds" if interval.low > -margin else "fails" if interval.high < -margin else "undecided"


def all_of(*verdicts: Verdict) -> Verdict:
    """The verdict on several parts: one part that fails decides, and one undecided part leaves the rest undecided."""
    return "fails" if "fails" in verdicts else "undecided" if "undecided" in verdicts else "holds"


@dataclass(frozen=True)
class Part:
    """A part of a claim.

    Attributes:
        text: what was compared, with its numbers.
        verdict: on this part.
        interval: of the comparison; None where there is none.
        decides: whether the verdict counts for the claim; a part that does not count is shown.
    """

    text: str
    verdict: Verdict
    interval: Interval | Height | None = None
    decides: bool = True

    def entry(self) -> dict[str, Any]:
        """As in front.json."""
        return {
            "part": self.text,
            "verdict": self.verdict,
            "interval": None if self.interval is None else self.interval._asdict(),
        }


def judge(systems: Mapping[str, System], names: Claims, headline: Headline) -> list[dict[str, Any]]:
    """The claims of front.json: ``name``, ``claim``, ``verdict``, ``evidence``, ``parts`` and ``guards``.

    Args:
        systems: name -> system, all of the study.
        names: which systems the claims are about, the margin within which a quality counts as reached, and the guards.
        headline: the metrics.
    """
    court = _Court(systems, names, headline)
    claims = [court.student_reaches_guidance(), court.guidance_costs_diversity()]
    if names.diversity is not None:
        claims.append(court.reward_restores_diversity(systems[names.diversity]))
    if names.merge is not None:
        merge = systems[names.merge]
        claims += [court.merge_is_above_equal_cost(merge), court.merge_is_above_all(merge)]
    return claims


class _Court:
    """The systems that every study has, and one method per claim."""

    def __init__(self, systems: Mapping[str, System], names: Claims, headline: Headline) -> None:
        self.headline, self.margin, self.guards = headline, names.margin, guards_of(names.guards)
        self.start, self.guided = systems[names.start], systems[names.guidance]
        self.student = systems[names.quality]
        self.baselines = [system for system in systems.values() if system.kind in KINDS["baselines"]]

    def student_reaches_guidance(self) -> dict[str, Any]:
        ratio = self.student.relative_cost / self.guided.relative_cost
        return self._claim(
            "C1",
            "Distillation reaches the quality of guidance, which is above the base, at half the forward passes",
            [
                self._reached(self.student),
                self._difference(self.guided, self.start, "quality", self.headline.quality),
                Part(f"forward passes = {ratio:g} of those of guidance", "holds" if ratio <= 0.5 else "fails"),
            ],
            self.student,
        )

    def guidance_costs_diversity(self) -> dict[str, Any]:
        """The stick of the reward decides; the other one is shown."""
        stick, shown_only = self.headline.diversity, self.headline.independent
        others = [self.guided, self.student]
        parts = [self._difference(self.start, other, "diversity", stick) for other in others]
        also = [self._difference(self.start, other, "diversity", shown_only) for other in others if shown_only]
        return self._claim(
            "C2",
            "Guidance takes diversity, and pure distillation inherits the loss",
            [*parts, *(replace(part, text=f"{part.text} (not part of the verdict)", decides=False) for part in also)],
            self.student,
        )

    def reward_restores_diversity(self, diverse: System) -> dict[str, Any]:
        parts = [self._difference(diverse, self.guided, "diversity", stick) for stick in self._sticks]
        return self._claim(
            "C3",
            "The diversity reward gives diversity back, also under a measure that was no reward",
            parts + self._without_independent,
            diverse,
        )

    def merge_is_above_equal_cost(self, merge: System) -> dict[str, Any]:
        """Along the quality axis: plain sampling reaches no guided quality at any diversity, so the other axis says nothing."""
        equal = [system for system in self.baselines if system.relative_cost <= merge.relative_cost]
        # A system of little diversity must not count as above a front that ends before its quality.
        as_diverse = self._difference(merge, self.guided, "diversity", self.headline.diversity)
        return self._claim(
            "C4a",
            "The merge reaches the quality and the diversity of guidance, above the front of every baseline of equal cost",
            [*self._above_front(merge, equal, "of equal cost", along="quality"), as_diverse],
            merge,
        )

    def merge_is_above_all(self, merge: System) -> dict[str, Any]:
        return self._claim(
            "C4b",
            "The merge reaches the quality of guidance, above the front of all baselines, guidance among them",
            self._above_front(merge, self.baselines, "of any cost"),
            merge,
        )

    @property
    def _open(self) -> list[Part]:
        """What leaves every claim open: quality and diversity can be bought where nobody guards them, and few prompts decide
        nothing."""
        prompts, found = len(self.start.prompts), []
        if not self.guards:
            found.append(Part("no guards are named, so a degenerate student could hold: name some", "undecided"))
        if prompts < LEAST_PROMPTS:
            text = f"{prompts} prompts are fewer than the {LEAST_PROMPTS} that an interval needs"
            found.append(Part(text, "undecided"))
        return found

    def _above_front(self, merge: System, front: Sequence[System], which: str, along: str = "diversity") -> list[Part]:
        heights = [self._height(merge, front, which, stick, along) for stick in self._sticks] if front else []
        nobody = [] if front else [Part(f"there is no baseline {which}", "undecided")]
        return [self._reached(merge), *heights, *nobody, *self._without_independent]

    @property
    def _sticks(self) -> list[str]:
        """The measures of diversity that decide: that of the reward, and one that was no reward."""
        return [each for each in (self.headline.diversity, self.headline.independent) if each is not None]

    @property
    def _without_independent(self) -> list[Part]:
        if self.headline.independent is not None:
            return []
        return [Part("`headline.independent` names no measure of diversity that was no reward", "undecided")]

    def _reached(self, system: System) -> Part:
        return self._compared(
            [system, self.guided],
            [self.headline.quality],
            f"quality({system.name}) - quality({self.guided.name})",
            between,
            lambda interval: not_below(interval, self.margin),
            f", margin {self.margin:g}",
        )

    def _difference(self, left: System, right: System, axis: str, metric: str) -> Part:
        what = axis if metric in (axis, self.headline.quality) else metric
        return self._compared(
            [left, right],
            [metric],
            f"{what}({left.name}) - {what}({right.name})",
            between,
            above,
        )

    def _height(self, merge: System, front: Sequence[System], which: str, stick: str, along: str) -> Part:
        axes = [self.headline.quality, stick] if along == "diversity" else [stick, self.headline.quality]
        height = "height" if along == "diversity" else "height in quality"
        return self._compared(
            [merge, *front],
            axes,
            f"{height} of {merge.name} above the front of {len(front)} baselines {which} and their mixtures,"
            f" under {stick}",
            lambda means: height_of(0, means, slice(1, None)),
            above,
            short_of="quality" if along == "diversity" else "diversity",
        )

    @staticmethod
    def _compared(
        systems: Sequence[System],
        metrics: Sequence[str],
        text: str,
        measure: Callable[[Resampler], Any],
        verdict: Callable[[Any], Verdict],
        more: str = "",
        short_of: str = "quality",
    ) -> Part:
        """A part with its interval; undecided where few prompts, or none, have a value in all of the systems."""
        try:
            means = resampler(systems, metrics)
        except ValueError as error:
            return Part(f"{text}: {error}", "undecided")
        interval, few = measure(means), shortage(means.prompts)
        text = f"{text} = {shown(interval, short_of)}{more}{_left_out(systems, metrics)}"
        return Part(f"{text}: {few}", "undecided", interval) if few else Part(text, verdict(interval), interval)

    def _claim(self, name: str, claim: str, parts: Sequence[Part], guarded: System) -> dict[str, Any]:
        guards = [self._guard(guard, guarded) for guard in self.guards]
        parts = [*parts, *self._open]
        evidence = [part.text for part in parts]
        evidence += [f"guard {each['text']}: {each['verdict']}" for each in guards]
        verdict = all_of(*(part.verdict for part in parts if part.decides), *(each["verdict"] for each in guards))
        return {
            "name": name,
            "claim": claim,
            "verdict": "undecided" if len(self.start.prompts) < LEAST_PROMPTS else verdict,
            "evidence": "; ".join(evidence),
            "parts": [part.entry() for part in parts],
            "guards": guards,
        }

    def _guard(self, guard: Guard, system: System) -> dict[str, Any]:
        entry: dict[str, Any] = {"system": system.name, "metric": guard.metric, "bound": str(guard)}
        unguarded = [each.name for each in (system, self.start) if guard.metric not in each.values]
        if unguarded:
            text = f"{guard} of {system.name}: {' and '.join(unguarded)} was evaluated without {guard.metric}"
            return entry | {"verdict": "undecided", "value": None, "text": text}
        involved = [system, self.start] if guard.factor else [system]
        try:
            prompts = resampler(involved, [guard.metric]).prompts
        except ValueError as error:
            return entry | {"verdict": "undecided", "value": None, "text": f"{guard} of {system.name}: {error}"}
        value, few = guard.value(system), shortage(prompts)
        text = f"{guard} of {system.name}, which has {plainly(value)}{_left_out(involved, [guard.metric])}"
        verdict = "undecided" if few else guard.verdict(guard.excess(system, self.start))
        return entry | {"verdict": verdict, "value": value._asdict(), "text": f"{text}, but {few}" if few else text}


def _left_out(systems: Iterable[System], metrics: Sequence[str]) -> str:
    """Words about the prompts that a comparison leaves out."""
    lost = missing(list(systems), metrics)
    prompts = ", ".join(f"{number} where {metric} is NaN" for metric, number in lost.items())
    return f" (prompts left out: {prompts})" if prompts else ""


def shown(interval: Interval | Height, short_of: str = "quality") -> str:
    """``+0.012 [-0.003, +0.027]``, and whether a front has the quality (or the diversity) at all."""
    text = signed(Interval(*interval[:3]))
    share = interval.beyond_share if isinstance(interval, Height) else 0.0
    if share < 0.005:
        return text
    when = "" if share > 0.995 else f" in {100 * share:.0f} % of the resamples"
    return f"{text} (no baseline has this {short_of}{when}: compared with the best)"


def finding(systems: Mapping[str, System], names: Claims, headline: Headline) -> str:
    """One neutral line for the picture: the merge of the claims (or their student) against the guidance that was distilled."""
    merge, guided = systems[names.shown], systems[names.guidance]
    found = []
    for axis, metric in (("quality", headline.quality), ("diversity", headline.diversity)):
        try:
            found.append(f"{axis} {difference(merge, guided, metric).mean:+.3f}")
        except ValueError:  # a metric that is NaN everywhere in one of them
            found.append(f"{axis} unknown")
    cost = "half its cost" if merge.relative_cost * 2 == guided.relative_cost else "equal cost"
    return f"{merge.name}: {', '.join(found)} against {guided.name}, at {cost}"
