"""AtomicCheckpointIO: a checkpoint under its final name is whole, whenever the machine stops."""

import os
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.fabric.utilities.types import _PATH


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write a checkpoint beside its target, to the disk, read it back, then rename it.

    Lightning stages in ``$TMPDIR`` and moves, which across file systems is a copy: a kill leaves a truncated file under
    the final name. It never syncs, and takes a refused permission for success. Here every step that fails raises, and
    leaves the checkpoint of before. Remote paths (``s3://...``) are written by Lightning.

    Example::

        trainer:
          plugins:
            - class_path: cfg_distill.callbacks.AtomicCheckpointIO
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None) -> None:
        """Save, and return only when the file is whole, on the disk and under its name.

        Raises:
            OSError: the file cannot be written, or reads back otherwise than it was written.
        """
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        # One name for all attempts: what a killed run left is written over.
        partial = target.with_name(f".{target.name}.partial")
        try:
            with partial.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            _verify(partial)
            os.replace(partial, target)
            _sync_folder(target.parent)
        finally:
            partial.unlink(missing_ok=True)


def _verify(path: Path) -> None:
    """Read every byte against the checksums that torch.save's archive holds."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except zipfile.BadZipFile as error:
        raise OSError(f"Checkpoint {path} was written, but cannot be read: {error}") from error
    if damaged is not None:
        raise OSError(f"Checkpoint {path} was written, but {damaged} in it reads back damaged.")


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
