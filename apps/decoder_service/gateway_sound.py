"""Recordings that clients of a gateway send: a file, samples, or samples as they come."""

import queue
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import numpy as np

from flagsplit.apps.speech.transcriber import Samples
from flagsplit.apps.speech.wav import WavReader
from flagsplit.errors import InputError

_LEAST_SAMPLES = 64


class PcmSound:
    """Samples as they come, from any thread.

    Args:
        rate_hz: how many make a second.
        samples: that are here already, float32 [samples], one channel.
    """

    def __init__(self, rate_hz: int, samples: Samples | None = None) -> None:
        self._rate_hz = rate_hz
        self._blocks: queue.SimpleQueue[Samples | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._count = self._waiting = 0
        if samples is not None:
            self.push(samples)
            self.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to free."""

    @property
    def seconds(self) -> float:
        """How long it is so far."""
        return self._count / self._rate_hz

    @property
    def waiting(self) -> int:
        """Samples that nobody has listened to; a tiny block counts for more, for the memory that it takes."""
        with self._lock:
            return self._waiting

    @property
    def waiting_bytes(self) -> int:
        """The memory that these take."""
        return self.waiting * np.dtype(np.float32).itemsize

    def push(self, samples: Samples) -> None:
        """Some more."""
        with self._lock:
            self._count += len(samples)
            self._waiting += max(len(samples), _LEAST_SAMPLES)
        self._blocks.put(samples)

    def end(self) -> None:
        """That was all."""
        self._blocks.put(None)

    interrupt = end

    def blocks(self, rate_hz: int = 0) -> Iterator[Samples]:
        """All of them, of the rate that they have; waits for those that are to come."""
        if rate_hz not in (0, self._rate_hz):
            raise InputError(f"expected samples at {rate_hz} Hz, these have {self._rate_hz}")
        while (block := self._blocks.get()) is not None:
            with self._lock:
                self._waiting -= max(len(block), _LEAST_SAMPLES)
            yield block


class Upload:
    """A WAV file that somebody sent. It lies in a temporary file until it is closed.

    Args:
        data: of the file.

    Raises:
        InputError: it is no WAV file.
    """

    def __init__(self, data: bytes) -> None:
        self._file = tempfile.NamedTemporaryFile(prefix="flagsplit-", suffix=".wav")  # noqa: SIM115 - closed on leaving
        try:
            self._file.write(data)
            self._file.flush()
            self._reader = WavReader(Path(self._file.name))
        except InputError as error:
            self._file.close()
            raise InputError(str(error).replace(self._file.name, "what came")) from None
        except BaseException:
            self._file.close()
            raise
        self.seconds = self._reader.seconds

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Free what it holds."""
        self._reader.close()
        self._file.close()

    def interrupt(self) -> None:
        """Nothing waits."""

    def blocks(self, rate_hz: int = 0) -> Iterator[Samples]:
        """One channel from the beginning."""
        return self._reader.blocks(rate_hz)


def to_samples(data: bytes, form: str) -> Samples:
    """Samples of a format, "s16le" or "f32le", as numbers in -1..1; those that are not finite become silence."""
    if form == "s16le":
        return np.frombuffer(data, "<i2").astype(np.float32) / np.float32(32768)
    found = np.frombuffer(data, "<f4").astype(np.float32)
    return np.clip(np.where(np.isfinite(found), found, np.float32(0)), -1, 1)
