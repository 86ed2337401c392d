"""Tokens to text as they come: whole characters only, and nothing of a stop string."""

from collections.abc import Sequence

from flagsplit.apps.decoder_service.gateway_backend import Tokenizer

_UNFINISHED = "\ufffd"
_MOST_BYTES = 4
"""A character has at most so many bytes: after as many tokens without a character, there is none to wait for."""


class TextOf:
    """The text of a stream's tokens, piece by piece; the pieces together are what all tokens together decode to.

    A tokenizer may write a token differently at the beginning of a text, so each piece is what the text grows by when
    its tokens are decoded after the ones before.

    Args:
        tokenizer: of the stream's model.
        before: tokens whose text is not to be given out.
    """

    def __init__(self, tokenizer: Tokenizer, before: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._tokens = list(before)
        self._start = 0
        self._given = len(self._tokens)

    def push(self, tokens: Sequence[int]) -> str:
        """What is sure of the text after some more tokens."""
        self._tokens += tokens
        for end in range(len(self._tokens), self._given, -1):
            text = self._new_text(end)
            if text and not text.endswith(_UNFINISHED):
                return self._give(text, end)
        return self.finish() if len(self._tokens) - self._given >= _MOST_BYTES else ""

    def finish(self) -> str:
        """What is left: nothing more comes."""
        return self._give(self._new_text(len(self._tokens)), len(self._tokens))

    def _new_text(self, end: int) -> str:
        before = self._tokenizer.decode(self._tokens[self._start : self._given])
        return self._tokenizer.decode(self._tokens[self._start : end])[len(before) :]

    def _give(self, text: str, end: int) -> str:
        if text:
            self._start, self._given = self._given, end
        return text


class StopStrings:
    """Holds back what may be the beginning of a stop string, and ends the text before the first one.

    Args:
        stops: the strings, none of them empty.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found = False

    def push(self, text: str) -> str:
        """What may be shown after some more text; once `found`, nothing more may."""
        if self.found:
            return ""
        self._held += text
        places = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if places:
            self.found = True
            shown, self._held = self._held[: min(places)], ""
            return shown
        kept = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        shown, self._held = self._held[: len(self._held) - kept], self._held[len(self._held) - kept :]
        return shown

    def finish(self) -> str:
        """What was held back: no stop string came of it."""
        shown, self._held = self._held, ""
        return shown


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with, but is not all of it."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
