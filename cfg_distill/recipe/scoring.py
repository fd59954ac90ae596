"""Callbacks that score the validation prompts, and why they cannot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from cfg_distill.data import PromptData
from cfg_distill.data.reading import together
from cfg_distill.errors import Problem


@runtime_checkable
class Scoring(Protocol):
    """A callback that scores the validation prompts: metrics by name, which may say why they cannot."""

    metrics: Mapping[str, Any]


@runtime_checkable
class ReadsPrompts(Protocol):
    """A metric that reads the prompts of what it scores."""

    def problems_of_prompts(self, prompts: Sequence[str]) -> Sequence[Problem]: ...


def problems_of_scoring(callbacks: Mapping[str, Any], data: PromptData) -> list[Problem]:
    """Validation prompts that a metric of a callback does not understand: else the first validation would end the fit.

    Args:
        callbacks: by the path in the recipe of their arguments.
        data: that was set up. The keys are relative to it, or paths from the root of the recipe.
    """
    prompts = [str(each) for each in data.prompts.get("validation", ())]
    found = []
    for key, callback in callbacks.items():
        # A protocol looks at names alone: the `metrics` of a user's callback may be a list of the names of what is logged.
        scores = isinstance(callback, Scoring) and isinstance(callback.metrics, Mapping)
        for name, metric in callback.metrics.items() if scores else ():
            place = f"/{key}.metrics.{name}.init_args"
            given = metric.problems_of_prompts(prompts) if isinstance(metric, ReadsPrompts) else ()
            for each in together(given, data.files["validation"], data.field):
                found.append(Problem(f"{place}.{each.path}" if each.path else "validation", each.text))
    return found
