"""Text that is no text any more: loops, empty answers, rubbish."""

from __future__ import annotations

import zlib

from cfg_distill.metrics.base import TextMetric
from cfg_distill.metrics.lexical import repeated_n

LONG = 60
"""Characters from which on a text's compression says something."""


def degenerate(text: str, repeated: float = 0.3, compressed: float = 0.35, words: int = 3) -> bool:
    """Whether a text loops, says nothing or falls apart, by signs that need no model.

    - fewer than ``words`` words;
    - more than the share ``repeated`` of its 4-grams of words were there before;
    - it compresses to less than the share ``compressed`` of its length (loops within words: ``!!!!``), if it is long enough;
    - it holds the mark of bytes that are no UTF-8, or more than a tenth of its words are without any letter or digit.

    Args:
        text: the sample.
        repeated: see above. English prose of 100 words repeats less than a twentieth.
        compressed: see above. English prose of 300 characters compresses to about 0.6.
        words: see above.

    Example:
        >>> degenerate("The sea was calm, and nobody spoke."), degenerate("the sea the sea the sea the sea the sea")
        (False, True)
    """
    found = text.split()
    if len(found) < words or "\ufffd" in text:
        return True
    if repeated_n(text, 4) > repeated:
        return True
    data = text.encode()
    if len(data) >= LONG and len(zlib.compress(data, 9)) < compressed * len(data):
        return True
    return sum(not any(sign.isalnum() for sign in word) for word in found) > 0.1 * len(found) + 1


class Degeneration(TextMetric):
    """The share of a prompt's samples that loop, say nothing or fall apart: see :func:`degenerate`."""

    axis = "guard"
    higher_is_better = False

    def score_group(self, texts: list[str]) -> float:
        return sum(map(degenerate, texts)) / len(texts)
