"""The folders of runs in a table: recipe, state, step, time, last values, size. No torch, and no checkpoint is read."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cfg_distill.errors import ConfigError, Problem
from cfg_distill.files import read_yaml
from cfg_distill.files.columns import aligned
from cfg_distill.files.logs import clock, scalars_of, seconds_of

SHOWN = ("val/kl_per_token", "train/kl_per_token", "train/diversity_reward", "gradient_ratio/diversity")
"""The values that come first, where a run has logged them; then those of validation."""
MOST_VALUES = 4
MARK = ".unfinished"
"""The file of a run that has begun and not ended. It holds the steps of the whole run."""
LOCK = ".lock"
"""Locked while a run writes into its folder. It holds what is known of that run, as JSON."""


@dataclass(frozen=True)
class Run:
    """A folder ``version_N`` of a fit.

    Attributes:
        folder: the folder.
        recipe: as the user named it; empty where the run does not say.
        state: ``running``, ``stopped``, ``finished``, or ``not begun``: it failed before its first step.
        step: the last step that was logged, counted from 1; 0 before any.
        steps: of the whole run; 0 where they are not known.
        values: tag -> last value.
        size: in bytes.
        modified: when a file was last written, in seconds.
        seconds: that it has worked so far, as its log says; None where the log has no times.
    """

    folder: Path
    recipe: str
    state: str
    step: int
    steps: int
    values: dict[str, float]
    size: int
    modified: float
    seconds: float | None = None


def runs_in(folders: Sequence[Path]) -> list[Run]:
    """The runs in some folders, the latest first.

    Raises:
        ConfigError: a folder does not exist, or all are without a run.
    """
    if missing := [each for each in folders if not each.is_dir()]:
        text = "expected a folder, but `{}` {}. `cfg-distill fit` and `study` make folders of runs."
        wrong = {each: "is a file" if each.exists() else "does not exist" for each in missing}
        raise ConfigError([Problem("folders", text.format(each, what)) for each, what in wrong.items()])
    found = [_run(folder) for each in folders for folder in _folders_of_runs(each)]
    if not found:
        names = ", ".join(f"`{each}`" for each in folders)
        text = f"expected folders of runs, but {names} holds none. `cfg-distill fit` and `study` make them."
        raise ConfigError(Problem("folders", text))
    return sorted(found, key=lambda run: run.modified, reverse=True)


def table_of(runs: Sequence[Run]) -> str:
    """The runs, one per line."""
    rows = [["run", "state", "step", "time", "size", "recipe", "last values"]]
    for run in runs:
        step = f"{run.step}/{run.steps}" if run.steps else str(run.step)
        values = "  ".join(f"{tag} {value:.3g}" for tag, value in run.values.items())
        took = "-" if run.seconds is None else clock(run.seconds)
        rows.append([str(run.folder), run.state, step, took, _bytes(run.size), run.recipe or "-", values or "-"])
    return "\n".join(aligned(rows, ruled=()))


def _folders_of_runs(folder: Path) -> Iterator[Path]:
    for each in _folders_under(folder):
        named = each.name[-1:].isdigit() and (each == folder or each.name.startswith("version_"))
        if named and ((each / LOCK).is_file() or (each / "config.yaml").is_file()):
            yield each


def _folders_under(folder: Path) -> Iterator[Path]:
    """A folder and all under it, each once. Links are entered last, so that a folder has its own path where it has one here.

    Links to a folder that holds this one are not entered: one to the root would be a walk through the whole disk.
    """
    seen, base = set(), os.path.realpath(folder)
    tops = [str(folder)]
    for top in tops:  # which grows by the links that are met
        for place, inside, _ in os.walk(top):
            real = os.path.realpath(place)
            if real in seen:
                inside.clear()
                continue
            seen.add(real)
            yield Path(place)
            links = [path for name in inside if os.path.islink(path := os.path.join(place, name))]
            tops += [link for link in links if not Path(base).is_relative_to(os.path.realpath(link))]


def _run(folder: Path) -> Run:
    config = _config(folder)
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    last: dict[str, list[tuple[int, float]]] = {}
    for tag, step, value in scalars_of(folder):
        last.setdefault(tag, []).append((step, value))
    newest = {tag: max(points)[1] for tag, points in last.items()}
    others = sorted(tag for tag in newest if tag.startswith("val/"))
    tags = [tag for tag in dict.fromkeys([*SHOWN, *others]) if tag in newest][:MOST_VALUES]
    marked, trainer = _text(folder / MARK).strip(), config.get("trainer")
    steps = marked or str(trainer.get("max_steps") if isinstance(trainer, dict) else 0)
    has_begun = bool(last) or (folder / "checkpoints").is_dir()
    ended = "stopped" if (folder / MARK).is_file() else "finished" if has_begun else "not begun"
    state = "running" if _is_locked(folder / LOCK) else ended
    return Run(
        folder,
        str(about(folder).get("recipe") or ""),
        state,
        1 + max((step for points in last.values() for step, _ in points), default=-1),
        int(steps) if steps.isdigit() else 0,
        {tag: newest[tag] for tag in tags},
        sum(path.stat().st_size for path in files),
        max((path.stat().st_mtime for path in files), default=folder.stat().st_mtime),
        seconds_of(folder),
    )


def _is_locked(lock: Path) -> bool:
    """Whether a process on this machine, or on one with the same file system, holds the lock of a run."""
    try:
        descriptor = os.open(lock, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False  # a file system without locks
    finally:
        os.close(descriptor)  # and with it the lock
    return False


def _config(folder: Path) -> dict[str, Any]:
    try:
        return read_yaml(folder / "config.yaml")
    except ConfigError:
        return {}


def about(folder: Path) -> dict[str, Any]:
    """What the lock file of a run says of it; nothing where it cannot be read."""
    try:
        found = json.loads(_text(folder / LOCK))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _bytes(size: float) -> str:
    """A size for people.

    Example:
        >>> _bytes(999), _bytes(36_100_000), _bytes(2.5e9)
        ('999 B', '36 MB', '2.5 GB')
    """
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
