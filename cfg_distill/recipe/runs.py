"""The folders of runs, runs/NAME/version_N: which is next, which is unfinished, and that one run at a time writes into each."""

from __future__ import annotations

import json
import os
import pickle
import re
import shlex
import shutil
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from cfg_distill.errors import ConfigError, Problem
from cfg_distill.files import MAIN_FILE, before_of, damage, lock, no_checkpoint, write_text
from cfg_distill.recipe.listing import LOCK, MARK, about
from cfg_distill.recipe.processes import is_first, is_started_by_first
from cfg_distill.recipe.stopping import slurm_job

_VERSION = "CFG_DISTILL_RUN_VERSION"
_WHOLE = "optimizer_states"
"""A key of a checkpoint that a fit can go on from."""
_LATEST = ".latest_run.json"
"""In the root of fits under another logger than TensorBoard's: where the latest one keeps its checkpoints, where the last run
before it that has some does, and whether it has come to its end."""


@contextmanager
def claimed(root: Path, resume: bool, recipe: str = "", trains: bool = True) -> Iterator[int]:
    """N of the folder version_N of a run, which belongs to it alone until the block ends.

    A new folder is made when it is chosen. The first process of a run holds a lock in it. The system ends the lock with the
    process, so none survives a kill.

    Args:
        root: the folder of the folders.
        resume: go on in the latest folder that holds a last checkpoint, where there is one.
        recipe: the file of the recipe, for messages.
        trains: whether it is a fit. A validation in the folder of a fit leaves the note on that fit.

    Raises:
        ConfigError: another process trains in the folder to go on in, or the folder cannot be written, or a validation of the
            last checkpoint finds none.
    """
    if is_started_by_first():
        yield int(os.environ[_VERSION])
        return
    found = resumable(root) if resume else None
    if resume and found is None and not trains:
        raise ConfigError(_nothing_to_validate(root))
    if not is_first():  # started from outside: only the first process writes, and tells the others where
        yield max(_versions(root), default=-1) + 1 if found is None else int(found.name[8:])
        return
    try:
        folder = _new(root) if found is None else found
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        text = f"`{root}` cannot be written: {error.strerror}. Make room or change the permissions, or name another folder."
        raise ConfigError(Problem("/trainer.default_root_dir", text)) from error
    try:
        _lock(descriptor, folder)
        if trains or found is None:
            os.ftruncate(descriptor, 0)
            known = {"process": os.getpid(), "host": os.uname().nodename, "job": slurm_job(), "recipe": recipe}
            os.write(descriptor, json.dumps(known).encode() + b"\n")
        os.environ[_VERSION] = folder.name[8:]
        yield int(folder.name[8:])
    finally:
        os.close(descriptor)
        if not any(path.name != LOCK for path in folder.iterdir()):
            shutil.rmtree(folder, ignore_errors=True)  # refused before it wrote anything


def _new(root: Path) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    number = max(_versions(root), default=-1) + 1
    while True:
        try:
            (root / f"version_{number}").mkdir()
            return root / f"version_{number}"
        except FileExistsError:  # another run has just taken it
            number += 1


def _lock(descriptor: int, folder: Path) -> None:
    try:
        lock(descriptor, wait=False)
    except BlockingIOError as error:
        other = about(folder)
        text = (
            f"expected a run that nobody goes on with, but process {other.get('process', '?')} on {other.get('host', '?')}"
            f" trains in `{folder}`. Wait for it or stop it, or begin a new run without `--ckpt_path last`."
        )
        raise ConfigError(Problem("ckpt_path", text)) from error


def resumable(root: Path) -> Path | None:
    """The folder that ``--ckpt_path last`` goes on in: the latest one with a last checkpoint."""
    versions = _versions(root)
    return next((versions[n] for n in sorted(versions, reverse=True) if last_checkpoint(versions[n])), None)


def requeued(root: Path) -> bool:
    """Whether SLURM has started this job before, and that run can be resumed."""
    folder = resumable(root)
    return folder is not None and _is_restart_of(about(folder))


def _is_restart_of(run: dict[str, Any]) -> bool:
    return _restarts() and run.get("job") == slurm_job() != ""


def _restarts() -> bool:
    return os.environ.get("SLURM_RESTART_COUNT", "0") != "0"


def _nothing_to_validate(root: Path) -> Problem:
    text = (
        f"expected a run with a last checkpoint in `{root}`, but there is none. Name a checkpoint, or leave this out."
    )
    return Problem("ckpt_path", f"{text} Without it the start model is validated.")


def last_of_another_logger(root: Path, asked: bool, trains: bool = True) -> Path | None:
    """The checkpoint that ``--ckpt_path last`` goes on from under another logger, whose folders only its library knows.

    Args:
        root: ``trainer.default_root_dir``.
        asked: whether the user wants to go on; else only a job that SLURM has started before does.
        trains: whether it is a fit, which may begin anew.

    Raises:
        ConfigError: the note of the latest run cannot be read, or a validation of the last checkpoint finds none.
    """
    found = _last_by_note(root / _LATEST, asked)
    if found is None and asked and not trains:
        raise ConfigError(_nothing_to_validate(root))
    return found


def _last_by_note(file: Path, asked: bool) -> Path | None:
    if not (asked or _restarts()) or not file.is_file():
        return None
    try:
        run = json.loads(file.read_text(encoding="utf-8"))
        folders = [Path(run["checkpoints"]), *map(Path, run.get("earlier", []))]
    except (OSError, ValueError, KeyError, TypeError) as error:
        text = f"`{file}` does not say where the latest run has its checkpoints. Delete it, and name the checkpoint instead."
        raise ConfigError(Problem("ckpt_path", text)) from error
    if not (asked or _is_restart_of(run)):
        return None
    return next((last for folder in folders if (last := _last_in(folder))), None)


def _note_of_latest(file: Path) -> dict[str, Any]:
    """What the note of the latest run under another logger says; nothing where it cannot be read."""
    try:
        run = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return run if isinstance(run, dict) else {}


def said_of_beginning(root: Path, asked: str | None, found: Path | None) -> str:
    """What a fit says that begins anew, though an earlier run could go on, or was meant to; else empty.

    Args:
        root: ``trainer.default_root_dir``.
        asked: ``ckpt_path``.
        found: the folder or checkpoint that it goes on from.
    """
    if asked is None and (note := _unfinished(root)):
        return f"{note} This run begins anew; with `--ckpt_path last` that one goes on."
    if asked == "last" and found is None:
        return f"No run in `{root}` has a last checkpoint to go on from. This run begins anew."
    return ""


def _unfinished(root: Path) -> str:
    """A sentence on the latest run in a folder if that run is unfinished and can be resumed; else empty."""
    versions = _versions(root)
    folder = versions[max(versions)] if versions else root
    checkpoint = last_checkpoint(folder)
    if checkpoint is None or not (folder / MARK).is_file():
        return ""
    total = (folder / MARK).read_text(encoding="utf-8").strip()
    content = _peek(checkpoint)
    if not _of_fit(content) or _WHOLE not in content:
        return ""  # `--ckpt_path last` says what is wrong with it
    step = content["global_step"]
    return f"{folder} is unfinished: its last checkpoint is of step {step}{f' of {total}' if total else ''}."


def _peek(checkpoint: Path) -> Any:
    """The content of a checkpoint, whose tensors stay on the disk; None where it cannot be read."""
    file = checkpoint / MAIN_FILE if checkpoint.is_dir() else checkpoint
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile):
        return None


def _of_fit(content: Any) -> bool:
    return isinstance(content, dict) and {"state_dict", "global_step", "pytorch-lightning_version"} <= content.keys()


def problems_of_start(generator: Any, checkpoint: Path, recipe: str, trains: bool = True) -> list[Problem]:
    """Why a run cannot go on from a checkpoint: it is none, or holds weights alone, or is of a run of another start model.

    Args:
        generator: the class path and arguments of this recipe's start model.
        checkpoint: where to go on. One that cannot be read is left to the loading where the one before it is kept.
        recipe: the file of this recipe.
        trains: whether it is a fit, which needs more than weights.
    """
    if checkpoint.is_dir() and not (checkpoint / MAIN_FILE).is_file():
        return [Problem("ckpt_path", no_checkpoint(checkpoint))]
    content = _peek(checkpoint)
    if content is None and checkpoint.is_file() and not before_of(checkpoint).is_file() and (why := damage(checkpoint)):
        text = f"`{checkpoint}` cannot be read as a checkpoint: {why}. Take another checkpoint of the run."
        return [Problem("ckpt_path", text)]
    if content is not None and not _of_fit(content):
        text = f"expected a checkpoint of cfg-distill fit, but `{checkpoint}` holds something else. Check the path."
        return [Problem("ckpt_path", text)]
    if trains and content is not None and _WHOLE not in content:
        text = f"expected a checkpoint that a fit can go on from, but `{checkpoint}` holds weights alone (`save_weights_only`)."
        go_on = "Export it, and begin a new run with the student as `@/model.start`; or name another checkpoint."
        return [Problem("ckpt_path", f"{text} {go_on}")]
    other = (content or {}).get("generator")
    if not isinstance(other, dict) or not isinstance(other.get("init_args"), dict):
        return []
    own, its = (_name(each) for each in (generator, other))
    if own == its:
        return []
    whose = about(checkpoint.parent.parent).get("recipe")
    text = (
        f"`{checkpoint}` is of a run that distils `{its}`{f' by `{whose}`' if whose else ''}, but this one distils"
        f" `{own}`{f' by `{recipe}`' if recipe else ''}. Name a folder for each with `@/trainer.default_root_dir`, or begin a"
        " new run without `@.ckpt_path`."
    )
    return [Problem("ckpt_path", text)]


def _name(spec: Any) -> str:
    """What a start model is called."""
    return str(spec["init_args"].get("path") or spec["class_path"])


class RunMark(Callback):
    """Say what is trained, and mark the folder of a run as unfinished until its end.

    Args:
        folder: of the run; None where another logger has chosen it.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self.began = False
        self._note: Path | None = None
        self._gone = False

    def ended_early(self, trainer: Trainer) -> bool:
        """Whether this run took its last step in an earlier process, which was stopped before its end."""
        if self.began:
            return False
        if self.folder is None:
            note = _note_of_latest(Path(trainer.default_root_dir) / _LATEST)
            return trainer.ckpt_path is not None and bool(note.get("unfinished"))
        return (self.folder / MARK).is_file()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.began = True
        if not trainer.is_global_zero:
            return
        sizes = [(parameter.numel(), parameter.requires_grad) for parameter in pl_module.parameters()]
        trained, all_ = sum(size for size, trains in sizes if trains), sum(size for size, _ in sizes)
        print(f"Training {trained:,} of {all_:,} parameters, processes: {trainer.world_size}.", flush=True)
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._write(trainer)
            self._say_if_full(trainer)
        elif not trainer.fast_dev_run and (  # type: ignore[attr-defined]  # Lightning sets it from outside the class
            checkpoints := getattr(trainer.checkpoint_callback, "dirpath", None)
        ):
            file, place = Path(trainer.default_root_dir) / _LATEST, str(Path(checkpoints).absolute())
            before = _note_of_latest(file)
            known = [str(each) for each in (before.get("checkpoints"), *before.get("earlier", [])) if each]
            earlier = [each for each in known if each != place and _last_in(Path(each))][:1]
            run = {"checkpoints": place, "earlier": earlier, "job": slurm_job(), "unfinished": True}
            write_text(file, json.dumps(run) + "\n")
            self._note = file

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if self.folder is None or not trainer.is_global_zero or self._gone or (self.folder / MARK).exists():
            return
        self._gone = True
        print(
            f"Warning: the folder of this run, {self.folder}, is gone, and its training curve and checkpoints with it. The"
            " next checkpoint is written into a new folder of this name.",
            file=sys.stderr,
            flush=True,
        )
        for logger in trainer.loggers:
            logger.finalize("failed")  # the next value opens new files

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Not reached by a run that fails or is stopped.
        if not trainer.is_global_zero:
            return
        if self.folder is not None:
            (self.folder / MARK).unlink(missing_ok=True)
        elif self._note is not None:
            write_text(self._note, json.dumps(_note_of_latest(self._note) | {"unfinished": False}) + "\n")

    def say_what_is_next(self, distilled: bool) -> None:
        """Print the commands for the curves of a finished fit, and for a folder of its student if it has one."""
        if self.folder is None or (checkpoint := last_checkpoint(self.folder)) is None:
            return
        made = f"last checkpoint: {checkpoint}"
        if distilled:
            export = [
                "cfg-distill",
                "export",
                "--checkpoint",
                str(checkpoint),
                "--out",
                f"students/{self.folder.parent.name}",
            ]
            made = f"the student as a model folder: {shlex.join(export)}"
        curves = shlex.join(["tensorboard", "--logdir", str(self.folder.parent)])
        print(f"Finished. Curves: {curves}; {made}", flush=True)

    def _write(self, trainer: Trainer) -> None:
        assert self.folder is not None
        total = str(trainer.max_steps) if trainer.max_steps > 0 else ""
        (self.folder / MARK).write_text(f"{total}\n", encoding="utf-8")

    def _say_if_full(self, trainer: Trainer) -> None:
        """Warn before the work when the disk has no room for two checkpoints: weights, and two states of an optimiser."""
        assert self.folder is not None
        module = trainer.lightning_module
        size = 2 * 3 * sum(p.numel() * p.element_size() for p in module.parameters() if p.requires_grad)
        if (free := shutil.disk_usage(self.folder).free) < size:
            print(
                f"Warning: the disk of {self.folder} has {free / 1e9:.2f} GB left, and two checkpoints take about"
                f" {size / 1e9:.2f} GB. Make room before the next one is written.",
                file=sys.stderr,
                flush=True,
            )


def _versions(root: Path) -> dict[int, Path]:
    folders = root.glob("version_*") if root.is_dir() else ()
    return {int(folder.name[8:]): folder for folder in folders if re.fullmatch(r"version_\d+", folder.name)}


def last_checkpoint(folder: Path) -> Path | None:
    """The last checkpoint in the folder of a run."""
    return _last_in(folder / "checkpoints")


def _last_in(checkpoints: Path) -> Path | None:
    kept = checkpoints.glob("last*.ckpt.before")
    # Of a sharded checkpoint, a kill between two renames may leave nothing but the folder that was kept.
    alone = [path for path in kept if path.is_dir() and not path.with_suffix("").exists()]
    return max([*checkpoints.glob("last*.ckpt"), *alone], key=lambda path: path.stat().st_mtime, default=None)
