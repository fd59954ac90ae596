"""The folders of runs, runs/NAME/version_N: which is next, and which is unfinished."""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

_VERSION = "CFG_DISTILL_RUN_VERSION"
_MARK = ".unfinished"


def run_version(root: Path, resume: bool) -> int:
    """N of the folder version_N: a new one, or with ``resume`` the latest that holds a last checkpoint."""
    if _VERSION in os.environ and os.environ.get("LOCAL_RANK", "0") != "0":  # started by the first process of a run
        return int(os.environ[_VERSION])
    versions = _versions(root)
    resumable = [n for n, folder in versions.items() if resume and _last_checkpoint(folder)]
    version = max(resumable) if resumable else max(versions, default=-1) + 1
    os.environ[_VERSION] = str(version)
    return version


def unfinished(root: Path) -> str:
    """A sentence on the latest run in a folder if that run is unfinished and can be resumed; else empty."""
    versions = _versions(root)
    folder = versions[max(versions)] if versions else root
    checkpoint = _last_checkpoint(folder)
    if checkpoint is None or not (folder / _MARK).is_file():
        return ""
    total = (folder / _MARK).read_text(encoding="utf-8").strip()
    try:
        step = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["global_step"]
    except (OSError, RuntimeError, EOFError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile):
        return ""  # `--ckpt_path last` says what is wrong with it
    return f"{folder} is unfinished: its last checkpoint is of step {step}{f' of {total}' if total else ''}."


class RunMark(Callback):
    """Say what is trained, and mark the folder of a run as unfinished until its end.

    Args:
        folder: of the run; None where it has none.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        sizes = [(parameter.numel(), parameter.requires_grad) for parameter in pl_module.parameters()]
        trained, all_ = sum(size for size, trains in sizes if trains), sum(size for size, _ in sizes)
        print(f"Training {trained:,} of {all_:,} parameters, processes: {trainer.world_size}.", flush=True)
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            total = str(trainer.max_steps) if trainer.max_steps > 0 else ""
            (self.folder / _MARK).write_text(f"{total}\n", encoding="utf-8")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Not reached by a run that fails or is stopped.
        if trainer.is_global_zero and self.folder is not None:
            (self.folder / _MARK).unlink(missing_ok=True)


def _versions(root: Path) -> dict[int, Path]:
    folders = root.glob("version_*") if root.is_dir() else ()
    return {int(folder.name[8:]): folder for folder in folders if re.fullmatch(r"version_\d+", folder.name)}


def _last_checkpoint(folder: Path) -> Path | None:
    return max(folder.glob("checkpoints/last*.ckpt"), key=lambda path: path.stat().st_mtime, default=None)
