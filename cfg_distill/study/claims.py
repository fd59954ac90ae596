"""The orderings that must hold (Cideron et al., ICLR 2025), each with a verdict and its evidence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from cfg_distill.evaluation import System, difference, height_above
from cfg_distill.evaluation.front import Interval
from cfg_distill.study.config import Claims, Headline

Verdict = Literal["holds", "fails", "undecided"]


def above(interval: Interval) -> Verdict:
    """Whether a difference is positive: decided when the interval leaves 0 out."""
    return "holds" if interval.low > 0 else "fails" if interval.high < 0 else "undecided"


def not_below(interval: Interval, margin: float) -> Verdict:
    """Whether a system reaches another up to a margin; it may be better. Decided when the interval is on one side."""
    return "holds" if interval.low > -margin else "fails" if interval.high < -margin else "undecided"


def all_of(*verdicts: Verdict) -> Verdict:
    """A claim of several parts: one that fails makes it fail, one undecided leaves it undecided."""
    return "fails" if "fails" in verdicts else "undecided" if "undecided" in verdicts else "holds"


def judge(systems: Mapping[str, System], names: Claims, headline: Headline) -> list[dict[str, str]]:
    """The claims of front.json: ``claim``, ``verdict``, ``evidence``.

    Verdicts rest on the headline quality and diversity. Where the headline names an independent measure of diversity,
    the evidence tells the difference under it too.

    Args:
        systems: name -> system, all of the study.
        names: which systems the orderings are about, and the margin within which a quality counts as reached.
        headline: the metrics.
    """
    start, guided = systems[names.start], systems[names.guidance]
    student, diverse, merge = systems[names.quality], systems[names.diversity], systems[names.merge]
    margin = names.margin

    def quality(left: System, right: System) -> Interval:
        return difference(left, right, headline.quality)

    def diversity(left: System, right: System) -> Interval:
        return difference(left, right, headline.diversity)

    def said(left: System, right: System) -> str:
        text = f"diversity({left.name}) - diversity({right.name}) = {shown(diversity(left, right))}"
        if headline.independent is None:
            return text
        return f"{text}, under {headline.independent} {shown(difference(left, right, headline.independent))}"

    def quality_said(left: System, right: System) -> str:
        return f"quality({left.name}) - quality({right.name}) = {shown(quality(left, right))}"

    baselines = [s for s in systems.values() if s.kind in ("base", "guidance")]
    height = height_above(merge, baselines, headline.quality, headline.diversity)
    ratio = student.relative_cost / guided.relative_cost
    judged: list[dict[str, str]] = [
        {
            "claim": "Distillation reaches the quality of guidance, which is above the base, at half its forward cost",
            "verdict": all_of(
                not_below(quality(student, guided), margin),
                above(quality(guided, start)),
                "holds" if ratio <= 0.5 else "fails",
            ),
            "evidence": f"{quality_said(student, guided)}, margin {margin:g}; {quality_said(guided, start)};"
            f" cost ratio {ratio:g}",
        },
        {
            "claim": "Guidance lowers diversity, and pure distillation inherits the loss",
            "verdict": all_of(above(diversity(start, guided)), above(diversity(start, student))),
            "evidence": f"{said(start, guided)}; {said(start, student)}",
        },
        {
            "claim": "With the diversity reward, diversity is above that of guidance",
            "verdict": above(diversity(diverse, guided)),
            "evidence": said(diverse, guided),
        },
        {
            "claim": "The half-way merge reaches the quality of guidance at more diversity, above the baselines' front",
            "verdict": all_of(
                not_below(quality(merge, guided), margin), above(diversity(merge, guided)), above(height)
            ),
            "evidence": f"{quality_said(merge, guided)}, margin {margin:g}; {said(merge, guided)};"
            f" height above the front of {len(baselines)} baselines and their mixtures = {shown(height)}",
        },
    ]
    if names.temperature:
        cooler = [start, *(systems[name] for name in names.temperature)]
        height = height_above(merge, cooler, headline.quality, headline.diversity)
        judged.append(
            {
                "claim": "The half-way merge is above the front of plain temperature",
                "verdict": above(height),
                "evidence": f"height of {merge.name} above the front of {', '.join(s.name for s in cooler)} and their"
                f" mixtures = {shown(height)}",
            }
        )
    return judged


def shown(interval: Interval) -> str:
    """``+0.012 [-0.003, +0.027]``."""
    return f"{interval.mean:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


def finding(systems: Mapping[str, System], names: Claims, headline: Headline) -> str:
    """One neutral line for the picture: the half-way merge against the guidance that was distilled."""
    merge, guided = systems[names.merge], systems[names.guidance]
    quality, diversity = (difference(merge, guided, metric).mean for metric in (headline.quality, headline.diversity))
    cost = "half its cost" if merge.relative_cost * 2 == guided.relative_cost else "equal cost"
    return f"{merge.name}: quality {quality:+.3f}, diversity {diversity:+.3f} against {guided.name}, at {cost}"
