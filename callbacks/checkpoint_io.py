"""AtomicCheckpointIO: a checkpoint under its final name is whole, whenever the machine stops."""

import errno
import fcntl
import glob
import os
import pickle
from pathlib import Path
from typing import IO, Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.fabric.utilities.types import _PATH
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from cfg_distill.checkpoints import HIDES_CODE, problem_of_file
from cfg_distill.checkpoints.shards import read_folder, remove
from cfg_distill.errors import ConfigError, Problem
from cfg_distill.files import before_of, damage, lock
from cfg_distill.files.staged import sync

_NO_PLACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write a checkpoint beside its target, to the disk, read it back, then rename it.

    Lightning stages in ``$TMPDIR`` and moves, which across file systems is a copy: a kill leaves a truncated file under
    the final name. Lightning never syncs, and takes a refused permission for success. Here every step that fails raises, and
    leaves the checkpoint of before. Two runs that save under one name each write a file of their own; the later one stays.

    A checkpoint that is saved over another one keeps that one beside it, as ``last.ckpt.before``: two in all. A checkpoint is
    compared with its checksums when it is loaded, too. If it is damaged, the one before is loaded, and a warning says so.
    Remote paths (``s3://...``) are left to Lightning.

    Example::

        trainer:
          plugins:
            - class_path: cfg_distill.callbacks.AtomicCheckpointIO
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None) -> None:
        """Save, and return only when the file is whole, on the disk and under its name.

        Raises:
            ConfigError: there is no room, or no permission; it names the checkpoint that is safe.
            OSError: the file cannot be written for another reason, or reads back otherwise than it was written.
        """
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        try:
            self._save(checkpoint, target)
        except OSError as error:
            if error.errno not in _NO_PLACE:
                raise
            safe = [str(each) for each in (target, before_of(target)) if each.is_file() and not damage(each)]
            kept = f"The checkpoint before it is whole: `{safe[0]}`." if safe else "There is no checkpoint before it."
            text = (
                f"Checkpoint `{target}` cannot be written: {error.strerror}. {kept} Make room or change the permissions, then"
                " go on with `--ckpt_path last`."
            )
            raise ConfigError(text) from error

    def _save(self, checkpoint: dict[str, Any], target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(target)
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
        try:
            with _locked(partial) as file:
                _write(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
                if problem := damage(partial):
                    raise OSError(f"Checkpoint {target} was written, but reads back damaged: {problem}.")
                _keep(target)
                os.replace(partial, target)
            sync(target.parent)
        finally:
            partial.unlink(missing_ok=True)

    def load_checkpoint(self, path: _PATH, *arguments: Any, **settings: Any) -> dict[str, Any]:
        """Load a checkpoint as Lightning does, once every byte of it has been checked; the one before, if it is damaged.

        Raises:
            ConfigError: no such file, or a damaged one without a whole one before it, or one that holds code.
        """
        if "://" in str(path):
            return super().load_checkpoint(path, *arguments, **settings)
        if problem := problem_of_file(Path(path)):
            before = before_of(Path(path))
            if Path(path).is_dir() or not before.is_file() or damage(before):
                raise ConfigError(Problem("ckpt_path", problem))
            rank_zero_warn(f"{problem} The run goes on from `{before}`, which is whole.")
            path = before
        try:
            if Path(path).is_dir():
                return read_folder(Path(path))
            return super().load_checkpoint(path, *arguments, **settings)
        except pickle.UnpicklingError as error:
            raise ConfigError(Problem("ckpt_path", f"`{path}` {HIDES_CODE}")) from error

    def remove_checkpoint(self, path: _PATH) -> None:
        """Remove a checkpoint, and the one that was kept before it."""
        super().remove_checkpoint(path)
        if "://" not in str(path):
            remove(before_of(Path(path)))


def _keep(target: Path) -> None:
    """Keep a checkpoint that is about to be replaced. It stays under its own name meanwhile."""
    if not target.is_file():
        return
    before = before_of(target)
    second = before.with_name(f".{before.name}.{os.getpid()}.partial")
    second.unlink(missing_ok=True)
    try:
        second.hardlink_to(target)
    except OSError:  # a file system without second names
        second = target
    try:
        os.replace(second, before)
    except FileNotFoundError:
        pass  # another run under the same name has tidied up, and keeps its own
    finally:
        if second != target:
            second.unlink(missing_ok=True)


def _write(checkpoint: dict[str, Any], file: IO[bytes]) -> None:
    """torch.save. On a full disk torch also complains that its archive is not complete, and hides the reason."""
    try:
        torch.save(checkpoint, file)
    except RuntimeError as error:
        reason = error.__context__
        if isinstance(reason, OSError):
            raise reason from None
        raise


def _locked(partial: Path) -> IO[bytes]:
    """An empty file, locked for as long as it is open: a locked file belongs to a run that is alive."""
    while True:
        # Not emptied before it is locked: two containers may have processes of one number.
        file = os.fdopen(os.open(partial, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        lock(file.fileno())
        if partial.exists() and os.path.samestat(os.fstat(file.fileno()), partial.stat()):
            file.truncate()
            return file
        file.close()  # renamed by its run, or removed as a leftover, between the two calls


def _remove_leftovers(target: Path) -> None:
    """Remove the files that killed runs left beside a checkpoint."""
    for leftover in target.parent.glob(f".{glob.escape(target.name)}*.partial"):
        try:
            with leftover.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                leftover.unlink(missing_ok=True)
        except OSError:
            pass  # its run is alive, or has just renamed it
