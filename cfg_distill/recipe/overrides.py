"""The words of a command line: files, dotted overrides, and what only asks to be shown something."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from cfg_distill.errors import ConfigError, Problem
from cfg_distill.files import parse_yaml
from cfg_distill.folders import find_file, similar_file
from cfg_distill.recipe.files import CALLBACKS, SPEC_KEYS, appended, merge, named

_FILES = ("-c", "--config")


@dataclass(frozen=True)
class Override:
    """``--a.b.c=value``.

    Attributes:
        path: the keys.
        value: null, lists, mappings and text in quotes are parsed; any other text stays text until the type of its key is
            known.
        append: ``--a.b.c+=value``.
        follows: an option after such a one: ``--a.b.c.d=value`` is then about what was appended last.
    """

    path: tuple[str, ...]
    value: Any
    append: bool = False
    follows: bool = False

    @classmethod
    def of(cls, key: str, value: Any) -> Override:
        """The override of a dotted key; ``a.b+`` appends."""
        return cls(tuple(key.removesuffix("+").split(".")), value, key.endswith("+"))


@dataclass(frozen=True)
class Words:
    """A command line, sorted.

    Attributes:
        files: of each ``--config``, found.
        overrides: in their order.
        print_config: the flags of ``--print_config``; None where it is not asked for.
        help: the words that ask for help.
        given: the words themselves.
    """

    files: tuple[Path, ...]
    overrides: tuple[Override, ...]
    print_config: str | None
    help: tuple[str, ...]
    given: tuple[str, ...]

    def going_on(self) -> list[str]:
        """The words that go on from the last checkpoint of the run of these words.

        Example:
            >>> sorted_words(["--trainer.max_steps", "9", "--ckpt_path=x.ckpt"]).going_on()
            ['--trainer.max_steps', '9', '--ckpt_path', 'last']
        """
        kept, words = [], list(self.given)
        while words:
            word = words.pop(0)
            if word == "--ckpt_path":
                del words[:1]
            elif not word.startswith("--ckpt_path="):
                kept.append(word)
        return [*kept, "--ckpt_path", "last"]


def sorted_words(argv: Sequence[str]) -> Words:
    """Sort the words of a command line.

    Raises:
        ConfigError: files that are not there, words that are no option, options without a value.

    Example:
        >>> sorted_words(["--trainer.devices", "2", "--model.losses.kl.weight=9"]).overrides[0]
        Override(path=('trainer', 'devices'), value='2', append=False, follows=False)
    """
    files: list[Path] = []
    overrides: list[Override] = []
    print_config, asked, problems = None, [], []
    words = list(argv)
    while words:
        word = words.pop(0)
        name, equals, value = word.partition("=")
        if name in ("-h", "--help") or name.endswith(".help"):
            asked.append(word)
            if name.endswith(".help") and not equals and words and not words[0].startswith("--"):
                asked.append(words.pop(0))  # the class whose options are shown
            continue
        if name == "--print_config":
            print_config = value
            continue
        if word == "--":
            problems.append(Problem("", "Expected an option, but got `--` alone. Take it out."))
            continue
        if not (name.startswith("--") or name in _FILES):
            problems.append(
                Problem("", f"Expected an option, but got `{word}`. A recipe is given as `--config {word}`.")
            )
            continue
        if not equals and words and not words[0].startswith("--"):
            equals, value = "=", words.pop(0)
        if not equals:
            problems.append(Problem(name.removeprefix("--"), "expected a value, but got none. Give one behind it."))
        elif name in _FILES:
            files.append(find_file(value))
            if not files[-1].is_file():
                hint = similar_file(value) or " See cfg-distill recipes."
                found = "is a folder" if files[-1].is_dir() else "does not exist"
                text = f"expected a YAML file, but `{value}` {found}.{hint}"
                problems.append(Problem("", f"Option `--config`: {text}"))
        else:
            try:
                overrides.append(Override.of(name[2:], _parsed(value)))
            except ConfigError as error:
                problems += [Problem(name[2:], str(problem)) for problem in error.problems]
    if problems:
        raise ConfigError(problems)
    return Words(tuple(files), tuple(_after_appending(overrides)), print_config, tuple(asked), tuple(argv))


def _after_appending(overrides: Iterable[Override]) -> Iterable[Override]:
    lists: set[tuple[str, ...]] = set()
    for each in overrides:
        if each.append:
            lists.add(each.path)
        yield replace(each, follows=any(each.path[:length] in lists for length in range(1, len(each.path))))


def _parsed(value: str) -> Any:
    # Parse null, lists and mappings; scalars stay text until the type of the key is known. Quotes say that it is text.
    if value in ("null", "~"):
        return None
    if len(value) > 1 and value[0] == value[-1] and value[0] in ("'", '"'):
        try:
            parsed = parse_yaml(value)
        except yaml.YAMLError:
            return value
        return parsed if isinstance(parsed, str) else value
    if value[:1] in ("{", "["):
        try:
            return parse_yaml(value)
        except yaml.YAMLError:
            return value
    return value


def word_of(value: Any) -> str:
    """The word behind an option that is read as this value; a text stands in quotes where it would be read as another value.

    Example:
        >>> word_of(0.5), word_of("train.txt"), word_of("[a sad air]")
        ('0.5', 'train.txt', '"[a sad air]"')
    """
    if not isinstance(value, str):
        return json.dumps(value)
    try:
        plain = _parsed(value) == value
    except ConfigError:
        plain = False
    return value if plain else yaml.safe_dump(value, default_style='"', width=math.inf).strip()


def put(recipe: dict[str, Any], override: Override) -> dict[str, Any]:
    """The recipe with the override in its place; ``init_args`` may be left out of the path.

    It is merged as a file would be that holds this one key. Beyond that, an option reaches into a list: to the member
    whose class it names (``--trainer.callbacks.StudentEMA.decay=0.9``), else to the last one.
    """
    return _put(recipe, override.path, override, ())


def _put(node: Any, keys: tuple[str, ...], override: Override, path: tuple[str, ...]) -> Any:
    """``node`` with the value at ``keys`` beneath it. ``path`` is where the node stands, without ``init_args``."""
    if isinstance(node, list):
        return _put_in_list(node, keys, override, path)
    if isinstance(node, str):
        node = {"class_path": node}
    node = node if isinstance(node, dict) else {}
    key, *rest = keys
    if path == CALLBACKS and override.follows and key not in node and node:
        last = next(reversed(node))
        return node | {last: _put(node[last], keys, override, (*path, last))}
    if "class_path" in node and key not in SPEC_KEYS:
        return node | {"init_args": _put(node.get("init_args"), keys, override, path)}
    place = path if key == "init_args" else (*path, key)
    if rest:
        return node | {key: _put(node.get(key), tuple(rest), override, place)}
    if override.append:
        return node | {key: appended(node.get(key), override.value, place)}
    return merge(node, {key: override.value}, path)


def _put_in_list(members: list[Any], keys: tuple[str, ...], override: Override, path: tuple[str, ...]) -> list[Any]:
    if not members:
        return [_put({}, keys, override, (*path, "0"))]
    names = list(named(members))
    by_class = len(keys) > 1 and keys[0] in names
    place, inside = (names.index(keys[0]), keys[1:]) if by_class else (len(members) - 1, keys)
    changed = _put(members[place], inside, override, (*path, str(place)))
    return [*members[:place], changed, *members[place + 1 :]]
