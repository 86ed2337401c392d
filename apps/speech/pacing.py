"""Sound as a microphone gives it: no sooner than it is heard."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

_STEP_S: Final = 0.032


class Pace:
    """Gives sound at the pace at which it was said, and knows how late something is.

    Args:
        rate_hz: samples per second.
        clock: seconds that pass.
        sleep: waits for so many seconds.
    """

    def __init__(
        self,
        rate_hz: int,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._rate_hz, self._clock, self._sleep = rate_hz, clock, sleep
        self._began: float | None = None

    def paced(self, blocks: Iterable[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
        """The same samples in small blocks, each as soon as its last sample would have been heard."""
        step, given = round(self._rate_hz * _STEP_S), 0
        for block in blocks:
            for at in range(0, len(block), step):
                part = block[at : at + step]
                given += len(part)
                if self._began is None:
                    self._began = self._clock()
                wait_s = self._began + given / self._rate_hz - self._clock()
                if wait_s > 0:
                    self._sleep(wait_s)
                yield part

    def late_s(self, said_s: float) -> float:
        """How long ago, in seconds, that was heard which lies at `said_s` seconds of the sound."""
        return self._clock() - (self._began or 0.0) - said_s
