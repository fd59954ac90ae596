"""Labels: beside their points, inside the frame, covering neither points nor each other."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from cfg_distill.evaluation.labels import Box, Label, along, placed

FRAME = Box(0, 0, 400, 400)


def test_a_label_alone_stands_beside_its_point() -> None:
    ((x, y),) = placed([Label(200, 200, 40, 14)], [Box.around(200, 200, 10)], [], FRAME)
    assert Box.around(x, y, 40, 14).overlap(Box.around(200, 200, 10)) == 0
    assert abs(x - 200) < 40 and abs(y - 200) < 20


@pytest.mark.parametrize("corner", [(3, 3), (397, 397), (3, 397), (397, 3)])
def test_a_label_at_the_edge_stays_inside(corner: tuple[float, float]) -> None:
    ((x, y),) = placed([Label(*corner, 60, 14)], [Box.around(*corner, 10)], [], FRAME)
    box = Box.around(x, y, 60, 14)
    assert box.overlap(FRAME) == pytest.approx(box.area)


def test_crowded_labels_do_not_cover_each_other() -> None:
    random = np.random.default_rng(0)
    labels = [Label(*random.uniform(120, 280, 2), 50, 14) for _ in range(12)]
    points = [Box.around(label.x, label.y, 10) for label in labels]
    boxes = [Box.around(*centre, 50, 14) for centre in placed(labels, points, [], FRAME)]
    assert all(a.overlap(b) == 0 for a, b in itertools.combinations(boxes, 2))
    assert all(box.overlap(point) == 0 for box in boxes for point in points)


def test_a_line_is_avoided_where_there_is_room() -> None:
    line = along([(0, 205), (400, 205)], 5)
    assert len(line) == 81
    ((x, y),) = placed([Label(200, 200, 40, 14)], [Box.around(200, 200, 8)], line, FRAME)
    assert sum(Box.around(x, y, 40, 14).overlap(box) for box in line) == 0
