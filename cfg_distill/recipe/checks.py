"""Every problem of a recipe at once. jsonargparse stops at the first one; this walks the recipe beside its parser.

The walk knows what jsonargparse knows (it asks its parsers for the keys and types of every class), names keys by their
full path, and returns the recipe without what was wrong, so that the rest can be built and asked for its own problems.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from jsonargparse import ArgumentError, ArgumentParser

from cfg_distill.errors import ConfigError, Problem, closest, is_beneath, nearest
from cfg_distill.recipe.bounds import Bounds, bounds_of, wrong_number
from cfg_distill.recipe.classes import find_class
from cfg_distill.recipe.files import SPEC_KEYS
from cfg_distill.recipe.types import classes_of, describe, is_plain_class, members

_DROPPED = object()  # in place of a value in which nothing is right
_OTHER = object()  # the value is of another kind than the one that was tried


class Walk:
    """One walk over a recipe.

    Attributes:
        problems: all that is wrong, with full paths as keys.
        passed: those of them that a parser lets pass: null where a value is due, and numbers that make no sense.
    """

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.passed: list[Problem] = []
        self._num_missing = 0
        self._meant: set[str] = set()  # the right names of misspelled keys

    def keys(
        self, parser: ArgumentParser, values: dict[str, Any], path: str = "", bounds: Mapping[str, Bounds] | None = None
    ) -> dict[str, Any]:
        """Check keys and values against a parser's arguments, and numbers against bounds; returns the good ones."""
        actions = {action.dest: action for action in parser._actions if _takes_value(action)}
        good = self._level(actions, values, "", path, bounds or {})
        for dest, action in actions.items():
            # A misspelled required key is one mistake, not two.
            if action.required and not _holds(values, dest) and path + dest not in self._meant:
                self._num_missing += 1
                self._say(path + dest, f"expected {describe(_type(action))}, but it is missing. Set it.")
        return good

    def value(
        self,
        expected: Any,
        value: Any,
        path: str,
        siblings: Sequence[str] | None = None,
        bounds: Bounds | None = None,
    ) -> Any:
        """Check one value against a type.

        Args:
            expected: the type.
            value: the value.
            path: its key.
            siblings: in a dict of names, all names.
            bounds: of the numbers in it.

        Returns:
            The value without what is wrong in it, or a mark that nothing is left.
        """
        if value is None:
            return self._empty(expected, path)
        spec = _spec_of(expected, value)
        if spec is not None:
            checked = self._instance(expected, spec, path, siblings)
            return value if isinstance(value, str) and checked is not _DROPPED else checked
        for option in members(expected):
            checked = self._members(option, value, path)
            if checked is not _OTHER:
                return checked
        return value if self._fits(expected, value, path, bounds) else _DROPPED

    def _say(self, path: str, text: str, passed: bool = False) -> None:
        self.problems.append(Problem(path, text))
        if passed:
            self.passed.append(self.problems[-1])

    def _level(
        self, actions: dict[str, Any], values: dict[str, Any], prefix: str, path: str, bounds: Mapping[str, Bounds]
    ) -> dict[str, Any]:
        known = list(
            dict.fromkeys(dest.removeprefix(prefix).split(".")[0] for dest in actions if dest.startswith(prefix))
        )
        good: dict[str, Any] = {}
        for key, value in values.items():
            dest = f"{prefix}{key}"
            if key not in known:
                deeper = [name for name in actions if not path + prefix and name.endswith(f".{key}")]
                self.problems.append(unknown_key(path + dest, str(key), known, deeper))
                self._meant.add(f"{path}{prefix}{closest(str(key), known)}")
            elif dest not in actions and isinstance(value, dict):
                good[key] = self._level(actions, value, f"{dest}.", path, bounds)
            elif dest not in actions:
                if not isinstance(value, str):  # text may name a file that holds the keys
                    self._say(path + dest, f"expected keys and values, but got {value!r}.")
            else:
                checked = self.value(_type(actions[dest]), value, path + dest, bounds=bounds.get(dest))
                if checked is not _DROPPED:
                    good[key] = checked
        return good

    def _empty(self, expected: Any, path: str) -> Any:
        options = members(expected)
        if NoneType in options or Any in options or expected in (None, inspect.Parameter.empty):
            return None
        self._say(
            path, f"expected {describe(expected)}, but it is empty. Give a value, or remove the key.", passed=True
        )
        return _DROPPED

    def _members(self, option: Any, value: Any, path: str) -> Any:
        """Check the members of a dict of parts, of a list of parts, or of a group of settings."""
        origin, inside = get_origin(option), get_args(option)
        if isinstance(value, dict) and origin is dict and classes_of(inside[1]):
            found = {key: self.value(inside[1], each, f"{path}.{key}", list(value)) for key, each in value.items()}
            return {key: checked for key, checked in found.items() if checked is not _DROPPED}
        if isinstance(value, list) and origin in (list, Iterable, Sequence) and classes_of(inside[0]):
            listed = [self.value(inside[0], each, f"{path}[{number}]") for number, each in enumerate(value)]
            return [checked for checked in listed if checked is not _DROPPED]
        if isinstance(value, dict) and dataclasses.is_dataclass(option):
            parser = ArgumentParser(exit_on_error=False)
            parser.add_class_arguments(option, fail_untyped=False)
            return self.keys(parser, value, f"{path}.")
        return _OTHER

    def _fits(self, expected: Any, value: Any, path: str, bounds: Bounds | None) -> bool:
        if expected in (None, inspect.Parameter.empty, Any):
            return self._is_within(bounds, value, path)
        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument("--value", type=expected)
        try:
            meant = parser.parse_object({"value": value}).value  # of an option `.nan`: a number, where it was text
        except (ArgumentError, OverflowError):  # the second: a whole number of 400 digits, as a float
            self._say(path, f"expected {describe(expected)}, but got {value!r}.{_meant(path, expected, value)}")
            return False
        return self._is_within(bounds, meant, path)

    def _is_within(self, bounds: Bounds | None, value: Any, path: str) -> bool:
        if wanted := wrong_number(value, bounds):
            self._say(
                path, f"expected {wanted}, but got {value}. Write such a number, or leave the key out.", passed=True
            )
        return not wanted

    def _instance(self, expected: Any, spec: dict[str, Any], path: str, siblings: Sequence[str] | None) -> Any:
        """Check ``{class_path, init_args}`` down to the arguments of the class."""
        wanted = classes_of(expected)
        if "class_path" not in spec:
            if set(spec) & set(SPEC_KEYS) or inspect.isabstract(wanted[0]) or siblings is not None:
                misspelled = difflib.get_close_matches(
                    "class_path", map(str, spec), cutoff=0.8
                )  # `path` is another key
                if misspelled:
                    self.problems.append(unknown_key(f"{path}.{misspelled[0]}", misspelled[0], SPEC_KEYS))
                    return _DROPPED
                name = path.rpartition(".")[2]
                hint = nearest(name, [each for each in siblings or () if each != name])
                text = f"expected {describe(expected)} by its import path, but it is missing.{hint}"
                self._say(f"{path}.class_path", text)
                return _DROPPED
            spec = {"class_path": f"{wanted[0].__module__}.{wanted[0].__qualname__}", "init_args": spec}
        strangers = [key for key in spec if key not in SPEC_KEYS]
        for key in strangers:
            self._say(f"{path}.{key}", "no such key beside `class_path`. Its arguments go under `init_args`.")
        try:
            found = find_class(spec["class_path"], wanted, describe(expected), functions=True)
        except ConfigError as error:
            self.problems += error.under(path)
            return _DROPPED
        if not isinstance(found, type):  # a function: its signature is checked when it is called
            return spec
        # The first arguments of an optimiser or a scheduler are given when it is made.
        num_given = len(get_args(expected)[0]) if get_origin(expected) is Callable else 0
        parser = ArgumentParser(exit_on_error=False)
        parser.add_class_arguments(found, skip={num_given} if num_given else None, fail_untyped=False)
        arguments = spec.get("init_args") or {}
        if not isinstance(arguments, dict):
            self._say(f"{path}.init_args", f"expected keys and values, but got {arguments!r}.")
            arguments = {}
        before = self._num_missing
        good = {**spec, "init_args": self.keys(parser, arguments, f"{path}.init_args.", bounds_of(found))}
        if self._num_missing > before:
            return _DROPPED
        return {key: value for key, value in good.items() if key not in strangers}


def without_echoes(found: Sequence[Problem], inside: Iterable[Problem]) -> list[Problem]:
    """All problems, except those that a part has only because something beneath its key was wrong and left out.

    Args:
        found: what the walk found.
        inside: what the parts say that could be built from the rest.
    """
    wrong = [problem.path for problem in found]
    told = {str(problem) for problem in found}
    return [
        *found,
        *(
            problem
            for problem in inside
            if str(problem) not in told and not (problem.path and any(is_beneath(path, problem.path) for path in wrong))
        ),
    ]


LOGGERS = {
    "tensorboard": "leave it out: a run writes for TensorBoard into its own folder",
    "csv": "write `--trainer.logger=CSVLogger --trainer.logger.save_dir=runs`",
    "wandb": "write `--trainer.logger=WandbLogger`",
    "mlflow": "write `--trainer.logger=MLFlowLogger`",
    "comet": "write `--trainer.logger=CometLogger`",
    "none": "write `--trainer.logger=false`",
}
"""What to do in place of a short name of a logger, as other tools have them."""
NOT_IN_TRAINING = {
    "anneal": (
        "samples that begin by a start model are not the student's own, so that nothing can be learnt from them. Use it in a"
        " study, or as `cfg-distill evaluate --anneal`; to distil it, give `model.guidance` a `final_scale` and a `schedule`."
    )
}
"""Keys of a study that no recipe takes, and why."""


def unknown_key(path: str, key: str, known: Sequence[str], deeper: Sequence[str] = ()) -> Problem:
    """The problem of a key that nothing takes, with the nearest right one, or those of this name that stand deeper."""
    if key in NOT_IN_TRAINING:
        return Problem(path, f"no such key, since {NOT_IN_TRAINING[key]}")
    if deeper:
        return Problem(path, f"no such key. Did you mean {' or '.join(f'`{name}`' for name in deeper)}?")
    hint = nearest(key, known) or (f" Known: {', '.join(known)}." if known else " Nothing can be set here.")
    return Problem(path, f"no such key.{hint}")


def _spec_of(expected: Any, value: Any) -> dict[str, Any] | None:
    """The value as ``{class_path, init_args}``; None where it is no spec of a class."""
    options = members(expected)
    classes = classes_of(expected)
    if isinstance(value, dict) and classes and (set(value) & set(SPEC_KEYS) or len(options) == 1):
        return value
    if isinstance(value, str) and classes and all(is_plain_class(each) or each is NoneType for each in options):
        return {"class_path": value}
    return None


def _meant(path: str, expected: Any, value: Any) -> str:
    """What to write in place of a value that is none, with a space in front; empty where that is not known."""
    if path == "trainer.logger" and isinstance(value, str):
        named = value.lower() if value.lower() in LOGGERS else closest(value.lower(), LOGGERS)
        return f" For {named}, {LOGGERS[named]}." if named else " For one of Lightning's, write the name of its class."
    choices = [
        str(choice) for option in members(expected) if get_origin(option) is Literal for choice in get_args(option)
    ]
    return nearest(str(value), choices)


def _takes_value(action: Any) -> bool:
    # jsonargparse keeps the type of an argument in a private attribute, and has no public way to ask for it.
    return (hasattr(action, "_typehint") and not action.dest.endswith(".help")) or action.dest == "seed_everything"


def _type(action: Any) -> Any:
    return getattr(action, "_typehint", None)


def _holds(values: Any, dest: str) -> bool:
    for key in dest.split("."):
        if not isinstance(values, dict) or key not in values:
            return False
        values = values[key]
    return True
