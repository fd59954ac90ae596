"""Merging: arithmetic on state dicts, and the same on Hugging Face folders, a few tensors in memory at a time.

Torch is imported with the first name that needs it, so that the command line can list the methods at once.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from cfg_distill.merging.methods import METHODS, Method, problems_of_merge

if TYPE_CHECKING:
    from cfg_distill.merging.adapters import merge_adapters
    from cfg_distill.merging.arithmetic import ema, lerp, liti, merge_states, slerp, soup, weighted
    from cfg_distill.merging.folders import merge_folders

__all__ = [
    "METHODS",
    "Method",
    "ema",
    "lerp",
    "liti",
    "merge_adapters",
    "merge_folders",
    "merge_states",
    "problems_of_merge",
    "slerp",
    "soup",
    "weighted",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    place = {"merge_folders": "folders", "merge_adapters": "adapters"}.get(name, "arithmetic")
    return getattr(import_module(f"{__name__}.{place}"), name)
