"""Distil classifier-free guidance into a model that needs none, and keep its samples diverse.

Importing this package is light: torch and lightning are imported when ``cfg_distill.CFGDistillation`` is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cfg_distill.distillation import CFGDistillation

__version__ = "0.1.0"
__all__ = ["CFGDistillation", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "CFGDistillation":
        from cfg_distill.distillation import CFGDistillation

        return CFGDistillation
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
