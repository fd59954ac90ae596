"""The keys that a class takes in a recipe, and what its docstring says of them: for docs/keys.md, and for editors."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from functools import cache
from typing import Any

import docstring_parser
import torchmetrics
from jsonargparse import ArgumentParser


@dataclass(frozen=True)
class Key:
    """One key of a class.

    Attributes:
        path: dotted where the key lies inside a dataclass that the class holds.
        expected: its type; the dataclass where ``holds`` is set.
        default: what a recipe without the key gets.
        required: whether a recipe must have the key.
        holds: whether further keys lie under this one.
    """

    path: str
    expected: Any
    default: Any
    required: bool
    holds: bool


@cache
def keys_of(cls: type) -> tuple[Key, ...]:
    """What jsonargparse takes for a class, without what torchmetrics adds to every metric."""
    skip = {action.dest for action in _actions(torchmetrics.Metric)} if issubclass(cls, torchmetrics.Metric) else set()
    found = []
    for action in _actions(cls):
        if action.dest not in skip and action.dest.split(".")[-1] != "help":
            held = vars(action).get("basetype")  # of jsonargparse's action for a group of keys
            found.append(Key(action.dest, held or action._typehint, action.default, action.required, held is not None))
    return tuple(found)


def _actions(cls: type) -> list[Any]:
    parser = ArgumentParser(exit_on_error=False)
    # The first argument of an optimiser or a scheduler is no key: the module gives it.
    first = next(iter(inspect.signature(cls).parameters.values()), None)
    given = first is not None and first.name in ("params", "optimizer") and first.default is first.empty
    skip = {1} if given else None
    parser.add_class_arguments(cls, skip=skip, fail_untyped=False)
    return parser._actions


def text_of(cls: type, name: str) -> str:
    """What the docstring says of an argument: of the class or, where it only refers to another one, of its bases."""
    said = [
        each.description or ""
        for base in cls.__mro__
        for each in docstring_parser.parse(base.__doc__ or "").params
        if name in each.arg_name.split(", ")
    ]
    text = next((text for text in said if not text.startswith("see :class:")), "")
    return _line(text).removesuffix(".")


def summary_of(cls: type) -> str:
    """The first paragraph of a class's docstring."""
    return _line((inspect.getdoc(cls) or "").split("\n\n")[0])


def _line(text: str) -> str:
    """A piece of a docstring in one line of markdown."""
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text).replace("``", "`")
    return " ".join(re.sub(r"\bNone\b", "null", text).split())
