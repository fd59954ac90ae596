"""Every problem of a recipe at once. jsonargparse stops at the first one; this walks the recipe beside its parser.

The walk knows what jsonargparse knows (it asks its parsers for the keys and types of every class), names keys by their
full path, and returns the recipe without what was wrong, so that the rest can be built and asked for its own problems.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
from collections.abc import Callable, Iterable, Sequence
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from jsonargparse import ArgumentError, ArgumentParser

from cfg_distill.recipe.types import classes_of, describe, is_plain_class, members

_DROPPED = object()
_SPEC_KEYS = ("class_path", "init_args", "dict_kwargs")


class Walk:
    """One walk over a recipe; ``problems`` collects what it meets, ``nulls`` those of them that a parser lets pass."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.nulls: list[str] = []

    def keys(self, parser: ArgumentParser, values: dict[str, Any], path: str = "") -> dict[str, Any]:
        """Check keys and values against a parser's arguments; returns the good ones."""
        actions = {action.dest: action for action in parser._actions if _takes_value(action)}
        before = len(self.problems)
        good = self._level(actions, values, "", path)
        complained = " ".join(self.problems[before:])
        for dest, action in actions.items():
            # A misspelled required key is one mistake, not two.
            if action.required and not _holds(values, dest) and f"`{dest.split('.')[-1]}`?" not in complained:
                self.problems.append(
                    f"Key `{path}{dest}`: expected {describe(_type(action))}, but it is missing. Set it."
                )
        return good

    def _level(self, actions: dict[str, Any], values: dict[str, Any], prefix: str, path: str) -> dict[str, Any]:
        known = list(
            dict.fromkeys(dest.removeprefix(prefix).split(".")[0] for dest in actions if dest.startswith(prefix))
        )
        good: dict[str, Any] = {}
        for raw, value in values.items():
            appends = isinstance(raw, str) and raw.endswith("+")
            key = raw.removesuffix("+") if appends else raw
            dest = f"{prefix}{key}"
            if key not in known:
                self.problems.append(unknown_key(path + dest, str(key), known))
            elif dest not in actions and isinstance(value, dict):
                good[raw] = self._level(actions, value, f"{dest}.", path)
            elif dest not in actions:
                if not isinstance(value, str):  # text may name a file that holds the keys
                    self.problems.append(f"Key `{path}{dest}`: expected keys and values, but got {value!r}.")
            else:
                checked = self.value(_type(actions[dest]), value, path + dest)
                if checked is not _DROPPED:
                    good[raw] = checked
        return good

    def value(self, expected: Any, value: Any, path: str) -> Any:
        """Check one value against a type; returns it without what is wrong in it, or a mark that nothing is left."""
        options = members(expected)
        classes = classes_of(expected)
        if value is None:
            if NoneType in options or Any in options or expected in (None, inspect.Parameter.empty):
                return value
            self.nulls.append(
                f"Key `{path}`: expected {describe(expected)}, but it is empty. Give a value, or remove the key."
            )
            self.problems.append(self.nulls[-1])
            return _DROPPED
        if isinstance(value, dict) and classes and (set(value) & set(_SPEC_KEYS) or len(options) == 1):
            return self._instance(expected, value, path)
        if (
            isinstance(value, str)
            and classes
            and all(is_plain_class(option) or option is NoneType for option in options)
        ):
            checked = self._instance(expected, {"class_path": value}, path)
            return checked if checked is _DROPPED else value
        for option in options:
            inside = get_args(option)
            if isinstance(value, dict) and get_origin(option) is dict and classes_of(inside[1]):
                return self._several(inside[1], value.items(), path, lambda key: f".{key}", dict)
            if isinstance(value, list) and get_origin(option) in (list, Iterable, Sequence) and classes_of(inside[0]):
                return self._several(
                    inside[0], enumerate(value), path, lambda key: f"[{key}]", lambda kept: [v for _, v in kept]
                )
            if isinstance(value, dict) and dataclasses.is_dataclass(option):
                parser = ArgumentParser(exit_on_error=False)
                parser.add_class_arguments(option, fail_untyped=False)
                return self.keys(parser, value, f"{path}.")
        return value if self._fits(expected, value, path) else _DROPPED

    def _several(self, expected: Any, items: Any, path: str, name: Callable, collect: Callable) -> Any:
        checked = [(key, self.value(expected, value, path + name(key))) for key, value in items]
        return collect([(key, value) for key, value in checked if value is not _DROPPED])

    def _fits(self, expected: Any, value: Any, path: str) -> bool:
        if expected in (None, inspect.Parameter.empty, Any):
            return True
        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument("--value", type=expected)
        try:
            parser.parse_object({"value": value})
        except ArgumentError:
            self.problems.append(
                f"Key `{path}`: expected {describe(expected)}, but got {value!r}.{_nearest_choice(expected, value)}"
            )
            return False
        return True

    def _instance(self, expected: Any, spec: dict[str, Any], path: str) -> Any:
        """Check ``{class_path, init_args}`` down to the arguments of the class."""
        wanted, num_positional = classes_of(expected), len(get_args(expected)[0]) if _is_callable(expected) else 0
        if "class_path" not in spec and (set(spec) & set(_SPEC_KEYS) or inspect.isabstract(wanted[0])):
            self.problems.append(
                f"Key `{path}.class_path`: expected {describe(expected)} by its import path, but it is missing."
            )
            return _DROPPED
        if "class_path" not in spec:
            spec = {"class_path": f"{wanted[0].__module__}.{wanted[0].__qualname__}", "init_args": spec}
        strangers = [key for key in spec if key not in _SPEC_KEYS]
        for key in strangers:
            self.problems.append(
                f"Key `{path}.{key}`: no such key beside `class_path`. Its arguments go under `init_args`."
            )
        found = find_class(spec["class_path"], wanted, describe(expected))
        if isinstance(found, str):
            self.problems.append(f"Key `{path}.class_path`: {found}")
            return _DROPPED
        if not isinstance(found, type):  # a function: its signature is checked when it is called
            return spec
        parser = ArgumentParser(exit_on_error=False)
        parser.add_class_arguments(found, skip={num_positional} if num_positional else None, fail_untyped=False)
        arguments = spec.get("init_args") or {}
        if not isinstance(arguments, dict):
            self.problems.append(f"Key `{path}.init_args`: expected keys and values, but got {arguments!r}.")
            arguments = {}
        before = len(self.problems)
        good = {**spec, "init_args": self.keys(parser, arguments, f"{path}.init_args.")}
        missing = any("but it is missing" in problem for problem in self.problems[before:])
        return _DROPPED if missing else {key: value for key, value in good.items() if key not in strangers}


def find_class(class_path: Any, wanted: tuple[type, ...], description: str) -> Any:
    """The class or function behind a class_path; or, as text, why there is none."""
    if not isinstance(class_path, str):
        return f"expected the import path of {description}, but got {class_path!r}."
    module_name, _, name = class_path.rpartition(".")
    known = {cls.__name__: cls for base in wanted for cls in _subclasses(base)}
    if not module_name:
        hint = _did_you_mean(name, known)
        return known.get(name) or f"expected the import path of {description} (`module.Class`), but got `{name}`.{hint}"
    try:
        found = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # A module that is there and fails on an import of its own keeps its traceback.
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        paths = {f"{cls.__module__}.{cls.__name__}": cls for cls in known.values()}
        return (
            f"expected the import path of {description}, but for `{class_path}` there is no module `{error.name}`,"
            f" neither installed nor in this folder.{_did_you_mean(class_path, paths)}"
        )
    if not hasattr(found, name):
        public = [key for key, value in vars(found).items() if inspect.isclass(value)]
        hint = _did_you_mean(name, public) or (f" It has {', '.join(sorted(public))}." if public else "")
        return f"expected the import path of {description}, but module `{module_name}` has no `{name}`.{hint}"
    found = getattr(found, name)
    if isinstance(found, type) and not issubclass(found, wanted):
        return f"expected {description}, but `{class_path}` is none."
    if isinstance(found, type) and inspect.isabstract(found):
        concrete = sorted({cls.__name__ for cls in _subclasses(found) if not inspect.isabstract(cls)})
        kinds = f" Known: {', '.join(concrete)}." if concrete else ""
        return f"expected {description}, but `{class_path}` is abstract. Name one of its kinds.{kinds}"
    return found


def unknown_key(path: str, key: str, known: Sequence[str]) -> str:
    """The sentence on a key that nothing takes, with the nearest right one."""
    hint = _did_you_mean(key, known) or (f" Known: {', '.join(known)}." if known else " Nothing can be set here.")
    return f"Key `{path}`: no such key.{hint}"


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    nearest = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" Did you mean `{nearest[0]}`?" if nearest else ""


def _nearest_choice(expected: Any, value: Any) -> str:
    choices = [
        str(choice) for option in members(expected) if get_origin(option) is Literal for choice in get_args(option)
    ]
    return _did_you_mean(str(value), choices)


def _subclasses(base: type) -> list[type]:
    direct: list[type] = type.__subclasses__(base)
    return [base, *(found for child in direct for found in _subclasses(child))]


def _takes_value(action: Any) -> bool:
    return (hasattr(action, "_typehint") and not action.dest.endswith(".help")) or action.dest == "seed_everything"


def _type(action: Any) -> Any:
    return getattr(action, "_typehint", None)


def _holds(values: Any, dest: str) -> bool:
    for key in dest.split("."):
        if not isinstance(values, dict) or key not in values:
            return False
        values = values[key]
    return True


def _is_callable(expected: Any) -> bool:
    return get_origin(expected) is Callable
