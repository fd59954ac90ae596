"""Systems (a model and how it is sampled) on held-out prompts: values per prompt, comparisons, the front, written samples.

Importing this room loads no torch until one of its names is used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from cfg_distill.evaluation.headline import Headline

if TYPE_CHECKING:
    from cfg_distill.evaluation.compare import difference, height_above
    from cfg_distill.evaluation.figure import draw_front, front_figure
    from cfg_distill.evaluation.measure import evaluate
    from cfg_distill.evaluation.models import evaluate_models
    from cfg_distill.evaluation.system import System
    from cfg_distill.evaluation.table import front_table

__all__ = [
    "Headline",
    "System",
    "difference",
    "draw_front",
    "evaluate",
    "evaluate_models",
    "front_figure",
    "front_table",
    "height_above",
]
_HOMES = {
    "System": "system",
    "difference": "compare",
    "draw_front": "figure",
    "evaluate": "measure",
    "evaluate_models": "models",
    "front_figure": "figure",
    "front_table": "table",
    "height_above": "compare",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
