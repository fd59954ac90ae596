"""Which process of a run this is, before torch is asked. No torch in here."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

STARTED_BY = "CFG_DISTILL_STARTED_BY"
"""The environment variable with the id of the process that started the others of a run."""


def is_first() -> bool:
    """Whether this process is the first of its run, by what Lightning, torchrun or SLURM say in the environment."""
    return all(os.environ.get(rank, "0") == "0" for rank in ("LOCAL_RANK", "RANK", "SLURM_PROCID"))


def say_note(text: str) -> None:
    """Print a note that is not empty on the standard error, once for all processes of a run."""
    if text and is_first():
        print(f"Note: {text}", file=sys.stderr, flush=True)


@contextmanager
def others_know_this_process() -> Iterator[None]:
    """Processes that are started in the block know that this one, if it is the first of a run, has started them."""
    if is_first():
        os.environ[STARTED_BY] = str(os.getpid())
    try:
        yield
    finally:
        if is_first():
            os.environ.pop(STARTED_BY, None)


def is_started_by_first() -> bool:
    """Whether the first process of the run started this one, and not torchrun or SLURM."""
    return not is_first() and os.environ.get(STARTED_BY) == str(os.getppid())
