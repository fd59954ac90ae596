"""Where the labels of a picture stand: beside their points, covering as little as possible. Boxes are in pixels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise, product
from typing import NamedTuple

_DIRECTIONS = [(1, 0.55), (-1, 0.55), (1, -0.55), (-1, -0.55), (0, 1), (0, -1), (1, 0), (-1, 0)]
_REACHES = (8.0, 12.0, 17.0, 24.0, 32.0)


class Box(NamedTuple):
    """A rectangle by its edges."""

    left: float
    low: float
    right: float
    high: float

    @classmethod
    def around(cls, x: float, y: float, width: float, height: float | None = None) -> Box:
        """A box around a point; without a height, a square."""
        height = width if height is None else height
        return cls(x - width / 2, y - height / 2, x + width / 2, y + height / 2)

    @property
    def area(self) -> float:
        return (self.right - self.left) * (self.high - self.low)

    def overlap(self, other: Box) -> float:
        """The area of what both cover.

        Example:
            >>> Box.around(0, 0, 2).overlap(Box.around(1, 1, 2))
            1.0
        """
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.high, other.high) - max(self.low, other.low)
        return max(width, 0.0) * max(height, 0.0)


class Label(NamedTuple):
    """A text beside a point: the point, and the size of the text."""

    x: float
    y: float
    width: float
    height: float


def placed(
    labels: Sequence[Label], points: Iterable[Box], lines: Iterable[Box], frame: Box, scale: float = 1.0
) -> list[tuple[float, float]]:
    """The centre of each label. Labels are placed in turn, each where it costs least.

    A place costs its distance from the point, what it covers of labels and points, half as much of lines, and what lies
    outside of the frame.

    Args:
        labels: in the order of their importance.
        points: boxes that no label may cover.
        lines: boxes that no label should cover.
        frame: the panel.
        scale: pixels of a typographic point.
    """
    taken, lined = list(points), list(lines)
    centres = []
    for x, y, width, height in labels:
        best: tuple[float, Box, tuple[float, float]] | None = None
        for reach, (across, up) in product(_REACHES, _DIRECTIONS):
            gap = reach * scale * 0.8
            centre = x + across * (width / 2 + gap), y + up * (height / 2 + gap)
            box = Box.around(*centre, width, height)
            cost = 20 * reach * scale
            cost += 12 * sum(box.overlap(other) for other in taken) + sum(box.overlap(other) for other in lined) / 2
            cost += 100 * (box.area - box.overlap(frame))
            if best is None or cost < best[0]:
                best = (cost, box, centre)
        assert best is not None
        taken.append(best[1])
        centres.append(best[2])
    return centres


def along(corners: Sequence[tuple[float, float]], size: float) -> list[Box]:
    """Small boxes along a line."""
    boxes = []
    for (x0, y0), (x1, y1) in pairwise(corners):
        steps = max(int(max(abs(x1 - x0), abs(y1 - y0)) / size), 1)
        boxes += [Box.around(x0 + (x1 - x0) * i / steps, y0 + (y1 - y0) * i / steps, size) for i in range(steps + 1)]
    return boxes
