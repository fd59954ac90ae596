"""What a metric is, in the words of its own class. The source is read, not run: a page needs no torch."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import cfg_distill

_ROLE = re.compile(r":\w+:`~?(?:[\w.]*\.)?(\w+)`")
"""A reference of Sphinx, such as ``:func:`cfg_distill.rewards.pairwise_diversity```: its last name is kept."""

_SEE = re.compile(r"[;:,] (?:see )?`\w+`(?=[.,])")
"""A pointer to a function, which a reader of a page cannot follow: ``; see `rest_share` ``."""


def meaning_of(spec: Any) -> str:
    """The first sentences of the docstring of the class that a study's metric names; empty where there are none.

    Args:
        spec: class_path and init_args.

    Example:
        >>> meaning_of({"class_path": "cfg_distill.metrics.DistinctN"})[:10]
        'Different '
    """
    path = spec.get("class_path", "") if isinstance(spec, dict) else str(spec)
    module, _, name = path.rpartition(".")
    return _meaning(module, name) if module else ""


@cache
def _meaning(module: str, name: str) -> str:
    for file in _sources(module):
        try:
            tree = ast.parse(file.read_text(encoding="utf-8"))
        except (OSError, SyntaxError, ValueError):
            continue
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and node.name == name:
                text = inspect.cleandoc(ast.get_docstring(node) or "")
                plain = _ROLE.sub(r"`\1`", text.split("\n\n")[0].replace("``", "`"))
                return _SEE.sub("", " ".join(plain.split()))
    return ""


def _sources(module: str) -> Iterator[Path]:
    """The files that may define a class of a module: its own, then the others of its folder, which it may re-export."""
    parts = module.split(".")
    roots = [Path(cfg_distill.__file__).parent.parent] if parts[0] == cfg_distill.__name__ else map(Path, sys.path)
    for root in roots:
        place = root.joinpath(*parts)
        own = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
        if own.is_file():
            yield own
            if len(parts) > 1:
                yield from sorted(own.parent.glob("*.py"))
            return
