"""Tensors on the wire: cut into Chunks by the sender, put together by an `Assembly` at the receiver.

An Open announces names, dtypes and sizes; all of it is checked against `TransferLimits` before a byte is allocated.
Chunks may come in any order and twice, but never contradict each other. The bytes themselves are opaque here: what they
mean is between the segments, and `messages.TensorHeader` has checked that dtype, shape and size agree. How a payload is
squeezed is in `squeeze.py`, and when in `squeeze_policy.py`.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from flagsplit.errors import InternalError, ProtocolError
from flagsplit.transport.checksum import crc32
from flagsplit.transport.messages import MAX_PAYLOAD_BYTES, MAX_TENSORS, Chunk, Frame, Open, TensorHeader
from flagsplit.transport.squeeze import squeeze, unsqueeze

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


class Squeezer(Protocol):
    """Says which tensors are squeezed on their way, and how: `squeeze_policy.LinkSqueezer`, or a test's own."""

    def kind_for(self, tensor: str, data: memoryview) -> str:
        """A kind that the peer reads, or "" for plain."""

    def sent(self, tensor: str, kind: str, raw_bytes: int, sent_bytes: int) -> None:
        """Told what became of a tensor that was squeezed."""


def chunks_of(
    opened: Open,
    buffers: Sequence[npt.NDArray[np.generic] | Frame | bytearray],
    chunk_bytes: int | None = None,
    offsets: Sequence[int] = (),
    squeezer: Squeezer | None = None,
) -> Iterator[Chunk]:
    """Chunks of the tensors that `opened` announces, in order, as views of `buffers` and not copies.

    `offsets` says for each tensor how many bytes the receiver has already; none of them without it.

    Without `chunk_bytes` a chunk has 256 KiB, or 1 MiB in tensors of 4 MiB and more.
    The buffers must be contiguous, of the sizes announced, and must not change until the peer has answered. Tensors
    without bytes have no chunk, nor have those that are in the Open itself. With a squeezer, chunks that shrink are
    sent squeezed, and those are copies. Raises InternalError when buffers and announcement differ.
    """
    if opened.payload:
        return
    if len(buffers) != len(opened.tensors):
        raise InternalError(f"{len(opened.tensors)} tensors are announced, but there are {len(buffers)} buffers")
    for index, (header, buffer) in enumerate(zip(opened.tensors, buffers, strict=True)):
        data = _bytes_of(header, buffer)
        step = chunk_bytes or (LARGE_CHUNK_BYTES if header.size_bytes >= LARGE_TENSOR_BYTES else DEFAULT_CHUNK_BYTES)
        start = min(offsets[index], header.size_bytes) if index < len(offsets) else 0
        kind = squeezer.kind_for(header.name, data) if squeezer is not None and data.nbytes else ""
        if squeezer is not None and kind:
            yield from _squeezed_chunks(opened, index, data, range(start, data.nbytes, step), kind, squeezer)
            continue
        for offset in range(start, header.size_bytes, step):
            payload = data[offset : offset + step]
            yield Chunk(
                opened.sid, opened.rid, opened.attempt, opened.hop, index, offset, crc32(payload), payload=payload
            )


def inline_payload(buffers: Sequence[memoryview]) -> Frame:
    """The bytes of all tensors of an Open, to travel as its payload with their `crc32` as `inline_crc32`."""
    return buffers[0] if len(buffers) == 1 else b"".join(buffers)


def _squeezed_chunks(
    opened: Open, index: int, data: memoryview, offsets: range, kind: str, squeezer: Squeezer
) -> Iterator[Chunk]:
    """Chunks of one tensor, each squeezed unless it does not shrink."""
    raw_bytes = sent_bytes = 0
    for offset in offsets:
        plain = data[offset : offset + offsets.step]
        small = squeeze(plain, kind)
        shrunk = len(small) < len(plain)
        payload: Frame = small if shrunk else plain
        raw_bytes, sent_bytes = raw_bytes + len(plain), sent_bytes + len(payload)
        yield Chunk(
            opened.sid,
            opened.rid,
            opened.attempt,
            opened.hop,
            index,
            offset,
            crc32(payload),
            squeeze=kind if shrunk else "",
            raw_bytes=len(plain) if shrunk else 0,
            payload=payload,
        )
    squeezer.sent(opened.tensors[index].name, kind, raw_bytes, sent_bytes)


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


class Incoming:
    """One tensor on its way in; allocated with its first chunk. It can outlive its Assembly, for another to go on."""

    __slots__ = ("chunks", "data", "end", "header", "received_bytes", "starts")

    def __init__(self, header: TensorHeader) -> None:
        self.header = header
        self.data: _Bytes | None = None
        self.starts: list[int] = []
        self.chunks: dict[int, tuple[int, int]] = {}
        self.received_bytes = 0
        self.end = 0

    def fill(self, raw: Frame) -> None:
        """Take all bytes at once."""
        if raw:
            self.data = _aligned(len(raw))
            self.data.data[:] = raw
            self.received_bytes = self.end = len(raw)
            self.starts, self.chunks = [0], {0: (len(raw), 0)}

    @property
    def prefix_bytes(self) -> int:
        """How many bytes from the start are here without a gap."""
        end = 0
        for start in self.starts:
            if start != end:
                break
            end += self.chunks[start][0]
        return end

    @classmethod
    def whole(cls, header: TensorHeader, data: _Bytes) -> "Incoming":
        """A tensor that is here already."""
        made = cls(header)
        if header.size_bytes:
            made.data, made.received_bytes, made.end = data, header.size_bytes, header.size_bytes
            made.starts, made.chunks = [0], {0: (header.size_bytes, 0)}
        return made

    def trim(self) -> None:
        """Forget what came after a gap: whoever goes on does so from the first byte that is missing."""
        prefix_bytes = self.prefix_bytes
        self.starts = [start for start in self.starts if start < prefix_bytes]
        self.chunks = {start: self.chunks[start] for start in self.starts}
        self.received_bytes = self.end = prefix_bytes

    def overlaps(self, start: int, stop: int) -> bool:
        if start >= self.end:  # as every chunk that comes in order
            return False
        place = bisect_left(self.starts, start)
        if place < len(self.starts) and self.starts[place] < stop:
            return True
        return place > 0 and self.starts[place - 1] + self.chunks[self.starts[place - 1]][0] > start

    def store(self, chunk: Chunk, raw: Frame) -> None:
        if self.data is None:
            self.data = _aligned(self.header.size_bytes)
        size_bytes = len(raw)
        stop = chunk.offset + size_bytes
        self.data[chunk.offset : stop] = np.frombuffer(raw, np.uint8)
        insort(self.starts, chunk.offset)
        self.chunks[chunk.offset] = (size_bytes, chunk.crc32)
        self.received_bytes += size_bytes
        self.end = max(self.end, stop)


class Assembly:
    """Puts the tensors of one Open together.

    Args:
        opened: what was announced.
        limits: what is taken.
        kept: by name, tensors that began to come in before; those with another header are left alone.

    Raises:
        ProtocolError: more is announced than the limits allow, or bytes that came with it fail their checksum.
    """

    def __init__(self, opened: Open, limits: TransferLimits, kept: Mapping[str, Incoming] | None = None) -> None:
        _check_limits(opened, limits)
        self._key = (opened.sid, opened.rid, opened.attempt, opened.hop)
        self._limits = limits
        self._tensors = [Incoming(header) for header in opened.tensors]
        for index, header in enumerate(opened.tensors):
            earlier = (kept or {}).get(header.name)
            if earlier is not None and earlier.header == header:
                self._tensors[index] = earlier
                earlier.trim()
        if opened.payload:
            self._take_inline(opened)
        self._missing_bytes = sum(tensor.header.size_bytes - tensor.received_bytes for tensor in self._tensors)

    @property
    def complete(self) -> bool:
        return self._missing_bytes == 0

    @property
    def missing_bytes(self) -> int:
        return self._missing_bytes

    @property
    def incoming(self) -> dict[str, Incoming]:
        """The tensors by name, as far as they are here."""
        return {tensor.header.name: tensor for tensor in self._tensors}

    def offsets(self) -> tuple[int, ...]:
        """For each tensor, how many bytes from its start are here: where a sender may go on."""
        return tuple(tensor.prefix_bytes for tensor in self._tensors)

    def accept(self, chunk: Chunk) -> bool:
        """Store a chunk, unsqueezed; True once everything is here. A repeated chunk is ignored.

        Raises ProtocolError when the chunk is not of this Open, out of range, overlaps another, fails its checksum or
        does not become what it announces. The assembly is unchanged then.
        """
        if (chunk.sid, chunk.rid, chunk.attempt, chunk.hop) != self._key or chunk.tensor >= len(self._tensors):
            raise ProtocolError(f"a chunk of tensor {chunk.tensor} of {_key_of(chunk)} does not belong to {self._key}")
        tensor = self._tensors[chunk.tensor]
        size_bytes = chunk.raw_bytes if chunk.squeeze else len(chunk.payload)
        if tensor.chunks.get(chunk.offset) == (size_bytes, chunk.crc32):
            return self.complete
        self._check_place(tensor, chunk.offset, size_bytes)
        if crc32(chunk.payload) != chunk.crc32:
            raise ProtocolError(f"{_place(tensor, chunk.offset, size_bytes)}: the checksum does not match the bytes")
        tensor.store(chunk, _raw(chunk))
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

    def _take_inline(self, opened: Open) -> None:
        if crc32(opened.payload) != opened.inline_crc32:
            raise ProtocolError(f"the tensors inside the Open of {self._key}: the checksum does not match the bytes")
        payload, start = memoryview(opened.payload), 0
        for index, header in enumerate(opened.tensors):
            self._tensors[index] = tensor = Incoming(header)
            tensor.fill(payload[start : start + header.size_bytes])
            start += header.size_bytes

    def _check_place(self, tensor: Incoming, offset: int, size_bytes: int) -> None:
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


def _raw(chunk: Chunk) -> Frame:
    return unsqueeze(chunk.payload, chunk.squeeze, chunk.raw_bytes) if chunk.squeeze else chunk.payload


def _key_of(chunk: Chunk) -> tuple[str, int, int, int]:
    return (chunk.sid, chunk.rid, chunk.attempt, chunk.hop)


def _place(tensor: Incoming, offset: int, size_bytes: int) -> str:
    return f"chunk {offset}..{offset + size_bytes} of tensor {tensor.header.name!r}"
