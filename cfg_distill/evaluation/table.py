"""The front as aligned text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cfg_distill.evaluation.front import ROWS
from cfg_distill.evaluation.intervals import LEAST_PROMPTS, LEAST_TRAINING_SEEDS
from cfg_distill.evaluation.system import System
from cfg_distill.files.columns import aligned

Point = Mapping[str, Any]
NAMED = 3
"""The most prompts without a value that a note names."""


def front_table(points: Sequence[Point]) -> str:
    """One block per axis, one row per system: relative cost, then each metric as mean and half the width of its 95 % interval.

    A star marks the best mean of each quality and diversity metric. Guards show failures, and have no best. The rows of a
    ladder stand below a line, without cost and star.

    Args:
        points: entries of front.json.
    """
    axes = [axis for axis in ("quality", "diversity", "guards") if any(point[axis] for point in points)]
    return "\n\n".join(_block(points, axis, has_best=axis != "guards") for axis in axes)


def _block(points: Sequence[Point], axis: str, has_best: bool) -> str:
    metrics = list(dict.fromkeys(metric for point in points for metric in point[axis]))
    systems = [point for point in points if point["kind"] not in ROWS]
    best = {
        metric: max((p[axis][metric]["mean"] for p in systems if metric in p[axis]), default=None) for metric in metrics
    }
    heads = [
        metric if metric == axis else f"{axis}: {metric}" if n == 0 else metric for n, metric in enumerate(metrics)
    ]
    rows = [["system", "cost", *heads]]
    ladder = [point for point in points if point["kind"] in ROWS]
    for point in systems + ladder:
        is_system = point["kind"] not in ROWS
        cells = [point["name"], f"{point['relative_cost']:g}x" if is_system else ""]
        for metric in metrics:
            value = point[axis].get(metric)
            star = "*" if value and has_best and is_system and value["mean"] == best[metric] else " "
            cells.append(f"{value['mean']:.3f} ±{(value['high'] - value['low']) / 2:.3f}{star}" if value else "-")
        rows.append(cells)
    return "\n".join(aligned(rows, ruled=(1, 1 + len(systems)) if ladder else (1,)))


def hypervolume_line(entry: Mapping[str, Any]) -> str:
    """One entry of :func:`cfg_distill.evaluation.front.hypervolumes` as a line.

    Example:
        >>> hypervolume_line({"quality": "q", "diversity": "d", "reference": {"q": 0.0, "d": 0.0}, "baselines": 0.4,
        ...                   "students": None, "all": 0.4, "front": ["base"]})
        'Hypervolume of q and d above (0, 0): baselines 0.400, all 0.400. Front: base.'
    """
    kinds = {"baselines": "baselines", "students": "students and merges", "all": "all"}
    volumes = [f"{words} {entry[kind]:.3f}" for kind, words in kinds.items() if entry[kind] is not None]
    corner = ", ".join(f"{value:g}" for value in entry["reference"].values())
    of = f"Hypervolume of {entry['quality']} and {entry['diversity']} above ({corner})"
    return f"{of}: {', '.join(volumes)}. Front: {'; '.join(entry['front'])}."


def note_of_rows(rows: Sequence[System], prompts: Sequence[str]) -> list[str]:
    """What a reader of the rows of a ladder must know: their prompts and samples, where these are not those of the systems.

    Args:
        rows: of a ladder.
        prompts: of the systems.
    """
    if not rows:
        return []
    own = rows[0].prompts
    shared = len(set(own) & set(prompts))
    which = (
        "other prompts" if not shared else "of these prompts" if shared == len(own) else "prompts, some of them others"
    )
    return [
        f"The rows real and degenerate show the range of each metric: samples that no system drew, {rows[0].samples} for each"
        f" of {len(own)} {which}."
    ]


def notes_of(systems: Sequence[System], stage: str = "report") -> list[str]:
    """What a reader of the intervals must know: what they do not hold, and values that are missing.

    Args:
        systems: all, in their order.
        stage: ``report``, or ``development`` for prompts that choices were made on.
    """
    notes = []
    if stage == "development":
        notes.append("These are development prompts: choices were made on them, so they are no evidence.")
    prompts = len(systems[0].prompts)
    if prompts < LEAST_PROMPTS:
        notes.append(
            f"{prompts} prompts are fewer than the {LEAST_PROMPTS} that an interval needs: it covers less than it says."
        )
    trained = [system for system in systems if system.chain]
    seeds = min((system.runs(next(iter(system.values))).shape[0] for system in trained if system.values), default=0)
    if seeds == 1:
        notes.append("One training seed: the intervals say nothing about another training run.")
    elif 0 < seeds < LEAST_TRAINING_SEEDS:
        notes.append(
            f"{seeds} training seeds are fewer than the {LEAST_TRAINING_SEEDS} that an interval needs: it is too wide to be of"
            " use."
        )
    holes: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for system in systems:
        for metric, lost in system.holes().items():
            holes.setdefault((metric, tuple(lost)), []).append(system.name)
    for (metric, without), names in holes.items():
        of = "every system" if len(names) == len(systems) else ", ".join(names)
        if len(without) == prompts:
            notes.append(f"{metric} is NaN on every prompt of {of}: it has no mean there.")
            continue
        shown = ", ".join(f"`{prompt}`" for prompt in without[:NAMED]) + (", ..." if len(without) > NAMED else "")
        notes.append(
            f"{metric} is NaN on {len(without)} of {prompts} prompts of {of} ({shown}): its means leave them out."
        )
    return notes
