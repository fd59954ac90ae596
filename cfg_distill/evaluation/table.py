"""The front as aligned text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Point = Mapping[str, Any]

_AXES = ("quality", "diversity", "guards")


def front_table(points: Sequence[Point]) -> str:
    """A row a system: relative cost, then every metric as mean +- half the width of its 95 % interval.

    A star marks the best mean of each quality and diversity metric. Guards show failures; they have no best.

    Args:
        points: entries of front.json.
    """
    columns = [(axis, metric) for axis in _AXES for metric in dict.fromkeys(m for p in points for m in p[axis])]
    best = {
        (axis, metric): max((p[axis][metric]["mean"] for p in points if metric in p[axis]), default=None)
        for axis, metric in columns
        if axis != "guards"
    }
    above, previous = ["", ""], ""
    for axis, _ in columns:
        above.append("" if axis == previous else axis)
        previous = axis
    rows = [above, ["system", "cost", *(metric for _, metric in columns)]]
    for point in points:
        cells = [point["name"], f"{point['relative_cost']:g}x"]
        for axis, metric in columns:
            value = point[axis].get(metric)
            star = "*" if value and value["mean"] == best.get((axis, metric)) else " "
            cells.append(f"{value['mean']:.3f} ±{(value['high'] - value['low']) / 2:.3f}{star}" if value else "-")
        rows.append(cells)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(2, "  ".join("-" * width for width in widths))
    return "\n".join(lines)
