"""Distil classifier-free guidance into a model that needs none, and keep its samples diverse.

Importing this package is light: torch and lightning are imported when ``cfg_distill.CFGDistillation`` is first used.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cfg_distill.distillation import CFGDistillation

__version__ = "0.1.0"
__all__ = ["CFGDistillation", "__version__"]

_MOVED = {
    "cfg_distill.metrics.front": "cfg_distill.evaluation.front",
    "cfg_distill.samples": "cfg_distill.sampling",
    "cfg_distill.generators.opening": "cfg_distill.generators.loading",
    "cfg_distill.generators.products": "cfg_distill.generators.linear",
    "cfg_distill.generators.scored": "cfg_distill.generators.predictions",
}
"""Modules that users' classes of version 0.1 import, and where their names are now. To go after the next release."""


def __getattr__(name: str) -> Any:
    if name == "CFGDistillation":
        from cfg_distill.distillation import CFGDistillation

        return CFGDistillation
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class _Moved:
    """Imports a moved module under its old name, with a warning that names the new one.

    A finder and a loader without their base classes: importing those takes as long as all else here.
    """

    def find_spec(self, fullname: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in _MOVED else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        new = _MOVED[spec.name]
        warnings.warn(f"`{spec.name}` is `{new}` now: import from there.", FutureWarning, stacklevel=2)
        module = ModuleType(spec.name)
        module.__dict__.update(vars(importlib.import_module(new)))
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing: the names are there."""


sys.meta_path.append(_Moved())
