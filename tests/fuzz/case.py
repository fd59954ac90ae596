"""One broken input, what came of it, and whether that is as it must be."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Expect = Literal["refused", "legal", "either"]

_VERBS = (
    "Did you mean|Use|Set|Give|Name|Take|Add|Check|See|Remove|Write|Choose|Copy|Move|Lower|Raise|Export|Make|Keep|Mend|Indent|"
    "Leave|Put|Save|Install|Train|Shorten|Undo|Wait|Update|Rename|Evaluate|Change|Try|Pass|pass|Do|Merge|Ask|Known|It has|"
    "allow it|must be|Must be|has to be|should be|Available|Or give|--help|expected|Expected"
)
ADVICE = re.compile(rf"(?<!\w)({_VERBS})\b")
"""A message must say what to do, or at least what was expected."""


@dataclass(frozen=True)
class Case:
    """One broken input.

    Attributes:
        area: the kind of input.
        name: what is broken.
        words: the command line.
        files: the files of the case's folder, which the command runs in.
        make: further preparations, given that folder.
        expect: ``refused``: exit code 2 and a message. ``legal``: exit code 0. ``either``: one of the two, where nobody
            can know beforehand; a traceback, a hang or weights that are no numbers are wrong there too.
        named: the message of a refusal holds one of these: the key, the option or the file. Empty: any message.
    """

    area: str
    name: str
    words: tuple[str, ...]
    files: dict[str, str | bytes] = field(default_factory=dict)
    make: Callable[[Path], None] | None = None
    expect: Expect = "refused"
    named: tuple[str, ...] = ()


@dataclass
class Outcome:
    """What came of a case.

    Attributes:
        code: the exit code; negative for a signal.
        hung: whether it ran out of time.
        out, err: what it printed.
        changed: files that were there before, and are others or gone.
        spoilt: files of weights that were written and hold NaN or infinity.
        stray: files that were written elsewhere than in ``out``, ``runs`` and ``samples``.
        seconds: of the processor.
    """

    code: int
    hung: bool
    out: str
    err: str
    changed: list[str]
    spoilt: list[str]
    stray: list[str]
    seconds: float


def complaints(case: Case, got: Outcome) -> list[str]:
    """What is wrong with the outcome of a case; nothing when it is as it must be."""
    found = []
    if got.hung:
        found.append("hangs")
    elif got.code < 0:
        found.append(f"ends by signal {-got.code}")
    elif got.code not in (0, 2):
        found.append(f"exit code {got.code}")
    if "Traceback (most recent call last)" in got.err:
        last = [line for line in got.err.splitlines() if line.strip()][-1]
        found.append(f"traceback: {last[:120]}")
    if got.code == 0 and case.expect == "refused":
        found.append("nonsense is accepted")
    if got.code == 2 and case.expect == "legal":
        found.append("refused, though it is legal")
    if got.code == 2 and not found:
        if case.named and not any(name in got.err for name in case.named):
            found.append(f"the message names none of {', '.join(case.named)}")
        if not ADVICE.search(got.err):
            found.append("the message gives no advice")
    for what, files in {"overwrote": got.changed, "wrote NaN": got.spoilt, "wrote elsewhere": got.stray}.items():
        if files:
            found.append(f"{what}: {', '.join(files[:3])}")
    return found
