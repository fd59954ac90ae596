"""The user's cache folder: what was made once from a file that is still there, and can be deleted at any time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

VARIABLE = "CFG_DISTILL_CACHE"


def cache_folder() -> Path:
    """``$CFG_DISTILL_CACHE``, else ``$XDG_CACHE_HOME/cfg-distill``, else ``~/.cache/cfg-distill``. It need not exist."""
    if own := os.environ.get(VARIABLE):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "cfg-distill"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, which is made: of several processes one works, the others find what it made."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
