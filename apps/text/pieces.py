"""Moonshine's tokenizer.bin: pieces of text in the order of their tokens, those of lower number merged first.

    piece: length, one byte n, or two where n >= 128: next * 128 + n - 128 | UTF-8, or one byte for a token of a byte

Such is Llama's vocabulary without its scores: 3 tokens that are no text, 256 bytes, the pieces, and names in `<< >>`
of what is no text either. A space is written as U+2581, and one stands before every text.
"""

from __future__ import annotations

import re
from typing import Final

from flagsplit.apps.text.merging import merge_pairs
from flagsplit.apps.text.tokenizer import Tokenizer
from flagsplit.errors import ModelError

_SPACE: Final = "\u2581"
_SPECIAL: Final = re.compile(rb"<unk>|</?s>|<<[A-Z]+_\d+>>")
_MAX_TOKENS: Final = 4_000_000


class PieceTokenizer(Tokenizer):
    """Of a tokenizer.bin.

    Args:
        data: the file.

    Raises:
        ModelError: it is damaged.
    """

    def __init__(self, data: bytes) -> None:
        raw = _pieces(data)
        space = _SPACE.encode()
        self.special = {each.decode(): token for token, each in enumerate(raw) if _SPECIAL.fullmatch(each)}
        hidden = set(self.special.values())
        self._texts = [b"" if token in hidden else each.replace(space, b" ") for token, each in enumerate(raw)]
        self._bytes: dict[int, int] = {}
        self._ids: dict[str, int] = {}
        for token, each in enumerate(raw):
            if len(each) == 1 and each[0] not in self._bytes:
                self._bytes[each[0]] = token
            elif token not in hidden:
                self._ids.setdefault(each.decode("utf-8", "replace"), token)
        if len(self._bytes) != 256:
            raise ModelError(f"expected a tokenizer.bin with a token for each byte, it has {len(self._bytes)}")

    def encode(self, text: str) -> list[int]:
        if not text:
            return []
        found = merge_pairs(list((" " + text).replace(" ", _SPACE)), lambda left, right: self._ids.get(left + right))
        return [token for each in found for token in self._tokens_of(each)]

    def _tokens_of(self, piece: str) -> list[int]:
        if piece in self._ids:
            return [self._ids[piece]]
        return [self._bytes[byte] for byte in piece.encode("utf-8", "replace")]

    def piece(self, token: int) -> bytes:
        return self._texts[token] if token < len(self._texts) else b""

    def starts_text(self, data: bytes) -> bytes:
        return data.removeprefix(b" ")


def _pieces(data: bytes) -> list[bytes]:
    found: list[bytes] = []
    at = 0
    while at < len(data):
        length = data[at]
        at += 1
        if length >= 128:
            length += (data[at] if at < len(data) else 0) * 128 - 128
            at += 1
        if at + length > len(data) or len(found) >= _MAX_TOKENS:
            raise ModelError("expected a tokenizer.bin, it ends within a piece; it is damaged or incomplete")
        found.append(data[at : at + length])
        at += length
    return found
