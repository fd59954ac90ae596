"""A climbed ladder as aligned text."""

from __future__ import annotations

from collections.abc import Callable

from cfg_distill.evaluation.front import Interval
from cfg_distill.evaluation.verdicts import Row, Validation
from cfg_distill.files.columns import aligned

_KINDS = {
    "quality": ("real", "guided", "base", "degenerate"),
    "diversity": ("different", "same"),
    "guard": ("real", "guided", "base", "degenerate"),
}
_MARKS = {"holds": " ", "unclear": "?", "bought": "!"}


def ladder_table(found: Validation) -> str:
    """One block per axis, one row per rung; then the verdicts, a line each.

    A value is a mean and half the width of its 95 % interval over prompts. Behind a value of quality or diversity stands ``!``
    where the rung buys the metric, and ``?`` where the prompts are too few to tell. Behind a guard's value stands ``*`` where
    the guard sees the rung.
    """
    blocks = [_block(found, axis) for axis in _KINDS if axis in found.axes.values()]
    note = (
        f"{found.prompts} prompts, {found.samples} samples of each; ±: 95 % bootstrap intervals over prompts."
        "  ! buys the metric  ? too few prompts to tell  * seen by the guard"
    )
    return "\n\n".join([*blocks, note, "\n".join(_verdicts(found))])


def _block(found: Validation, axis: str) -> str:
    metrics = [name for name, its_axis in found.axes.items() if its_axis == axis]
    mark = _seen_mark(found) if axis == "guard" else _verdict_mark(found)
    cells = [[axis, "kind", *metrics]]
    for row in found.rows:
        if row.kind in _KINDS[axis]:
            cells.append([row.name, row.kind, *(_cell(row.values[metric], mark(row, metric)) for metric in metrics)])
    return "\n".join(aligned(cells))


def _cell(value: Interval | None, mark: str) -> str:
    return f"-{mark}" if value is None else f"{value.mean:.3f} ±{(value.high - value.low) / 2:.3f}{mark}"


def _verdict_mark(found: Validation) -> Callable[[Row, str], str]:
    def mark(row: Row, metric: str) -> str:
        outcomes = {each.outcome for each in found.verdicts if (each.rung, each.metric) == (row.name, metric)}
        return next((sign for outcome, sign in reversed(_MARKS.items()) if outcome in outcomes), " ")

    return mark


def _seen_mark(found: Validation) -> Callable[[Row, str], str]:
    return lambda row, metric: "*" if row.kind == "degenerate" and metric in found.seen[row.name] else " "


def _verdicts(found: Validation) -> list[str]:
    sticks = [name for name, axis in found.axes.items() if axis != "guard"]
    rows = [(name, _sentence(found, name)) for name in sticks] + [
        (name, f"not run: {reason}") for name, reason in found.not_run.items()
    ]
    width = max(map(len, (name for name, _ in rows)), default=0)
    lines = [f"{name:{width}}  {text}" for name, text in rows]
    unseen = ", ".join(found.unseen)
    lines.append(f"Seen by no guard and no metric of quality: {unseen}." if unseen else _all_seen(found))
    return [line for line in lines if line]


def _all_seen(found: Validation) -> str:
    return "Every degenerate kind is seen by a guard or a metric of quality." if found.seen else ""


def _sentence(found: Validation, metric: str) -> str:
    """The verdict on one metric.

    A guided model that buys a metric of quality does not cheat. But the metric is saturated: it takes guidance for better
    than the real.
    """
    if not any(each.metric == metric for each in found.verdicts):
        return "not judged: the ladder has no rungs for it"
    guided = {row.name for row in found.rows if row.kind == "guided"}
    bought = found.buyers(metric)
    above = [name for name in bought if name in guided]
    buyers = [name for name in bought if name not in guided]
    parts = [f"bought by {', '.join(buyers)}"] if buyers else []
    parts += [f"saturated: {', '.join(above)} above real"] if above else []
    parts += [f"unclear for {', '.join(names)}"] if (names := found.buyers(metric, "unclear")) else []
    return "; ".join(parts) or "holds"
