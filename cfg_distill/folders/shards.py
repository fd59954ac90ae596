"""The index of weights that lie in several files. It is a stranger's: it may name files of its own folder only."""

from __future__ import annotations

from pathlib import Path

from cfg_distill.errors import ConfigError, Problem
from cfg_distill.files import read_json

INDEX = "model.safetensors.index.json"


def shards_of(folder: Path) -> list[str]:
    """The files that the index of a folder names, each once; none without an index.

    Raises:
        ConfigError: the index cannot be read, or names no files.
    """
    if not (folder / INDEX).is_file():
        return []
    named = read_json(folder / INDEX).get("weight_map")
    if not isinstance(named, dict) or not named or not all(isinstance(file, str) for file in named.values()):
        raise ConfigError(
            f"File `{folder / INDEX}`: expected the file of each tensor under `weight_map`, but there is no such table. Copy"
            " the file again."
        )
    return sorted(set(named.values()))


def problems_of_index(folder: Path) -> list[Problem]:
    """What is wrong with the index of a folder; nothing where there is none."""
    try:
        shards = shards_of(folder)
    except ConfigError as error:
        return error.problems
    where = f"File `{folder / INDEX}`"
    if outside := [shard for shard in shards if Path(shard).name != shard]:
        return [
            Problem(
                "",
                f"{where}: expected names of files in this folder, but got {', '.join(outside[:3])}. A model folder names no"
                " files elsewhere. Do not use this model, or write the names without a folder.",
            )
        ]
    if missing := [shard for shard in shards if not (folder / shard).is_file()]:
        return [Problem("", f"{where} names files that are not there: {', '.join(missing[:3])}. Copy the model again.")]
    return []
