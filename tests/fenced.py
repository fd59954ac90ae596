"""The fenced blocks of a markdown page, for the tests that run what the documentation says."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
# What makes any fit a matter of seconds.
SHORT_FIT = [
    "--trainer.max_steps=1",
    "--trainer.val_check_interval=1",
    "--trainer.limit_val_batches=1",
    "--trainer.log_every_n_steps=1",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--data.batch_size=2",
    "--data.validation_batch_size=2",
    "--model.sampling.samples=3",
    "--model.sampling.max_new_tokens=6",
]
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_NAME = re.compile(r"# ([\w./-]+\.\w+)\n")


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, its text, and the section (a heading of two # or more) it stands in."""

    language: str
    text: str
    heading: str

    @property
    def file(self) -> str | None:
        """The name in a first comment line such as ``# my_rewards.py``: the reader is to write the block there."""
        named = _NAME.match(self.text)
        return named[1] if named else None

    def commands(self) -> list[list[str]]:
        """The words of each command of a shell block; comments and line continuations understood."""
        joined = self.text.replace("\\\n", " ")
        return [words for line in joined.splitlines() if (words := shlex.split(line, comments=True))]


def blocks(page: str) -> list[Block]:
    """The blocks of a page, named from the root of the repository.

    Raises:
        AssertionError: a fence that is never closed, or names no language: a block that no test would see.
    """
    text = (ROOT / page).read_text(encoding="utf-8")
    found = [
        Block(match[1], match[2], (re.findall(r"^#{2,} (.+)$", text[: match.start()], re.MULTILINE) or [""])[-1])
        for match in _BLOCK.finditer(text)
    ]
    assert 2 * len(found) == len(re.findall(r"^```", text, re.MULTILINE)), (
        f"{page}: a fence is open or names no language"
    )
    return found
