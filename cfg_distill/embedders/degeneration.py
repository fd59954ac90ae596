"""Text that is no text any more: empty answers, loops, rubbish; and which of it earns no diversity."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Literal
from unicodedata import category

import torch
from torch import Tensor

from cfg_distill.embedders.base import Embedder, is_empty, texts_of
from cfg_distill.embedders.tokens import repeated_grams, tokens
from cfg_distill.errors import Problem

LONG = 60
"""Characters from which on a text's compression says something."""

Ignored = Literal["empty", "degenerate"]
"""Which texts earn no diversity: ``empty`` ones (no letter or digit), or all that are :func:`degenerate`."""


def degenerate(
    text: str, repeated: float = 0.3, compressed: float = 0.35, words: int = 3, signs: float = 1 / 3
) -> bool:
    """Whether a text loops, says nothing or falls apart, by signs that need no model.

    - fewer than ``words`` words; in a script without spaces each character counts as one;
    - more than the share ``repeated`` of its 4-grams of words were there before;
    - it compresses to less than the share ``compressed`` of its length (loops within words: ``!!!!``), if it is long enough;
    - it holds the mark of bytes that are no UTF-8, or more than the share ``signs`` of its characters, spaces left out, are
      punctuation, symbols or control characters.

    The marks of lists and of verses (``- 2 cups of flour``, ``a lamp | a boat``) are text: they stay far below ``signs``.

    Args:
        text: the sample.
        repeated: see above. English prose of 100 words repeats less than a twentieth.
        compressed: see above. English prose of 300 characters compresses to about 0.6.
        words: see above.
        signs: see above. English prose has 0.03 to 0.05, a list of ingredients about 0.1.

    Example:
        >>> degenerate("The sea was calm, and nobody spoke."), degenerate("the sea the sea the sea the sea the sea")
        (False, True)
    """
    found = tokens(text)
    if len(found) < words or "\ufffd" in text:
        return True
    if repeated_grams(found, 4) > repeated:
        return True
    data = _as_bytes(text)
    if len(data) >= LONG and len(zlib.compress(data, 9)) < compressed * len(data):
        return True
    characters = "".join(found)
    # No isalnum: the vowel signs of Hindi and Thai are neither letters nor digits to it.
    return sum(category(character)[0] in "PSC" for character in characters) > signs * len(characters)


def _as_bytes(text: str) -> bytes:
    """One byte per character, two for texts of more than 256 characters: UTF-8 spends three on a Thai letter, and two of these
    are always the same, so that prose compressed like a loop."""
    if text.isascii():
        return text.encode()
    codes = {character: code for code, character in enumerate(dict.fromkeys(text))}
    width = 1 if len(codes) <= 256 else 2
    return b"".join(codes[character].to_bytes(width, "big") for character in text)


def is_ignored(text: str, ignored: Ignored) -> bool:
    """Whether a text earns no diversity under a rule.

    Example:
        >>> [is_ignored(text, "empty") for text in ("", "Yes.")], is_ignored("Yes.", "degenerate")
        ([True, False], True)
    """
    return is_empty(text) or (ignored == "degenerate" and degenerate(text))


def problems_of_ignored(ignored: str) -> list[Problem]:
    """What is wrong with a rule under the key ``ignored``."""
    if ignored in ("empty", "degenerate"):
        return []
    return [Problem("ignored", f"expected `empty` or `degenerate`, but got `{ignored}`.")]


class TextEmbedder(Embedder):
    """An embedder of texts, with a rule for the texts that earn no diversity.

    Args:
        ignored: the rule; see :data:`Ignored`.
    """

    def __init__(self, ignored: Ignored = "empty") -> None:
        super().__init__()
        self.ignored = ignored

    def degenerate(self, outputs: Sequence[str]) -> Tensor:
        texts = texts_of(f"Embedder `{type(self).__name__}`", outputs)
        return torch.tensor([is_ignored(text, self.ignored) for text in texts], dtype=torch.bool)
