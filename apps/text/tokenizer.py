"""What every tokenizer can do: text to tokens, tokens to text, and tokens to text as they come.

`byte_level` and `pieces` are the two there are; `opening` picks one.
"""

from __future__ import annotations

import codecs
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping

from flagsplit.errors import InputError


class Tokenizer(ABC):
    """A vocabulary with its rules.

    Attributes:
        special: tokens that mean something else than text, by name, such as "<|im_start|>".
    """

    special: Mapping[str, int]

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """The tokens of a text. Names of special tokens in it are text like any other."""

    @abstractmethod
    def piece(self, token: int) -> bytes:
        """The bytes that a token stands for; none for special tokens, and for those that the vocabulary has not.

        A character may be spread over several tokens.
        """

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of tokens; bytes that are no UTF-8 become U+FFFD.

        Raises:
            InputError: a token is negative.
        """
        stream = self.decode_stream()
        return stream.feed(tokens) + stream.finish()

    def decode_stream(self) -> DecodeStream:
        """Decodes tokens as they come."""
        return DecodeStream(self)

    def starts_text(self, data: bytes) -> bytes:
        """What is printed of the first bytes of a text."""
        return data


class DecodeStream:
    """Text as far as it is certain: half a character waits for its other half."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._at_start = True

    def feed(self, tokens: Iterable[int]) -> str:
        """What these tokens add to the text; may be empty.

        Raises:
            InputError: a token is negative.
        """
        data = b""
        for token in tokens:
            if token < 0:
                raise InputError(f"expected tokens of 0 or more, came {token}")
            data += self._tokenizer.piece(token)
        if data and self._at_start:
            data, self._at_start = self._tokenizer.starts_text(data), False
        return self._decoder.decode(data)

    def finish(self) -> str:
        """What was left: U+FFFD for half a character."""
        return self._decoder.decode(b"", final=True)
