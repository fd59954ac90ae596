"""The files of a recipe: found, read, merged."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from cfg_distill.errors import ConfigError
from cfg_distill.folders import find_file


def with_recipes_found(argv: Sequence[str]) -> tuple[list[str], list[Path]]:
    """The words with each ``--config recipes/x.yaml`` replaced by the file it names, and these files.

    Raises:
        ConfigError: a file that is not there.
    """
    words, files, problems = [], [], []
    following = False
    for word in argv:
        name, equals, value = word.partition("=")
        if following or (equals and name in ("--config", "-c")):
            asked = word if following else value
            file = find_file(asked)
            if not file.is_file():
                problems.append(
                    f"Option `--config`: expected a YAML file, but `{asked}` does not exist. See cfg-distill recipes."
                )
            files.append(file)
            word = str(file) if following else f"{name}={file}"
        following = not following and word in ("--config", "-c")
        words.append(word)
    if problems:
        raise ConfigError(problems)
    return words, files


def merged(files: Sequence[Path]) -> dict[str, Any]:
    """The files as one dict, as LightningCLI merges them: later ones win, dicts are merged, lists replaced.

    Raises:
        ConfigError: a file that is no YAML mapping.
    """
    whole: dict[str, Any] = {}
    for file in files:
        try:
            content = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            reason = " ".join(str(error).split())
            raise ConfigError(f"File `{file}`: expected YAML, but it cannot be read: {reason}") from error
        if not isinstance(content, dict):
            raise ConfigError(f"File `{file}`: expected keys and values, but got {type(content).__name__}.")
        whole = merge(whole, content)
    return whole


def merge(base: dict[str, Any], update: dict[str, Any]) -> dict[str, Any]:
    """``update`` over ``base``; another class_path drops the arguments of the one before, none may leave out ``init_args``."""
    if "class_path" in base and update and not update.keys() & {"class_path", "init_args", "dict_kwargs"}:
        update = {"init_args": update}
    if "class_path" in update and update["class_path"] != base.get("class_path"):
        base = {}
    result = dict(base)
    for key, value in update.items():
        old = result.get(key)
        result[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


def run_name(files: Sequence[Path]) -> str:
    """The folder of the runs of these files: that of the first recipe."""
    return re.sub(r"[^\w.-]+", "-", files[0].stem) if files else "fit"
