"""Where somebody speaks: the Silero voice activity detector of the zoo, block by block.

The network takes 512 samples of 16 kHz after the 64 before them and a state, and gives the probability of speech and
the next state (`OnnxWrapper` in utils_vad.py of silero-vad 6.2.3). `Gate` makes a yes or no of it that does not
flutter.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from flagsplit.apps import zoo
from flagsplit.targets.interface import Executable
from flagsplit.targets.onnx_engine import open_onnx

Samples = NDArray[np.float32]

RATE_HZ: Final = 16_000
BLOCK: Final = 512
"""Samples of which the detector gives one probability: 32 ms."""

_CONTEXT: Final = 64
_STATE_SHAPE: Final = (2, 1, 128)


class VoiceDetector:
    """Probabilities of speech of one stream of sound; `engine` runs the network and stays the caller's."""

    def __init__(self, engine: Executable) -> None:
        self._engine = engine
        self._forget()

    def _forget(self) -> None:
        self._state: Samples = np.zeros(_STATE_SHAPE, np.float32)
        self._context: Samples = np.zeros(_CONTEXT, np.float32)

    def push(self, block: Samples) -> float:
        """The probability, 0..1, that somebody speaks in the next `BLOCK` samples, or the fewer ones that are left."""
        if not block.any():
            # What was muted, cut out or never recorded; the network need not be asked, and hours of it take seconds.
            self._forget()
            return 0.0
        if len(block) < BLOCK:
            block = np.pad(block, (0, BLOCK - len(block)))
        samples = np.concatenate([self._context, block])[None]
        found = self._engine.run({"input": samples, "state": self._state, "sr": np.array(RATE_HZ, np.int64)})
        self._state, self._context = found["stateN"].astype(np.float32), block[-_CONTEXT:]
        return float(found["output"][0, 0])


def open_detector(cache: Path | None = None) -> Executable:
    """The network of the detector out of the zoo, to be closed by the caller.

    Raises:
        PeerError: it cannot be fetched.
    """
    return open_onnx(zoo.pull("silero-vad", cache=cache), None, "fast", 1)


class Gate:
    """Speech or not, with hysteresis: it begins at a higher probability than it ends at."""

    def __init__(self, begins_at: float = 0.5, ends_below: float = 0.35) -> None:
        self._begins_at, self._ends_below = begins_at, ends_below
        self._is_open = False

    def push(self, probability: float) -> bool:
        """Whether the next block is speech."""
        self._is_open = probability >= (self._ends_below if self._is_open else self._begins_at)
        return self._is_open
