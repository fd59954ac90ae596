"""The methods of merging: how many models each takes, what its weights mean, and what is wrong with a request."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from cfg_distill.errors import Problem, nearest


@dataclass(frozen=True)
class Method:
    """One way to merge.

    Attributes:
        summary: what it computes, in a line.
        models: how many models it takes; None for ``least`` or more.
        weights: ``shares``, one per model, in [0, 1], that sum to 1; ``line``, two that sum to 1, where one below 0 goes
            beyond the other model; ``one``, a single number in [0, 1]; ``none``; ``any``, one per model.
        start: whether it needs the model that all others were trained from.
        least: the fewest models it takes.
    """

    summary: str
    models: int | None
    weights: Literal["shares", "line", "one", "none", "any"]
    start: bool = False
    least: int = 2


FARTHEST = 5
"""The largest weight of ``lerp``, so that a percentage is no knob."""

METHODS: dict[str, Method] = {
    "lerp": Method("(1 - l) A + l B; weights 1 - l and l; l above 1 goes beyond B", models=2, weights="line"),
    "slerp": Method("along the arc between task vectors, tensor by tensor", models=2, weights="shares", start=True),
    "liti": Method("(1 - e) start + e A; weight e", models=1, weights="one", start=True),
    "soup": Method("uniform mean", models=None, weights="none"),
    "weighted": Method("weighted mean", models=None, weights="shares"),
    "sum": Method(
        "start + w (A - start) + ...; any weights, one per model", models=None, weights="any", start=True, least=1
    ),
    "ema": Method("moving average over checkpoints, oldest first; weight: the decay", models=None, weights="one"),
}


def problems_of_merge(method: str, num_models: int, weights: Sequence[float], start: bool) -> list[Problem]:
    """What is wrong with a merge, before any file is read; the problems name the keys of a merge.

    Args:
        method: a name of :data:`METHODS`.
        num_models: how many models are given, the start model not counted.
        weights: the weights given.
        start: whether a start model is given.
    """
    if method not in METHODS:
        return [
            Problem("method", f"expected one of {list(METHODS)}, but got {method!r}.{nearest(str(method), METHODS)}")
        ]
    rule = METHODS[method]
    found = []
    if rule.models is not None and num_models != rule.models:
        found.append(
            Problem("models", f"expected exactly {rule.models} for the method {method}, but got {num_models}.")
        )
    if rule.models is None and num_models < rule.least:
        found.append(
            Problem("models", f"expected at least {rule.least} for the method {method}, but got {num_models}.")
        )
    if rule.start and not start:
        found.append(
            Problem("start", f"the method {method} needs the model that all others were trained from. Name that model.")
        )
    if start and not rule.start:
        others = [name for name, each in METHODS.items() if each.start]
        found.append(Problem("start", f"the method {method} takes none. Leave it out, or use one of {others}."))
    return found + _problems_of_weights(method, rule, num_models, weights)


def _problems_of_weights(method: str, rule: Method, num_models: int, weights: Sequence[float]) -> list[Problem]:
    def problem(text: str) -> list[Problem]:
        return [Problem("weights", text)]

    if rule.weights == "none":
        return problem(f"the method {method} takes none. Leave them out, or use `weighted`.") if weights else []
    each = rule.weights in ("shares", "line", "any")
    expected = num_models if each else 1
    if len(weights) != expected:
        meaning = "one per model" if each else rule.summary
        return problem(f"expected {expected} for the method {method} ({meaning}), but got {len(weights)}.")
    if strange := [weight for weight in weights if not math.isfinite(weight)]:
        return problem(f"expected finite numbers, but got {', '.join(map(str, strange))}.")
    outside = [weight for weight in weights if not 0 <= weight <= 1]
    if outside and rule.weights in ("shares", "one"):
        return problem(f"expected numbers in [0, 1], but got {', '.join(map(str, outside))}.")
    if rule.weights == "line" and any(abs(weight) > FARTHEST for weight in weights):
        return problem(f"expected numbers from {-FARTHEST} to {FARTHEST}, but got {', '.join(map(str, weights))}.")
    total = math.fsum(weights)
    if rule.weights in ("shares", "line") and abs(total - 1) > 1e-6:
        return problem(f"expected a sum of 1, but {' + '.join(map(str, weights))} = {total:.6g}. Scale them.")
    return []
