"""Command-line overrides as the recipe they make: what LightningCLI does, repeated to say what is wrong with them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

_NOT_OVERRIDES = ("-c", "--config", "-h", "--help", "--print_config")
_SPEC_KEYS = ("class_path", "init_args", "dict_kwargs")


@dataclass(frozen=True)
class Override:
    """``--a.b.c=value``, or with ``append`` ``--a.b.c+=value``."""

    path: tuple[str, ...]
    value: Any
    append: bool = False

    @classmethod
    def of(cls, key: str, value: Any) -> Override:
        """The override of a dotted key; ``a.b+`` appends."""
        return cls(tuple(key.removesuffix("+").split(".")), value, key.endswith("+"))


def overrides_of(words: Sequence[str]) -> list[Override]:
    """The overrides among the words of a command line.

    Example:
        >>> overrides_of(["--config", "a.yaml", "--trainer.devices", "2", "--model.losses.kl.init_args.weight=9"])[0]
        Override(path=('trainer', 'devices'), value='2', append=False)
    """
    found = []
    words = list(words)
    while words:
        name, equals, value = words.pop(0).partition("=")
        if not equals and words and not words[0].startswith("--"):
            value = words.pop(0)
        if name.startswith("--") and name.split("=")[0] not in _NOT_OVERRIDES and not name.endswith(".help"):
            found.append(Override.of(name[2:], _loaded(value)))
    return found


def _loaded(value: str) -> Any:
    # Only what is plainly no scalar: a scalar's type is that of its key.
    if value in ("null", "~"):
        return None
    if value[:1] in "{[" and value:
        try:
            return yaml.safe_load(value)
        except yaml.YAMLError:
            return value
    return value


def put(recipe: dict[str, Any], override: Override) -> dict[str, Any]:
    """The recipe with the override in its place; ``init_args`` may be left out of the path."""
    result = copy.deepcopy(recipe)
    node: Any = result
    *parents, last = override.path
    for key in parents:
        node = _inside(node, key)
        node[key] = _opened(node.get(key))
        node = node[key][-1] if isinstance(node[key], list) and node[key] else node[key]
    node = _inside(node, last)
    old = node.get(last)
    if override.append:
        node[last] = [*(old if isinstance(old, list) else []), override.value]
    elif last == "class_path" and old != override.value:
        node.clear()
        node["class_path"] = override.value
    elif isinstance(old, dict) and "class_path" in old and isinstance(override.value, str):
        node[last] = old if old["class_path"] == override.value else {"class_path": override.value}
    elif isinstance(old, dict) and isinstance(override.value, dict):
        node[last] = {**old, **override.value}
    else:
        node[last] = override.value
    return result


def _opened(value: Any) -> Any:
    if isinstance(value, str):
        return {"class_path": value}
    return value if isinstance(value, (dict, list)) else {}


def _inside(node: Any, key: str) -> Any:
    """Where a key of this node lives: among the arguments of the class, when the node names one."""
    if isinstance(node, list):
        node = node[-1] if node and isinstance(node[-1], dict) else {}
    if "class_path" in node and key not in _SPEC_KEYS:
        if not isinstance(node.get("init_args"), dict):
            node["init_args"] = {}
        return node["init_args"]
    return node
