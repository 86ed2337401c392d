"""Read WAV files in blocks: mono, float32 in -1..1, at the rate of the file or resampled to another.

Only a block is in memory at a time, so that hours of sound need no more than seconds do. Channels are averaged. What
was not as the file's header said is in `notes`. `wav_format.py` reads the header, `resample.py` changes the rate.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from flagsplit.apps.speech.resample import Resampler
from flagsplit.apps.speech.wav_format import WavFormat, read_format
from flagsplit.errors import InputError

Samples = NDArray[np.float32]
_BLOCK_BYTES: Final = 1 << 20


class WavReader:
    """A WAV file that is open for reading; use it in a `with` statement.

    Attributes:
        format: what its header says, checked.
        seconds: how long it is.
    """

    def __init__(self, path: Path) -> None:
        """Open a file and read its header.

        Raises:
            InputError: it is missing, no regular file, or no WAV file with samples.
        """
        self._path = path
        try:
            # Opening a pipe that nobody writes to would wait for ever.
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except (OSError, ValueError) as error:
            raise InputError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
        self._file = os.fdopen(descriptor, "rb") if _is_file(descriptor) else None
        if self._file is None:
            os.close(descriptor)
            raise InputError(f"expected a WAV file, {path} is {'a folder' if path.is_dir() else 'no regular file'}")
        try:
            self.format: WavFormat = read_format(self._file, os.fstat(descriptor).st_size, str(path))
        except OSError as error:
            self._file.close()
            raise InputError(f"cannot read {path}: {error.strerror}") from None
        except BaseException:
            self._file.close()
            raise
        self.seconds = self.format.frames / self.format.rate_hz
        self._odd_samples = {"not numbers; taken as silence": 0, "beyond -1..1; clipped": 0}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    @property
    def notes(self) -> tuple[str, ...]:
        """What was not as it should be, a line each; complete once all blocks were read."""
        odd = (f"{count} samples are {what}" for what, count in self._odd_samples.items() if count)
        return (*self.format.notes, *odd)

    def blocks(self, rate_hz: int = 0) -> Iterator[Samples]:
        """The sound from its beginning in blocks of at most some seconds.

        Args:
            rate_hz: samples per second; 0 for those of the file.

        Raises:
            InputError: the file cannot be read on, or became shorter meanwhile.
        """
        if not rate_hz or rate_hz == self.format.rate_hz:
            yield from self._mono_blocks()
            return
        resampler = Resampler(self.format.rate_hz, rate_hz)
        for block in self._mono_blocks():
            yield resampler.push(block)
        yield resampler.finish()

    def _mono_blocks(self) -> Iterator[Samples]:
        facts = self.format
        assert self._file is not None
        frames_each = max(_BLOCK_BYTES // facts.frame_bytes, 1)
        for first in range(0, facts.frames, frames_each):
            count = min(frames_each, facts.frames - first)
            try:
                self._file.seek(facts.data_at + first * facts.frame_bytes)
                data = self._file.read(count * facts.frame_bytes)
            except (OSError, ValueError) as error:
                raise InputError(f"cannot read {self._path} on: {error}") from None
            if len(data) < count * facts.frame_bytes:
                raise InputError(f"{self._path} became shorter while it was read; try again when it is complete")
            yield self._sound(decode(data, facts)).reshape(count, facts.channels).mean(axis=1, dtype=np.float32)

    def _sound(self, samples: Samples) -> Samples:
        if self.format.encoding != "float":
            return samples
        finite = np.isfinite(samples)
        beyond = np.abs(samples) > 1
        for what, found in zip(self._odd_samples, (~finite, beyond & finite), strict=True):
            self._odd_samples[what] += int(found.sum())
        return np.clip(np.where(finite, samples, np.float32(0)), -1, 1)


def _is_file(descriptor: int) -> bool:
    return stat.S_ISREG(os.fstat(descriptor).st_mode)


def decode(data: bytes, facts: WavFormat) -> Samples:
    """Samples of all channels one after the other, as numbers; PCM in -1..1."""
    kind, order, size = facts.encoding, facts.order, facts.sample_bytes
    if kind in ("a-law", "mu-law"):
        table = _A_LAW if kind == "a-law" else _MU_LAW
        return table[np.frombuffer(data, np.uint8)]
    if kind == "float":
        with np.errstate(over="ignore", invalid="ignore"):
            return np.frombuffer(data, f"{order}f{size}").astype(np.float32)
    whole: NDArray[Any]
    if size == 1:
        whole = np.frombuffer(data, np.uint8).astype(np.int16) - 128
    else:
        whole = _widened(data, order) if size == 3 else np.frombuffer(data, f"{order}i{size}")
    return np.asarray(whole / np.float32(-np.iinfo(whole.dtype).min if size > 1 else 128), np.float32)


def _widened(data: bytes, order: str) -> NDArray[Any]:
    """24 bits as the upper ones of 32."""
    wide = np.zeros((len(data) // 3, 4), np.uint8)
    wide[:, slice(0, 3) if order == ">" else slice(1, 4)] = np.frombuffer(data, np.uint8).reshape(-1, 3)
    return wide.view(f"{order}i4")[:, 0]


def _a_law_table() -> Samples:
    """ITU-T G.711, table 1: even bits inverted, sign, 3 bits of exponent, 4 of mantissa."""
    codes = np.arange(256) ^ 0x55
    exponent, mantissa = codes >> 4 & 7, codes & 15
    size = np.where(exponent > 0, (mantissa * 16 + 264) << np.maximum(exponent - 1, 0), mantissa * 16 + 8)
    return np.asarray(np.where(codes & 128, size, -size) / 32768, np.float32)


def _mu_law_table() -> Samples:
    """ITU-T G.711, table 2: all bits inverted, sign, 3 bits of exponent, 4 of mantissa."""
    codes = np.arange(256) ^ 0xFF
    size = (((codes & 15) * 8 + 132) << (codes >> 4 & 7)) - 132
    return np.asarray(np.where(codes & 128, -size, size) / 32768, np.float32)


_A_LAW: Final = _a_law_table()
_MU_LAW: Final = _mu_law_table()
