"""What Lightning, transformers and torch say at every start, and what says nothing about the run: silenced."""

from __future__ import annotations

import logging
import os
import sys
import warnings

LOUD = "CFG_DISTILL_VERBOSE"
"""The variable of the environment that ``fit --verbose`` sets, for the other processes of a run too."""


def quieten() -> None:
    """Silence advertisements, deprecations inside libraries, and warnings of what is meant to be so; not under --verbose."""
    if LOUD in os.environ:
        return
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_says_something)
    warnings.filterwarnings("ignore", message=".*set_vital", category=UserWarning)
    warnings.filterwarnings("ignore", message=".*LeafSpec")
    warnings.filterwarnings("ignore", message=".*all_gather is deprecated")  # as Lightning calls it
    # Prompts need no worker processes: reading one is a list index.
    warnings.filterwarnings("ignore", message=".*does not have many workers")
    # No validation prompts: that was the wish.
    warnings.filterwarnings("ignore", message="Total length of `list` across ranks is zero")
    # `--ckpt_path last` also starts a run; one that goes on finds its own checkpoints, and another may go on from them.
    warnings.filterwarnings("ignore", message=".*there is no last checkpoint available")
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
    warnings.filterwarnings("ignore", message="The dirpath has changed")
    # Epochs are short, and runs are counted in steps.
    warnings.filterwarnings("ignore", message="The number of training batches .* is smaller than the logging interval")
    # The summary counts four bytes per parameter, and mixed precision keeps as many.
    warnings.filterwarnings("ignore", message="Precision .* is not supported by the model summary")
    # On purpose: the student trains without dropout, and its teacher never leaves eval mode.
    warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode")
    without_bars()


def without_bars() -> None:
    """Off a terminal, load weights without a bar: in a log file it is a line per redraw."""
    if not sys.stdout.isatty():
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()


def _says_something(record: logging.LogRecord) -> bool:
    """Lightning's advertisement is nothing; nor is that an interruption saved a checkpoint, which the last line says."""
    said = record.getMessage()
    return not said.startswith(("💡 Tip", "An KeyboardInterrupt was raised", "An SIGTERMException was raised"))
