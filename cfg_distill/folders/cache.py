"""The user's cache folder: what was made once from a file that is still there, and can be deleted at any time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cfg_distill.files import expanded, lock

VARIABLE = "CFG_DISTILL_CACHE"


def cache_folder() -> Path:
    """``$CFG_DISTILL_CACHE``, else ``$XDG_CACHE_HOME/cfg-distill``, else ``~/.cache/cfg-distill``. It need not exist."""
    if own := os.environ.get(VARIABLE):
        return expanded(own)
    return expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "cfg-distill"


@contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Hold the lock of a folder, which is made: of several processes one works, the others find what it made.

    Gives False on a file system without locks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        yield lock(file.fileno())
