"""Lossless squeezing of a chunk's bytes: zstd frames and LZ4 blocks, and the way back with what it may cost bounded.

A squeezed payload is untrusted. What it becomes is known from the chunk's header before a byte is allocated, and a
payload that would become anything else is a ProtocolError. Whether squeezing pays is `squeeze_policy.py`'s question,
and `tensors.py` puts both into chunks.

zstd: one frame that says its content size, without a dictionary. lz4: one block, without the length before it.
"""

import functools
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import lz4.block
import numpy as np
import zstandard

from flagsplit.errors import InternalError, ProtocolError
from flagsplit.transport.messages import LZ4, MAX_PAYLOAD_BYTES, ZSTD, Frame

KINDS: Final = (LZ4, ZSTD)
"""What this host can make and read, the fastest first."""

ZSTD_LEVEL: Final = 1
# A frame of at most MAX_PAYLOAD_BYTES never needs to look back farther than its own beginning.
_MAX_WINDOW_BYTES: Final = MAX_PAYLOAD_BYTES
_ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
_SPEED_SAMPLE_BYTES: Final = 256 << 10
_SPEED_ROUNDS: Final = 5


class _Coders(threading.local):
    """One of each per thread: they keep their working memory, and two threads must not share it."""

    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_content_size=True, write_checksum=False)
        self.decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES)


_coders = _Coders()


def squeeze(payload: Frame, kind: str) -> bytes:
    """A payload of 1..1 MiB bytes, squeezed. The result may be longer; the payload is then better sent as it is.

    Raises:
        InternalError: there is no such kind, or the payload is of another size.
    """
    if kind not in KINDS or not 1 <= len(payload) <= MAX_PAYLOAD_BYTES:
        raise InternalError(f"expected 1..{MAX_PAYLOAD_BYTES} bytes and {' or '.join(KINDS)}, came {kind!r}")
    if kind == ZSTD:
        return _coders.compressor.compress(payload)
    made: bytes = lz4.block.compress(payload, store_size=False)
    return made


def unsqueeze(payload: Frame, kind: str, raw_bytes: int) -> bytes:
    """The bytes that a payload was squeezed from.

    Args:
        payload: as it was received.
        kind: as its header names it.
        raw_bytes: how many bytes it must become, 1..1 MiB. No more is allocated, whatever the payload claims.

    Raises:
        ProtocolError: it is damaged, becomes another number of bytes, or is not smaller than what it becomes.
    """
    if kind not in KINDS or not 1 <= raw_bytes <= MAX_PAYLOAD_BYTES:
        raise ProtocolError(
            f"expected a payload squeezed by {' or '.join(KINDS)} of at most {MAX_PAYLOAD_BYTES} bytes, "
            f"got {kind!r:.20} of {raw_bytes}"
        )
    if len(payload) >= raw_bytes:
        raise ProtocolError(
            f"a payload of {len(payload)} bytes is squeezed by {kind} from {raw_bytes}; "
            "what does not shrink is sent as it is"
        )
    raw = _unsqueeze_zstd(payload, raw_bytes) if kind == ZSTD else _unsqueeze_lz4(payload, raw_bytes)
    if len(raw) != raw_bytes:
        raise ProtocolError(f"a payload squeezed by {kind} became {len(raw)} bytes, announced were {raw_bytes}")
    return raw


def _unsqueeze_lz4(payload: Frame, raw_bytes: int) -> bytes:
    try:
        raw: bytes = lz4.block.decompress(payload, uncompressed_size=raw_bytes)
    except (lz4.block.LZ4BlockError, ValueError) as error:
        raise ProtocolError(f"a payload of {len(payload)} bytes is no LZ4 block of {raw_bytes}: {error}") from None
    return raw


def _unsqueeze_zstd(payload: Frame, raw_bytes: int) -> bytes:
    # Skippable frames have another magic number; they hold nothing, so nobody needs to send one.
    if bytes(payload[:4]) != _ZSTD_MAGIC:
        raise ProtocolError(f"a payload of {len(payload)} bytes does not begin as a zstd frame")
    try:
        frame = zstandard.get_frame_parameters(payload)
        if frame.content_size != raw_bytes or frame.window_size > _MAX_WINDOW_BYTES or frame.dict_id:
            raise ProtocolError(
                f"expected a zstd frame of {raw_bytes} bytes, a window of at most {_MAX_WINDOW_BYTES} "
                f"and no dictionary, got {frame.content_size} bytes, window {frame.window_size}, "
                f"dictionary {frame.dict_id}"
            )
        return _coders.decompressor.decompress(payload, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ProtocolError(f"a payload of {len(payload)} bytes is no zstd frame of {raw_bytes}: {error}") from None


@dataclass(frozen=True, slots=True)
class SqueezeSpeed:
    """How fast one host squeezes and unsqueezes, in bytes per second of what is squeezed."""

    squeeze_bytes_s: float
    unsqueeze_bytes_s: float

    @property
    def cost_s_per_byte(self) -> float:
        """Both ways, in seconds."""
        return 1 / self.squeeze_bytes_s + 1 / self.unsqueeze_bytes_s


@functools.cache
def host_speeds() -> Mapping[str, SqueezeSpeed]:
    """By kind, the best of a few rounds on this host, measured at the first call (some 50 ms) and then remembered.

    The tensor it is measured on is quantized to 8 bits with half of it zero, as after a ReLU. The tier that receives is
    taken to be as fast.
    """
    return measure_speeds(time.perf_counter)


def measure_speeds(clock: Callable[[], float]) -> Mapping[str, SqueezeSpeed]:
    """As `host_speeds`, measured by this clock, in seconds, and not remembered."""
    normal = np.random.default_rng(0).standard_normal(_SPEED_SAMPLE_BYTES)
    data = np.clip(normal * 48, 0, 255).astype(np.uint8).data
    return {kind: _speed(data, kind, clock) for kind in KINDS}


def _speed(data: memoryview, kind: str, clock: Callable[[], float]) -> SqueezeSpeed:
    there, back = [], []
    for _ in range(_SPEED_ROUNDS):
        started = clock()
        small = squeeze(data, kind)
        between = clock()
        unsqueeze(small, kind, len(data))
        there.append(between - started)
        back.append(clock() - between)
    # A clock too coarse to see a round still gives a finite speed.
    return SqueezeSpeed(len(data) / max(min(there), 1e-9), len(data) / max(min(back), 1e-9))
