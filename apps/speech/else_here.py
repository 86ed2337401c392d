"""A recognizer that does by itself what others would have to help with and cannot."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from flagsplit.apps.speech.program_recognizer import ProgramRecognizer
from flagsplit.apps.speech.recognizer import Heard, Recognizer
from flagsplit.apps.speech.stream_recognizer import StreamRecognizer
from flagsplit.errors import UnavailableError

_log = logging.getLogger(__name__)


class ElseHere:
    """Asks one recognizer, and where that has nobody to go on with, recognizes the piece of sound as a whole here.

    Args:
        first: is asked first; it is closed with this.
        open_own: opens one that needs nobody, when it is first needed.
    """

    def __init__(self, first: ProgramRecognizer | StreamRecognizer, open_own: Callable[[], Recognizer]) -> None:
        self._first, self._open_own = first, open_own
        self._own: Recognizer | None = None
        self.plan, self.rate_hz, self.max_input_s = first.plan, first.rate_hz, first.max_input_s

    @property
    def crossed_bytes(self) -> int:
        """What was sent to other tiers so far."""
        return self._first.crossed_bytes

    def recognize(
        self, samples: NDArray[np.float32], *, is_partial: bool = False, shared_s: float = 0.0
    ) -> Iterator[Heard]:
        """The text of a sound, token by token, with the tier that made each; see `Recognizer`."""
        try:
            heard = self._first.recognize(samples, is_partial=is_partial, shared_s=shared_s)
            first = next(heard, None)
        except UnavailableError as error:
            _log.warning("goes on here: %s", error)
            self._own = self._own or self._open_own()
            yield from self._own.recognize(samples, is_partial=is_partial, shared_s=shared_s)
            return
        if first is not None:
            yield first
            yield from heard

    def close(self) -> None:
        """Free both."""
        self._first.close()
        if self._own is not None:
            self._own.close()
