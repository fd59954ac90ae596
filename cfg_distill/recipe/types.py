"""Type hints in words, and the classes in them."""

from __future__ import annotations

import enum
import inspect
from collections.abc import Callable
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

_WORDS = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    NoneType: "null",
    dict: "keys and values",
    list: "a list",
    tuple: "a list",
    Path: "a path",
}


_MANY = {int: "whole numbers", float: "numbers", str: "texts", Path: "paths"}


def members(expected: Any) -> tuple[Any, ...]:
    """The alternatives of a union; any other type alone."""
    return get_args(expected) if get_origin(expected) in (Union, UnionType) else (expected,)


def is_plain_class(expected: Any) -> bool:
    """Whether a value of this type is written as class_path and init_args."""
    scalar = (int, float, str, bytes, bool, complex, enum.Enum, Path, dict, list, tuple, set, NoneType)
    if expected is Any:  # a class since Python 3.11
        return False
    return inspect.isclass(expected) and get_origin(expected) is None and not issubclass(expected, scalar)


def classes_of(expected: Any) -> tuple[type, ...]:
    """The classes that a value of this type can be an instance of, or can make when it is called."""
    found: list[type] = []
    for option in members(expected):
        if get_origin(option) is Callable:
            found += classes_of(get_args(option)[1]) if get_args(option) else ()
        elif is_plain_class(option):
            found.append(option)
    return tuple(found)


def describe(expected: Any) -> str:
    """A type hint in words.

    Example:
        >>> describe(int | None), describe(Literal["sum", "mean"]), describe(dict[str, float]), describe(list[int])
        ('a whole number or null', "one of 'sum', 'mean'", 'keys and values', 'a list of whole numbers')
    """
    options = members(expected)
    if len(options) > 1:
        return " or ".join(dict.fromkeys(describe(option) for option in options))
    origin = get_origin(expected)
    if origin is Literal:
        return f"one of {', '.join(map(repr, get_args(expected)))}"
    if origin is Callable:
        return " or ".join(f"a {made.__name__}" for made in classes_of(expected)) or "a function"
    if origin is list and get_args(expected)[0] in _MANY:
        return f"a list of {_MANY[get_args(expected)[0]]}"
    if (origin or expected) in _WORDS:
        return _WORDS[origin or expected]
    if origin is not None:
        return "a list" if not get_args(expected) or len(get_args(expected)) == 1 else "keys and values"
    return f"a {expected.__name__}" if inspect.isclass(expected) else str(expected)
