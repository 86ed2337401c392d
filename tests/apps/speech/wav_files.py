"""Files for the tests, written chunk by chunk, so that they can be as odd as those of the world."""

import struct
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

GUID_TAIL = bytes.fromhex("000000001000800000aa00389b71")


def chunk(name: bytes, data: bytes, *, size: int | None = None, order: str = "<", padded: bool = True) -> bytes:
    """A chunk; `size` is what its header claims, if that is not the truth."""
    head = struct.pack(f"{order}4sI", name, len(data) if size is None else size)
    return head + data + b"\0" * (len(data) % 2 if padded else 0)


def fmt(
    tag: int = 1,
    channels: int = 1,
    rate_hz: int = 16_000,
    bits: int = 16,
    *,
    frame_bytes: int | None = None,
    order: str = "<",
    extensible: bool = False,
) -> bytes:
    frame = channels * ((bits + 7) // 8) if frame_bytes is None else frame_bytes
    kind = 0xFFFE if extensible else tag
    data = struct.pack(f"{order}HHIIHH", kind, channels, rate_hz, rate_hz * frame % 2**32, frame, bits)
    if extensible:
        data += struct.pack("<HHIH", 22, bits, 0, tag) + GUID_TAIL
    return chunk(b"fmt ", data, order=order)


def riff(chunks: Iterable[bytes], *, name: bytes = b"RIFF", size: int | None = None, order: str = "<") -> bytes:
    body = b"WAVE" + b"".join(chunks)
    return struct.pack(f"{order}4sI", name, len(body) if size is None else size) + body


def pcm16(samples: NDArray[np.float32], rate_hz: int = 16_000, channels: int = 1) -> bytes:
    """A plain file; samples in -1..1, of all channels one after the other."""
    data = np.clip(np.round(samples * 32768), -32768, 32767).astype("<i2").tobytes()
    return riff([fmt(channels=channels, rate_hz=rate_hz), chunk(b"data", data)])


def sparse_silence(path: Path, seconds: float, rate_hz: int = 16_000) -> Path:
    """Hours of silence that take no room on the disk."""
    data_bytes = round(seconds * rate_hz) * 2
    head = riff([fmt(rate_hz=rate_hz), struct.pack("<4sI", b"data", data_bytes)], size=36 + data_bytes)
    with path.open("wb") as file:
        file.write(head)
        file.truncate(len(head) + data_bytes)
    return path
