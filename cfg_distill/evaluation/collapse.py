"""Curves of collapse: how a measure of k samples grows with k, for every system.

Metrics whose names differ in the number behind an ``@`` are one curve: ``distinct@1``, ``distinct@2``, ``distinct@4``. The
curve of :class:`~cfg_distill.metrics.DistinctAtK` is flat where a model has run out of new samples, as NoveltyBench draws it
(Zhang et al., arXiv 2504.05228). The input is the entries of front.json.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cfg_distill.evaluation.front import ROWS

PICTURE = "collapse.png"
Curve = dict[str, list[tuple[int, Mapping[str, float]]]]
"""System -> (k, mean with its interval), by rising k."""

MOST = 8
"""The most systems of one picture."""
_KINDS = ("student", "merge", "model", "base", "guidance")
"""The kinds of systems, in the order in which they are drawn."""
_AT = re.compile(r"(.+)@([1-9]\d*)")


def has_curves(metrics: Iterable[str]) -> bool:
    """Whether names of metrics make a curve.

    Example:
        >>> has_curves(["distinct@1", "distinct@2"]), has_curves(["distinct@1", "coverage@2"])
        (True, False)
    """
    return max(Counter(match[1] for metric in metrics if (match := _AT.fullmatch(metric))).values(), default=0) > 1


def curves_of(points: Sequence[Mapping[str, Any]], first: Sequence[str] = (), most: int = MOST) -> dict[str, Curve]:
    """The curves by the name of their measure.

    Args:
        points: entries of front.json.
        first: the systems that matter most; behind them come students, base and guidance.
        most: how many systems there are at most.

    Example:
        >>> cell = {"mean": 1.0, "low": 1.0, "high": 1.0}
        >>> point = {"name": "a", "kind": "student", "diversity": {"distinct@1": cell, "distinct@2": cell}}
        >>> {name: [k for k, _ in curve["a"]] for name, curve in curves_of([point]).items()}
        {'distinct': [1, 2]}
    """
    order = [*first, *(each["name"] for kind in _KINDS for each in points if each["kind"] == kind)]
    order += [each["name"] for each in points]
    systems = sorted((each for each in points if each["kind"] not in ROWS), key=lambda each: order.index(each["name"]))
    found: dict[str, Curve] = {}
    for point in systems:
        for axis in ("quality", "diversity", "guards"):
            for metric, cell in point.get(axis, {}).items():
                if match := _AT.fullmatch(metric):
                    found.setdefault(match[1], {}).setdefault(point["name"], []).append((int(match[2]), cell))
    drawn = {}
    for name, curve in found.items():
        long = {system: sorted(cells, key=lambda cell: cell[0]) for system, cells in curve.items() if len(cells) > 1}
        if long:
            drawn[name] = dict(list(long.items())[:most])
    return drawn
