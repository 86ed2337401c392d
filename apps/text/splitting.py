r"""Text to words, before pairs are merged, as GPT-2 and its descendants do it.

The rule is this regular expression, for classes of characters that Python's `re` does not have:

    's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from typing import Final

_ENDINGS: Final = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")
_SPACES: Final = frozenset(
    "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
)
"""Unicode's White_Space; `str.isspace` takes four control characters more."""
_LETTER, _NUMBER, _SPACE, _OTHER = "L", "N", " ", ""


@lru_cache(maxsize=4096)
def _class(char: str) -> str:
    if char in _SPACES:
        return _SPACE
    category = unicodedata.category(char)[0]
    return category if category in (_LETTER, _NUMBER) else _OTHER


def words(text: str) -> Iterator[str]:
    """The words of a text, which together are the text."""
    at = 0
    while at < len(text):
        end = _end(text, at)
        yield text[at:end]
        at = end


def _end(text: str, at: int) -> int:
    if text[at] == "'":
        for ending in _ENDINGS:
            if text.startswith(ending, at):
                return at + len(ending)
    # One space goes with the word that follows it.
    start = at + 1 if text[at] == " " and at + 1 < len(text) and _class(text[at + 1]) != _SPACE else at
    end = _run(text, start)
    if _class(text[start]) != _SPACE:
        return end
    # Of several spaces the last is left, for it may go with the word that follows.
    return end - 1 if end < len(text) and end - at > 1 else end


def _run(text: str, at: int) -> int:
    """Where characters of another class begin."""
    kind, end = _class(text[at]), at + 1
    while end < len(text) and _class(text[end]) == kind:
        end += 1
    return end


def single_digits(text: str) -> Iterator[str]:
    """Every number by itself, and what lies between."""
    start = 0
    for at, char in enumerate(text):
        if _class(char) == _NUMBER:
            if start < at:
                yield text[start:at]
            yield char
            start = at + 1
    if start < len(text):
        yield text[start:]
