"""Tensors on the wire: cut into Chunks by the sender, put together by an `Assembly` at the receiver.

An Open announces names, dtypes and sizes; all of it is checked against `TransferLimits` before a byte is allocated.
Chunks may come in any order and twice, but never contradict each other. The bytes themselves are opaque here: what they
mean is between the segments, and `messages.TensorHeader` has checked that dtype, shape and size agree.
"""

import zlib
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from flagsplit.errors import InternalError, ProtocolError
from flagsplit.transport.messages import MAX_PAYLOAD_BYTES, MAX_TENSORS, Chunk, Frame, Open, TensorHeader

DEFAULT_CHUNK_BYTES: Final = 256 << 10
# A fifth less work per byte; who has so much to send is not on a link where one chunk takes long.
LARGE_TENSOR_BYTES: Final = 4 << 20
LARGE_CHUNK_BYTES: Final = MAX_PAYLOAD_BYTES
# Vector loads of the engines want this; frames as they arrive are not aligned at all.
ALIGNMENT_BYTES: Final = 64

_Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class TransferLimits:
    """What a receiver takes.

    A chunk that does not end its tensor has at least `min_chunk_bytes`, because keeping track of a flood of tiny ones
    would cost more memory than the tensor itself.
    """

    max_tensor_bytes: int = 256 << 20
    max_request_bytes: int = 512 << 20
    max_tensors: int = MAX_TENSORS
    max_chunk_bytes: int = MAX_PAYLOAD_BYTES
    min_chunk_bytes: int = 4096


def chunks_of(
    opened: Open, buffers: Sequence[npt.NDArray[np.generic] | Frame | bytearray], chunk_bytes: int | None = None
) -> Iterator[Chunk]:
    """Chunks of the tensors that `opened` announces, in order, as views of `buffers` and not copies.

    Without `chunk_bytes` a chunk has 256 KiB, or 1 MiB in tensors of 4 MiB and more.
    The buffers must be contiguous, of the sizes announced, and must not change until the peer has answered. Tensors
    without bytes have no chunk. Raises InternalError when buffers and announcement differ.
    """
    if len(buffers) != len(opened.tensors):
        raise InternalError(f"{len(opened.tensors)} tensors are announced, but there are {len(buffers)} buffers")
    for index, (header, buffer) in enumerate(zip(opened.tensors, buffers, strict=True)):
        data = _bytes_of(header, buffer)
        step = chunk_bytes or (LARGE_CHUNK_BYTES if header.size_bytes >= LARGE_TENSOR_BYTES else DEFAULT_CHUNK_BYTES)
        for offset in range(0, header.size_bytes, step):
            payload = data[offset : offset + step]
            yield Chunk(
                opened.sid, opened.rid, opened.attempt, opened.hop, index, offset, zlib.crc32(payload), payload=payload
            )


def _bytes_of(header: TensorHeader, buffer: npt.NDArray[np.generic] | Frame | bytearray) -> memoryview:
    if isinstance(buffer, np.ndarray):
        # Through uint8, because the buffer protocol has no code for bfloat16.
        if not buffer.flags.c_contiguous:
            raise InternalError(f"tensor {header.name!r} is not contiguous; copy it first")
        view = buffer.reshape(-1).view(np.uint8).data if buffer.size else memoryview(b"")
    else:
        view = memoryview(buffer)
        view = view.cast("B") if view.nbytes else memoryview(b"")
    if view.nbytes != header.size_bytes:
        raise InternalError(
            f"tensor {header.name!r} is announced with {header.size_bytes} bytes, but has {view.nbytes}"
        )
    return view


class _Incoming:
    """One tensor on its way in; allocated with its first chunk."""

    __slots__ = ("chunks", "data", "end", "header", "starts")

    def __init__(self, header: TensorHeader) -> None:
        self.header = header
        self.data: _Bytes | None = None
        self.starts: list[int] = []
        self.chunks: dict[int, tuple[int, int]] = {}
        self.end = 0

    def overlaps(self, start: int, stop: int) -> bool:
        if start >= self.end:  # as every chunk that comes in order
            return False
        place = bisect_left(self.starts, start)
        if place < len(self.starts) and self.starts[place] < stop:
            return True
        return place > 0 and self.starts[place - 1] + self.chunks[self.starts[place - 1]][0] > start

    def store(self, offset: int, payload: Frame, crc32: int) -> None:
        if self.data is None:
            self.data = _aligned(self.header.size_bytes)
        size_bytes = len(payload)
        stop = offset + size_bytes
        self.data[offset:stop] = np.frombuffer(payload, np.uint8)
        insort(self.starts, offset)
        self.chunks[offset] = (size_bytes, crc32)
        self.end = max(self.end, stop)


class Assembly:
    """Puts the tensors of one Open together. Raises ProtocolError when it announces more than the limits allow."""

    def __init__(self, opened: Open, limits: TransferLimits) -> None:
        _check_limits(opened, limits)
        self._key = (opened.sid, opened.rid, opened.attempt, opened.hop)
        self._limits = limits
        self._tensors = [_Incoming(header) for header in opened.tensors]
        self._missing_bytes = sum(header.size_bytes for header in opened.tensors)

    @property
    def complete(self) -> bool:
        return self._missing_bytes == 0

    @property
    def missing_bytes(self) -> int:
        return self._missing_bytes

    def accept(self, chunk: Chunk) -> bool:
        """Store a chunk; True once everything is here. A repeated chunk is ignored.

        Raises ProtocolError when the chunk is not of this Open, out of range, overlaps another or fails its checksum.
        The assembly is unchanged then.
        """
        if (chunk.sid, chunk.rid, chunk.attempt, chunk.hop) != self._key or chunk.tensor >= len(self._tensors):
            raise ProtocolError(f"a chunk of tensor {chunk.tensor} of {_key_of(chunk)} does not belong to {self._key}")
        tensor = self._tensors[chunk.tensor]
        size_bytes = len(chunk.payload)
        if tensor.chunks.get(chunk.offset) == (size_bytes, chunk.crc32):
            return self.complete
        self._check_place(tensor, chunk.offset, size_bytes)
        if zlib.crc32(chunk.payload) != chunk.crc32:
            raise ProtocolError(f"{_place(tensor, chunk.offset, size_bytes)}: the checksum does not match the bytes")
        tensor.store(chunk.offset, chunk.payload, chunk.crc32)
        self._missing_bytes -= size_bytes
        return self.complete

    def buffers(self) -> list[memoryview]:
        """One writable buffer per tensor, aligned to 64 bytes, in the order announced.

        Raises InternalError while incomplete.
        """
        if not self.complete:
            raise InternalError(
                f"the tensors of {self._key} lack {self._missing_bytes} bytes; ask when accept() said True"
            )
        return [(_aligned(0) if tensor.data is None else tensor.data).data for tensor in self._tensors]

    def _check_place(self, tensor: _Incoming, offset: int, size_bytes: int) -> None:
        stop, total_bytes = offset + size_bytes, tensor.header.size_bytes
        if not size_bytes or stop > total_bytes or size_bytes > self._limits.max_chunk_bytes:
            raise ProtocolError(
                f"{_place(tensor, offset, size_bytes)}: expected 1..{self._limits.max_chunk_bytes} bytes "
                f"within the {total_bytes} of the tensor"
            )
        if size_bytes < self._limits.min_chunk_bytes and stop < total_bytes:
            raise ProtocolError(
                f"{_place(tensor, offset, size_bytes)}: expected at least {self._limits.min_chunk_bytes} bytes "
                "except at the end of a tensor"
            )
        if tensor.overlaps(offset, stop):
            raise ProtocolError(f"{_place(tensor, offset, size_bytes)}: it contradicts or overlaps an earlier chunk")


def _check_limits(opened: Open, limits: TransferLimits) -> None:
    if len(opened.tensors) > limits.max_tensors:
        raise ProtocolError(f"{len(opened.tensors)} tensors are announced, at most {limits.max_tensors} are taken")
    for header in opened.tensors:
        if header.size_bytes > limits.max_tensor_bytes:
            raise ProtocolError(
                f"tensor {header.name!r} has {header.size_bytes} bytes, at most {limits.max_tensor_bytes} are taken"
            )
    total_bytes = sum(header.size_bytes for header in opened.tensors)
    if total_bytes > limits.max_request_bytes:
        raise ProtocolError(f"{total_bytes} bytes are announced, at most {limits.max_request_bytes} are taken")


def _aligned(size_bytes: int) -> _Bytes:
    raw = np.empty(size_bytes + ALIGNMENT_BYTES, np.uint8)
    skip = -raw.__array_interface__["data"][0] % ALIGNMENT_BYTES
    return raw[skip : skip + size_bytes]


def _key_of(chunk: Chunk) -> tuple[str, int, int, int]:
    return (chunk.sid, chunk.rid, chunk.attempt, chunk.hop)


def _place(tensor: _Incoming, offset: int, size_bytes: int) -> str:
    return f"chunk {offset}..{offset + size_bytes} of tensor {tensor.header.name!r}"
