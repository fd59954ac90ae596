"""YAML and JSON files, read within limits: a file of a few lines must not fill the memory, nor say one key twice."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cfg_distill import __version__
from cfg_distill.errors import ConfigError, Problem

VERSION = 1
"""Of the keys of recipes and studies. It rises when a file of this package would mean something else to an earlier one."""
UPDATE = "Update the package: `git pull` in its clone, then `pip install .`"

MOST_BYTES = {"YAML": 2 * 10**6, "JSON": 50 * 10**6}
"""The largest files. The index of a model of a thousand shards has about one million bytes."""
MOST_LEVELS = 100
"""Keys inside of keys. A shipped recipe has twelve levels."""
MOST_VALUES = 100_000
"""Keys and values of a YAML file, each alias counted with all that it stands for. A shipped recipe has a few hundred."""


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML as jsonargparse reads it: ``1e-3`` is a number (YAML 1.1 wants ``1.0e-3``), and a date is text."""


_NUMBER = (
    r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9_]+|[0-9][0-9_]*(?=[eE]))(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
_DROPPED = ("tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp")
_Loader.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in known if tag not in _DROPPED]
    for letter, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_DROPPED[0], re.compile(f"^(?:{_NUMBER})$"), list("-+0123456789."))


def read_yaml(file: str | Path) -> dict[str, Any]:
    """The keys and values of a YAML file; an empty file has none.

    Raises:
        ConfigError: it is not there, cannot be read as YAML, is larger or deeper than the limits of this module, says a key
            twice, or holds no keys and values.
    """
    file = Path(file)
    try:
        text = _text_of(file, "YAML")
        content = parse_yaml(text)
    except ConfigError as error:
        raise ConfigError([f"File `{file}`: {problem}" for problem in error.problems]) from error
    except yaml.YAMLError as error:
        said = " ".join(str(error).replace('in "<unicode string>", ', "in ").split())
        advice = (
            " Indent with spaces, not with tabs." if re.search(r"^ *\t", text, re.MULTILINE) else " Mend that line."
        )
        raise ConfigError(f"File `{file}`: expected YAML, but it cannot be read: {said}.{advice}") from error
    if content is not None and not isinstance(content, dict):
        raise ConfigError(f"File `{file}`: expected keys and values, but got {type(content).__name__}.")
    return content or {}


def read_versioned(file: str | Path) -> dict[str, Any]:
    """The keys and values of a recipe or a study, without the key ``version``. A file without that key is of version 1.

    Raises:
        ConfigError: as :func:`read_yaml`; the file is of a newer version, whose keys this package does not know.
    """
    content = read_yaml(file)
    version = content.pop("version", 1)
    if type(version) is not int or version < 1:
        text = f"expected a whole number from 1 to {VERSION}, but got {version!r}. Remove the key: it means 1."
        raise ConfigError(f"File `{file}`: {Problem('version', text)}")
    if version > VERSION:
        text = f"the keys of this file are of version {version}, but cfg-distill {__version__} reads versions up to {VERSION}."
        raise ConfigError(f"File `{file}`: {Problem('version', text)} {UPDATE}.")
    return content


def parse_yaml(text: str) -> Any:
    """The value that YAML text stands for.

    The text is looked through before anything is made of it: nine lines of aliases can stand for a billion values, and an
    alias inside of what it stands for never ends.

    Raises:
        ConfigError: it is deeper or holds more than the limits of this module, says a key twice, or holds a broken number.
        yaml.YAMLError: it is no YAML.

    Example:
        >>> parse_yaml("a: &x [1e-3, 2]\\nb: *x")
        {'a': [0.001, 2], 'b': [0.001, 2]}
        >>> parse_yaml("a: 1\\nb: 2\\na: 3")
        Traceback (most recent call last):
        cfg_distill.errors.ConfigError: Key `a`: line 3 says it again, after line 1. Keep one of the two.
    """
    _look_through(text)
    try:
        return yaml.load(text, _Loader)
    except (ValueError, RecursionError) as error:  # a whole number of 5,000 digits
        raise ConfigError(f"expected YAML, but it cannot be read: {error}. Write a smaller number.") from error
    except (LookupError, AttributeError, TypeError) as error:  # `!!bool maybe`
        raise ConfigError(
            "expected YAML, but a value is not of the type that its tag `!!` names. Remove the tag."
        ) from error


def read_json(file: str | Path) -> dict[str, Any]:
    """The keys and values of a JSON file.

    Raises:
        ConfigError: it cannot be read, is larger than the limit of this module, or holds something else.
    """
    file = Path(file)
    try:
        content = json.loads(_text_of(file, "JSON"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"File `{file}`: expected JSON, but it cannot be read: {error}. Copy the file again."
        ) from error
    except ConfigError as error:
        raise ConfigError([f"File `{file}`: {problem}" for problem in error.problems]) from error
    if not isinstance(content, dict):
        raise ConfigError(f"File `{file}`: expected keys and values, but got {type(content).__name__}.")
    return content


def _text_of(file: Path, kind: str) -> str:
    most = MOST_BYTES[kind]
    try:
        with file.open("rb") as stream:
            content = stream.read(most + 1)
        if len(content) > most:
            raise ConfigError(f"expected at most {most:,} bytes of {kind}, but it is larger. Name another file.")
        return content.decode("utf-8-sig")
    except FileNotFoundError as error:
        raise ConfigError(f"expected a {kind} file, but it does not exist. Check the path.") from error
    except IsADirectoryError as error:
        raise ConfigError(f"expected a {kind} file, but it is a folder. Name a file in it.") from error
    except OSError as error:
        raise ConfigError(
            f"expected a {kind} file, but it cannot be read: {error.strerror}. Check the path."
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"expected {kind} in UTF-8, but it cannot be read: {error}. Save it as UTF-8.") from error


@dataclass
class _Open:
    """A mapping or list whose end has not come.

    Attributes:
        anchor: its name for aliases; None without.
        path: its key, as far as it has one.
        is_mapping: whether every second value is a key.
        size: values in it so far, itself included.
        key: of a mapping: the key whose value comes next; None where a key comes next.
        lines: of a mapping: the line of each key.
    """

    anchor: str | None
    path: str
    is_mapping: bool
    size: int = 1
    key: str | None = None
    lines: dict[str, int] = field(default_factory=dict)


def _look_through(text: str) -> None:
    """Look at YAML, event by event, without making anything of it."""
    open_: list[_Open] = [_Open(None, "", False)]
    sizes: dict[str, int] = {}
    repeated: list[Problem] = []
    for event in yaml.parse(text, _Loader):
        line = 0 if event.start_mark is None else event.start_mark.line + 1
        if isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
            path = _begin(open_[-1], None, line, repeated)
            open_.append(_Open(event.anchor, path, isinstance(event, yaml.MappingStartEvent)))
            if len(open_) > MOST_LEVELS:
                raise ConfigError(f"line {line}: expected at most {MOST_LEVELS} levels of keys. Write it flatter.")
        elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            closed = open_.pop()
            open_[-1].size += closed.size
            if closed.anchor is not None:
                sizes[closed.anchor] = closed.size
        elif isinstance(event, yaml.AliasEvent):
            if any(each.anchor == event.anchor for each in open_):
                raise ConfigError(
                    f"line {line}: the alias `*{event.anchor}` stands for what it is a part of. Write it out."
                )
            _begin(open_[-1], None, line, repeated)
            open_[-1].size += sizes.get(str(event.anchor), 1)
        elif isinstance(event, yaml.ScalarEvent):
            _begin(open_[-1], event.value, line, repeated)
            open_[-1].size += 1
            if event.anchor is not None:
                sizes[event.anchor] = 1
        if sum(each.size for each in open_) > MOST_VALUES:
            raise ConfigError(
                f"line {line}: expected at most {MOST_VALUES:,} values, each alias counted with what it stands for. Use fewer"
                " aliases."
            )
    if repeated:
        raise ConfigError(repeated)


def _begin(inside: _Open, scalar: str | None, line: int, repeated: list[Problem]) -> str:
    """Take a value into what is open: as a key, or as the value of one. Returns the path of the value."""
    if not inside.is_mapping:
        return inside.path
    if inside.key is not None:
        path = f"{inside.path}.{inside.key}" if inside.path else inside.key
        inside.key = None
        return path
    inside.key = "?" if scalar is None else scalar  # a list as a key: the loader refuses it
    if scalar is not None:
        path = f"{inside.path}.{scalar}" if inside.path else scalar
        if scalar in inside.lines:
            text = f"line {line} says it again, after line {inside.lines[scalar]}. Keep one of the two."
            repeated.append(Problem(path, text))
        inside.lines.setdefault(scalar, line)
    return inside.path
