"""Folders that appear whole, under their name, or not at all."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cfg_distill.errors import ConfigError, Problem
from cfg_distill.files.locks import lock as hold
from cfg_distill.files.places import expanded


@contextmanager
def staged_folder(out: str | Path) -> Iterator[Path]:
    """A folder to write into that takes the name ``out`` when the block ends without an exception; else it is removed.

    The files are written to ``.NAME.partial`` beside ``out``. They are on the disk before that folder takes the name. Where the
    system can exchange two names at once (Linux), ``out`` is the whole old folder or the whole new one at any moment.
    Elsewhere the old folder is called ``.NAME.replaced`` for the instant between two renames, and the next call restores it.
    Whether ``out`` may be replaced is for the caller to ask (:func:`problems_of_out`).

    Args:
        out: the folder; its parents are made. A link is followed.

    Raises:
        ConfigError: the folder cannot be written, or another process is writing it.

    Example:
        >>> import tempfile
        >>> out = Path(tempfile.mkdtemp()) / "student"
        >>> with staged_folder(out) as folder:
        ...     _ = (folder / "config.json").write_text("{}")
        >>> [path.name for path in out.parent.rglob("*")]
        ['student', 'config.json']
    """
    place = expanded(out).resolve()
    staged, replaced, lock = (place.with_name(f".{place.name}.{kind}") for kind in ("partial", "replaced", "lock"))
    with _refusals(out):
        place.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _locked(lock, out)
    try:
        with _refusals(out):
            _restore(replaced, place)
            _remove(staged, replaced)  # left by a process that was killed
            if place.exists() and not place.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, "a file has this name")
            staged.mkdir()
        with _refusals(out, errno.ENOSPC, errno.EDQUOT, errno.EFBIG):  # other errors may come from what the block reads
            yield staged
        with _refusals(out):
            make_readable(staged)
            for path in [*staged.rglob("*"), staged]:
                sync(path)
            _put(staged, place, replaced)
            sync(place.parent)
    finally:
        _restore(replaced, place)
        _remove(staged, replaced)
        lock.unlink(missing_ok=True)
        os.close(descriptor)


def make_readable(folder: Path) -> None:
    """Let whoever may read a folder read its files: writers of weights allow their owner only, and a server is another user."""
    readers = folder.stat().st_mode & 0o444
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and (mode := path.stat().st_mode) | readers != mode:
            path.chmod(stat.S_IMODE(mode | readers))


@contextmanager
def _refusals(out: str | Path, *kinds: int) -> Iterator[None]:
    """The system's refusals to write, all or of some kinds, as a message."""
    try:
        yield
    except Exception as error:
        number = refusal(error)
        if not number or (kinds and number not in kinds):
            raise
        text = f"`{out}` cannot be written: {os.strerror(number)}. Make room or change the permissions, or name another folder."
        raise ConfigError(Problem("out", text)) from error


def refusal(error: Exception) -> int:
    """The number of the system's refusal behind an error; 0 for another error."""
    if isinstance(error, OSError):
        return error.errno or 0
    # safetensors writes in Rust, and has its own exception.
    said = re.search(r"\(os error (\d+)\)", str(error)) if type(error).__name__ == "SafetensorError" else None
    return int(said[1]) if said else 0


def _locked(lock: Path, out: str | Path) -> int:
    """The descriptor of a lock that this process alone holds. The system ends the lock with the process."""
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if not hold(descriptor, wait=False):
                return descriptor
        except BlockingIOError as error:
            os.close(descriptor)
            text = f"`{out}` is being written by another process. Wait for it, or name another folder."
            raise ConfigError(Problem("out", text)) from error
        try:
            if os.path.samestat(os.fstat(descriptor), lock.stat()):
                return descriptor
        except FileNotFoundError:
            pass
        os.close(descriptor)  # its holder removed the file between the two calls


def _put(staged: Path, place: Path, replaced: Path) -> None:
    """Let the staged folder take the place of the old one, which is under one of the other names afterwards."""
    if not place.exists():
        staged.rename(place)
    elif not exchanged(staged, place):
        place.rename(replaced)
        staged.rename(place)


def exchanged(one: Path, other: Path) -> bool:
    """Exchange two names at once; False where the system or the file system cannot."""
    here, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux
    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    return renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0


def _restore(replaced: Path, place: Path) -> None:
    """Return the old folder to its name, if a process was stopped between two renames."""
    if replaced.exists() and not place.exists():
        replaced.rename(place)


def _remove(*folders: Path) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows opens no folders
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
