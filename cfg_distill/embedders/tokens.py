"""Where the words of a text are: at spaces, and in scripts written without spaces at every character. An accent may be a
character of its own or a part of its letter (Unicode's NFD and NFC): both are read alike. And n-grams of anything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar
from unicodedata import category, normalize

T = TypeVar("T")

UNSPACED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Burmese
    (0x1780, 0x17FF),  # Khmer
    (0x3005, 0x3007),  # signs that repeat or stand for a Chinese character
    (0x3040, 0x30FF),  # Japanese kana
    (0x3400, 0x4DBF),  # Chinese characters, to the last line but one
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
    (0xFF66, 0xFF9D),  # narrow kana
)
"""First and last code point of the scripts without spaces. Source for Chinese and Japanese: the tokenizer of sacrebleu's ``zh``
and that of BERT, which set each character apart; real word breaks take a dictionary per language."""


class _Apart(dict[int, str]):
    """A table for ``str.translate`` that learns a character when it first meets it."""

    def __init__(self, signs: bool) -> None:
        super().__init__()
        self.signs = signs

    def __missing__(self, code: int) -> str:
        character = chr(code)
        # No \w: the vowel signs of Hindi and Thai are marks (M), and it would split the words at them.
        if not self.signs and character != "_" and category(character)[0] not in "LMN":
            found = " "
        elif any(first <= code <= last for first, last in UNSPACED):
            found = f" {character} "
        else:
            found = character
        self[code] = found
        return found


_WITH_SIGNS, _WITHOUT_SIGNS = _Apart(signs=True), _Apart(signs=False)


def tokens(text: str) -> list[str]:
    """A text cut at spaces, signs kept; each character of a script without spaces is a token.

    Example:
        >>> tokens("The SEA, the sea!"), tokens("海が静か"), tokens("用 BERT 做")
        (['The', 'SEA,', 'the', 'sea!'], ['海', 'が', '静', 'か'], ['用', 'BERT', '做'])
    """
    return (text if text.isascii() else normalize("NFC", text).translate(_WITH_SIGNS)).split()


def words(text: str) -> list[str]:
    """The words of a text, without signs and letter case; each character of a script without spaces is a word.

    Example:
        >>> words("The SEA, the sea!"), words("海，海。"), words("हिन्दी!")
        (['the', 'sea', 'the', 'sea'], ['海', '海'], ['हिन्दी'])
    """
    return normalize("NFC", text).casefold().translate(_WITHOUT_SIGNS).split()


def grams(row: Sequence[T], n: int) -> list[tuple[T, ...]]:
    """Every n-gram of a row of tokens, in order; a row of fewer than n tokens has none.

    Example:
        >>> grams("abc", 2)
        [('a', 'b'), ('b', 'c')]
    """
    return [tuple(row[start : start + n]) for start in range(len(row) - n + 1)]


def repeated_grams(row: Sequence[T], n: int) -> float:
    r"""The share of a row's n-grams that stood in it before, in [0, 1).

    .. math:: 1 - \frac{N}{C}

    with N different n-grams among C; 0 when the row has none.

    Example:
        >>> repeated_grams("ababab", 2)
        0.6
    """
    found = grams(row, n)
    return 1 - len(set(found)) / len(found) if found else 0.0
