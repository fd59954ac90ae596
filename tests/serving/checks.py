"""Checks as lines, and the comparison of greedy texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

NEAR_TIE = 2e-3
"""Two tokens whose log-probabilities differ by less may change places by rounding; an engine rounds otherwise than we do."""


@dataclass(frozen=True)
class Text:
    """The greedy text of one prompt.

    Attributes:
        tokens: its tokens, an end token included.
        gaps: the log-probability of each token less that of the next likeliest one.
    """

    tokens: list[int]
    gaps: list[float]


Texts = dict[str, list[Text]]
"""Setting -> the greedy text of every prompt."""


@dataclass
class Checks:
    """Prints a line per check, and remembers whether one failed."""

    failed: list[str] = field(default_factory=list)
    number: int = 0

    def __call__(self, holds: bool, what: str, found: str = "") -> None:
        """One check: what should be so, and what was found."""
        self.number += 1
        if not holds:
            self.failed.append(what)
        print(f"{'ok    ' if holds else 'FAILED'}  {what}{f': {found}' if found else ''}", flush=True)

    def told(self) -> int:
        """Print the sum of all; returns the exit code."""
        print(f"{self.number - len(self.failed)} passed, {len(self.failed)} failed")
        return 1 if self.failed else 0


def difference(expected: Text, got: Sequence[int]) -> str:
    """Where a text differs; empty where it is equal, as far as it goes or up to a near tie.

    Example:
        >>> expected = Text([5, 6, 7], [1.0, 0.001, 2.0])
        >>> difference(expected, [5, 6, 7]), difference(expected, [5, 8, 9]), difference(expected, [])
        ('', '', 'it is empty')
        >>> difference(expected, [5, 6, 8])
        'token 3 is 8, expected 7, which leads by 2'
    """
    if not got:
        return "it is empty"
    for place, (token, gap, its) in enumerate(zip(expected.tokens, expected.gaps, got, strict=False), 1):
        if token != its:
            return "" if gap < NEAR_TIE else f"token {place} is {its}, expected {token}, which leads by {gap:.2g}"
    short = len(got) < len(expected.tokens)
    return f"it ends after {len(got)} of {len(expected.tokens)} tokens" if short else ""


def compare(expected: Texts, got: Mapping[str, Sequence[Sequence[int]]]) -> tuple[bool, str]:
    """Whether the texts of every setting are the expected ones, and in words how many are, and where the first differs."""
    wrong, whole, count = [], 0, 0
    for setting, texts in got.items():
        for number, (ours, theirs) in enumerate(zip(expected[setting], texts, strict=True)):
            count += 1
            whole += ours.tokens == list(theirs)
            if said := difference(ours, theirs):
                wrong.append(f"{setting}, prompt {number}: {said}")
    ties = count - whole - len(wrong)
    told = f"{whole} of {count} texts" + (f", {ties} more up to a near tie" if ties else "")
    return not wrong, "; ".join([told, *wrong[:2]])
