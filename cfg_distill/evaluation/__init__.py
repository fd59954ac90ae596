"""Systems (a model and how it is sampled) on held-out prompts: values per prompt, comparisons, the front, written samples.

Importing this room imports no torch until one of its names is used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from cfg_distill.evaluation.headline import Headline

if TYPE_CHECKING:
    from cfg_distill.evaluation.compare import difference, height_above
    from cfg_distill.evaluation.figure import draw_front, front_figure
    from cfg_distill.evaluation.front import bootstrap_interval, hypervolume, hypervolumes, pareto
    from cfg_distill.evaluation.generating import GenerateRequest
    from cfg_distill.evaluation.intervals import Interval
    from cfg_distill.evaluation.ladder import Ladder, Rung, samples_of
    from cfg_distill.evaluation.measure import evaluate
    from cfg_distill.evaluation.models import evaluate_request
    from cfg_distill.evaluation.renderers import Renderer
    from cfg_distill.evaluation.requests import EvaluateRequest
    from cfg_distill.evaluation.system import System
    from cfg_distill.evaluation.table import front_table
    from cfg_distill.evaluation.validating import ValidateRequest
    from cfg_distill.evaluation.verdicts import Validation, rungs_as_systems, validate

__all__ = [
    "EvaluateRequest",
    "GenerateRequest",
    "Headline",
    "Interval",
    "Ladder",
    "Renderer",
    "Rung",
    "System",
    "ValidateRequest",
    "Validation",
    "bootstrap_interval",
    "difference",
    "draw_front",
    "evaluate",
    "evaluate_request",
    "front_figure",
    "front_table",
    "height_above",
    "hypervolume",
    "hypervolumes",
    "pareto",
    "rungs_as_systems",
    "samples_of",
    "validate",
]
_HOMES = {
    "compare": ("difference", "height_above"),
    "figure": ("draw_front", "front_figure"),
    "front": ("bootstrap_interval", "hypervolume", "hypervolumes", "pareto"),
    "generating": ("GenerateRequest",),
    "intervals": ("Interval",),
    "ladder": ("Ladder", "Rung", "samples_of"),
    "measure": ("evaluate",),
    "models": ("evaluate_request",),
    "renderers": ("Renderer",),
    "requests": ("EvaluateRequest",),
    "system": ("System",),
    "table": ("front_table",),
    "validating": ("ValidateRequest",),
    "verdicts": ("Validation", "rungs_as_systems", "validate"),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return vars(importlib.import_module(f"{__name__}.{module}"))[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
