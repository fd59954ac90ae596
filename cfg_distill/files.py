"""Files and folders that are whole or absent, and YAML files that are read or refused with a reason."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from cfg_distill.errors import ConfigError


def write_text(file: str | Path, text: str, durable: bool = True) -> None:
    """Write UTF-8 text; a reader, or a run that starts after a crash, sees the old file or the new one.

    Args:
        file: where; its folder is made.
        text: what.
        durable: wait until it is on the disk, so that a power cut cannot leave an empty file under the final name.
    """
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    staged = file.with_name(f".{file.name}.{os.getpid()}")
    with staged.open("w", encoding="utf-8") as stream:
        stream.write(text)
        if durable:
            stream.flush()
            os.fsync(stream.fileno())
    staged.replace(file)


@contextmanager
def staged_folder(out: str | Path) -> Iterator[Path]:
    """A folder to write into that takes the name ``out`` when the block ends well; else it is removed.

    All files are on the disk before the rename. An ``out`` that exists is set aside first and removed last, so that a kill
    at any moment leaves the old folder or the new one, whole: under its name, or as ``.NAME.replaced`` beside it for the
    instant between two renames.

    Args:
        out: the folder; its parents are made.

    Example:
        >>> import tempfile
        >>> out = Path(tempfile.mkdtemp()) / "student"
        >>> with staged_folder(out) as folder:
        ...     _ = (folder / "config.json").write_text("{}")
        >>> [path.name for path in out.parent.rglob("*")]
        ['student', 'config.json']
    """
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    staged, replaced = (out.with_name(f".{out.name}.{kind}") for kind in ("partial", "replaced"))
    if replaced.exists() and not out.exists():
        replaced.rename(out)  # an earlier process was killed between the two renames
    for leftover in (staged, replaced):
        shutil.rmtree(leftover, ignore_errors=True)
    staged.mkdir()
    try:
        yield staged
        for path in [*staged.rglob("*"), staged]:
            _sync(path)
        if out.exists():
            out.rename(replaced)
        staged.rename(out)
        _sync(out.parent)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        if replaced.exists() and not out.exists():
            replaced.rename(out)
        raise
    shutil.rmtree(replaced, ignore_errors=True)


def _sync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":
        return  # Windows opens no folders
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_yaml(file: str | Path) -> dict[str, Any]:
    """The keys and values of a YAML file; an empty file has none.

    Raises:
        ConfigError: it is not there, cannot be read as YAML, or holds no keys and values.
    """
    file = Path(file)
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"File `{file}`: expected a YAML file, but it does not exist.") from error
    except IsADirectoryError as error:
        raise ConfigError(f"File `{file}`: expected a YAML file, but it is a folder.") from error
    except (
        yaml.YAMLError,
        ValueError,
        RecursionError,
    ) as error:  # ValueError: no UTF-8, or a number or date that is none
        raise ConfigError(
            f"File `{file}`: expected YAML, but it cannot be read: {' '.join(str(error).split())}"
        ) from error
    if content is not None and not isinstance(content, dict):
        raise ConfigError(f"File `{file}`: expected keys and values, but got {type(content).__name__}.")
    return content or {}
