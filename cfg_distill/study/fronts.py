"""The curve of students and merges against the fronts of the baselines: at equal cost, and at any cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cfg_distill.evaluation import Headline, System
from cfg_distill.evaluation.compare import (
    Height,
    dominated_share,
    height_of,
    hypervolume_difference,
    mean_height,
    missing,
    resampler,
)
from cfg_distill.evaluation.front import KINDS
from cfg_distill.evaluation.guards import Verdict
from cfg_distill.evaluation.intervals import Interval, plainly, shortage
from cfg_distill.study.claims import above, shown

COSTS = {"equal": "of equal cost", "any": "of any cost"}
"""The fronts that a curve is compared with: baselines of as many forward passes per token, and all."""


def fronts_of(systems: Sequence[System], headline: Headline, temperature: float | None = None) -> list[dict[str, Any]]:
    """The entry ``fronts`` of front.json: an entry for each measure of diversity and each cost that has baselines.

    Args:
        systems: all of the study.
        headline: the metrics.
        temperature: of the curve; None takes that of the first student.

    Returns:
        For each: ``quality``, ``diversity`` and ``cost``; the names of the ``baselines``; the ``curve``, for each of its
        systems the ``knob`` and the ``height`` with a ``verdict``; ``mean_height``, over the qualities of the curve;
        ``hypervolume``, of the curve less that of the baselines; ``dominated``, the share of the baselines that the curve beats
        in both metrics. The height and the share have a ``verdict`` too: a share holds above one half, and the mean height is
        undecided where there are fewer baselines than points. ``missing`` has the prompts that
        are left out, by metric; where no prompt is left, ``problem`` stands in place of the numbers.
    """
    curve = curve_of(systems, temperature)
    baselines = [system for system in systems if system.kind in KINDS["baselines"]]
    if not curve:
        return []
    cost = min(system.relative_cost for system in curve)
    fronts = {"equal": [system for system in baselines if system.relative_cost <= cost], "any": baselines}
    return [
        _entry(curve, front, headline.quality, diversity, each)
        for diversity in filter(None, (headline.diversity, headline.independent))
        for each, front in fronts.items()
        if front
    ]


def curve_of(systems: Sequence[System], temperature: float | None = None) -> list[System]:
    """The students and merges of one temperature, in the order of the knob. Systems without a knob count where none has one."""
    students = [system for system in systems if system.kind in KINDS["students"]]
    if temperature is None and students:
        temperature = students[0].temperature
    students = [system for system in students if system.temperature == temperature]
    knobs = [system for system in students if system.knob is not None]
    return sorted(knobs or students, key=lambda system: system.knob or 0.0)


def _entry(curve: Sequence[System], front: Sequence[System], quality: str, diversity: str, cost: str) -> dict[str, Any]:
    systems, places = [*curve, *front], range(len(curve), len(curve) + len(front))
    entry: dict[str, Any] = {
        "quality": quality,
        "diversity": diversity,
        "cost": cost,
        "baselines": [each.name for each in front],
    }
    entry |= {"missing": missing(systems, [quality, diversity])}
    try:
        means = resampler(systems, [quality, diversity])
    except ValueError as error:
        return entry | {"problem": str(error)}
    few = bool(shortage(means.prompts))

    def verdict(interval: Interval | Height) -> Verdict:
        return "undecided" if few else above(interval)

    def judged(interval: Interval) -> dict[str, float | Verdict]:
        return interval._asdict() | {"verdict": verdict(interval)}

    corner = np.minimum([values_M1.min() for values_M1 in means.all], 0.0).tolist()
    heights = [height_of(place, means, list(places)) for place in range(len(curve))]
    own = range(len(curve))
    share = dominated_share(means, own, places)
    mean = judged(mean_height(means, own, places))  # too high where few points make the front, and many the curve
    return entry | {
        "curve": [
            {"system": each.name, "knob": each.knob, "height": height._asdict(), "verdict": verdict(height)}
            for each, height in zip(curve, heights, strict=True)
        ],
        "mean_height": mean | ({"verdict": "undecided"} if len(places) < len(curve) else {}),
        # Without mixtures: more points have more volume, so this decides nothing.
        "hypervolume": hypervolume_difference(means, own, places, corner)._asdict() | {"reference": corner},
        "dominated": share._asdict() | {"verdict": verdict(Interval(*(number - 0.5 for number in share)))},
    }


def front_lines(entry: dict[str, Any]) -> str:
    """One entry of :func:`fronts_of` as lines of table.txt."""
    head = (
        f"Above the front of {len(entry['baselines'])} baselines {COSTS[entry['cost']]}, in {entry['quality']} and"
        f" {entry['diversity']} (each verdict for itself, not corrected for their number):"
    )
    if "problem" in entry:
        return f"{head} {entry['problem']}"
    rows = [
        (f"height of {point['system']}", shown(Height(**point["height"])), point["verdict"]) for point in entry["curve"]
    ]
    numbers = {
        key: Interval(*(entry[key][end] for end in Interval._fields))
        for key in ("mean_height", "hypervolume", "dominated")
    }
    rows.append(("mean height of the curve", shown(numbers["mean_height"]), entry["mean_height"]["verdict"]))
    rows.append(("hypervolume without mixtures, difference", shown(numbers["hypervolume"]), ""))
    rows.append(("share of baselines dominated", plainly(numbers["dominated"]), entry["dominated"]["verdict"]))
    width = max(len(name) for name, _, _ in rows)
    return "\n".join([head, *(f"  {verdict:9}  {name.ljust(width)}  {text}" for name, text, verdict in rows)])


def further_entries(
    systems: Sequence[System],
    headline: Headline,
    temperature: float | None,
    protocol: Mapping[str, Any],
    timing: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """The entries of front.json that only a study has, beside its claims.

    Args:
        systems: all of the study.
        headline: the metrics.
        temperature: of the curve; None takes that of the first student.
        protocol: what was sampled.
        timing: the measured seconds.
    """
    return {
        "protocol": dict(protocol),
        "fronts": fronts_of(systems, headline, temperature),
        "timing": list(timing),
    }


def lines_of(more: Mapping[str, Any]) -> str:
    """The further entries as they stand in table.txt."""
    blocks = [front_lines(entry) for entry in more.get("fronts", [])]
    if timing := more.get("timing"):
        head = f"Seconds per sample of {timing[0]['tokens']} tokens, one system at a time:"
        names = dict.fromkeys(each["system"] for each in timing)
        width = max(map(len, names))
        rows = {
            name: ", ".join(
                f"{each['seconds']:.4f} at {each['rows']} rows" for each in timing if each["system"] == name
            )
            for name in names
        }
        blocks.append("\n".join([head, *(f"  {name.ljust(width)}  {text}" for name, text in rows.items())]))
    return "".join(f"\n{block}\n" for block in blocks)
