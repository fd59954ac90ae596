"""Rows of a table as text."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def aligned(rows: Sequence[Sequence[str]], ruled: Collection[int] = (1,)) -> list[str]:
    """A line for each row, whose cells begin below each other.

    Args:
        rows: of as many cells each, the heads first.
        ruled: numbers of the rows, from 0, above which there is a line of dashes.

    Example:
        >>> print(*aligned([["system", "quality"], ["base", "0.9"]]), sep="\\n")
        system  quality
        ------  -------
        base    0.9
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    for number in sorted(ruled, reverse=True):
        lines.insert(number, "  ".join("-" * width for width in widths))
    return lines
