"""Locks on open files. The system ends a lock with its process, so none survives a kill."""

from __future__ import annotations

import fcntl


def lock(descriptor: int, wait: bool = True) -> bool:
    """Lock an open file for this process alone; False on a file system without locks, where nothing is locked.

    Args:
        descriptor: of the file.
        wait: until another process lets it go.

    Raises:
        BlockingIOError: another process holds it, and this one does not wait.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True
