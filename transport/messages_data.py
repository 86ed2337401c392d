"""What is said on the data lane: tensors and their way, parts of bundles, probes.

Bytes and limits are in `docs/wire.md`; `tensors.py` makes Chunks of tensors and back.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from flagsplit.errors import ProtocolError
from flagsplit.transport.message_fields import (
    ITEM_SIZE_BYTES,
    MAX_DIMS,
    MAX_HOPS,
    MAX_INLINE_BYTES,
    MAX_PAYLOAD_BYTES,
    MAX_TENSORS,
    UINT53,
    Crc32,
    Digest,
    Frame,
    Generation,
    HopIndex,
    Instance,
    Lane,
    LaterCrc32,
    Name,
    Natural,
    OptionalDigest,
    Squeeze,
    TensorName,
    TensorNames,
    Tier,
    TraceParent,
)
from flagsplit.transport.schema import APPENDED, Flag, ListOf, Recurring, StructOf, Text, Whole


@dataclass(frozen=True, slots=True)
class Attach:
    """First message on a data connection: ties it to the peer's control connection. Channels keep it to themselves."""

    TYPE: ClassVar[str] = "AT"
    LANE: ClassVar[Lane] = Lane.DATA
    instance: Instance


@dataclass(frozen=True, slots=True)
class Hop:
    """One tier of a route. `segment` is empty where it passes tensors through; `carry` names those it hands on."""

    tier: Tier
    segment: Annotated[str, Text(128)] = ""
    carry: TensorNames = ()

    def check_wire(self) -> None:
        _check_distinct(self.carry, ".carry")


@dataclass(frozen=True, slots=True)
class HopTiming:
    """What a hop that is done already measured about itself; `batch` requests ran together."""

    tier: Tier
    segment: Annotated[str, Text(128)]
    wait_us: Natural
    run_us: Natural
    bytes_in: Natural
    bytes_out: Natural
    batch: Annotated[int, Whole(1, 65535), APPENDED] = 1


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """A tensor announced by Open; its bytes are there too or follow in Chunks, little-endian and row-major."""

    name: TensorName
    dtype: Annotated[str, Text(16)]
    shape: Annotated[tuple[int, ...], ListOf(Whole(0, UINT53), most=MAX_DIMS)]
    size_bytes: Natural

    def check_wire(self) -> None:
        item_bytes = ITEM_SIZE_BYTES.get(self.dtype)
        if item_bytes is None:
            raise ProtocolError(f".dtype: expected one of {', '.join(ITEM_SIZE_BYTES)}, got {self.dtype!r}")
        if math.prod(self.shape) * item_bytes != self.size_bytes:
            raise ProtocolError(
                f": {self.dtype} of shape {list(self.shape)} takes {math.prod(self.shape) * item_bytes} bytes, "
                f"but size_bytes says {self.size_bytes}"
            )
        # A zero hides what the others multiply to, but array libraries refuse the shape all the same.
        if math.prod(size for size in self.shape if size) * item_bytes > UINT53:
            raise ProtocolError(f".shape: expected at most {UINT53} bytes without the zeros, got {self.shape}")


@dataclass(frozen=True, slots=True)
class Open:
    """Announces the tensors of one hop of one attempt; Chunks follow. `deadline_ms` is what is left when it is sent.

    `bundle` is empty for the one that the last Hello named. With `resume` its Chunks wait for a Have.
    With a payload it needs none: that has the bytes of all its tensors, one after the other. Feature "inline".
    `generation` asks for tokens instead of tensors: a JSON object that says how. Feature "generate".
    """

    TYPE: ClassVar[str] = "OP"
    LANE: ClassVar[Lane] = Lane.DATA
    sid: Name
    rid: Natural
    attempt: Natural
    epoch: Natural
    plan: Digest
    hop: HopIndex
    route: Annotated[tuple[Hop, ...], Recurring(ListOf(StructOf(Hop), most=MAX_HOPS, fewest=1))]
    tensors: Annotated[tuple[TensorHeader, ...], ListOf(StructOf(TensorHeader), most=MAX_TENSORS)]
    deadline_ms: Natural
    trace: Annotated[tuple[HopTiming, ...], ListOf(StructOf(HopTiming), most=MAX_HOPS)] = ()
    outputs: TensorNames = ()
    bundle: OptionalDigest = ""
    resume: Annotated[bool, Flag(), APPENDED] = False
    traceparent: TraceParent = ""
    inline_crc32: LaterCrc32 = None
    generation: Generation = ""
    payload: Frame = field(default=b"", hash=False, repr=False)

    def check_wire(self) -> None:
        if self.hop >= len(self.route):
            raise ProtocolError(f".hop: expected less than the {len(self.route)} hops of the route, got {self.hop}")
        _check_distinct([header.name for header in self.tensors], ".tensors")
        if self.inline_crc32 is not None or self.payload:
            self._check_inline()

    def _check_inline(self) -> None:
        size_bytes, total_bytes = len(self.payload), sum(tensor.size_bytes for tensor in self.tensors)
        if self.inline_crc32 is None or not size_bytes:
            raise ProtocolError(
                f".inline_crc32: expected if and only if there is a payload, "
                f"got {self.inline_crc32} and {size_bytes} bytes of payload"
            )
        if size_bytes != total_bytes or size_bytes > MAX_INLINE_BYTES:
            raise ProtocolError(
                f": expected a payload of the {total_bytes} bytes of all tensors, which may be at most "
                f"{MAX_INLINE_BYTES}, got {size_bytes} bytes"
            )
        if self.resume:
            raise ProtocolError(".resume: expected false where the tensors are inline, got true")


@dataclass(frozen=True, slots=True)
class Chunk:
    """Bytes `offset`.. of tensor number `tensor` of the Open with the same sid, rid, attempt and hop.

    A squeezed payload becomes `raw_bytes` bytes again; the checksum is of the payload as it is sent.
    """

    TYPE: ClassVar[str] = "CH"
    LANE: ClassVar[Lane] = Lane.DATA
    sid: Name
    rid: Natural
    attempt: Natural
    hop: HopIndex
    tensor: Annotated[int, Whole(0, MAX_TENSORS - 1)]
    offset: Natural
    crc32: Crc32
    squeeze: Squeeze = ""
    raw_bytes: Annotated[int, Whole(0, MAX_PAYLOAD_BYTES), APPENDED] = 0
    payload: Frame = field(default=b"", hash=False, repr=False)

    def check_wire(self) -> None:
        if bool(self.squeeze) != bool(self.raw_bytes):
            raise ProtocolError(f".raw_bytes: expected bytes if and only if squeezed, got {self.raw_bytes}")


@dataclass(frozen=True, slots=True)
class BundlePart:
    """Bytes `offset`.. of the file of the bundle that was offered last. Feature "bundles"."""

    TYPE: ClassVar[str] = "BP"
    LANE: ClassVar[Lane] = Lane.DATA
    bundle: Digest
    offset: Natural
    crc32: Crc32
    payload: Frame = field(default=b"", hash=False, repr=False)


@dataclass(frozen=True, slots=True)
class Probe:
    """Bytes that only measure the link; a listener answers with a Probe of `reply_bytes`, if any. Feature "probe"."""

    TYPE: ClassVar[str] = "PB"
    LANE: ClassVar[Lane] = Lane.DATA
    seq: Natural
    reply_bytes: Annotated[int, Whole(0, MAX_PAYLOAD_BYTES)] = 0
    payload: Frame = field(default=b"", hash=False, repr=False)


def _check_distinct(names: Sequence[str], where: str) -> None:
    """What is kept by name must not hide behind a second of that name, nor be sent twice."""
    if len(set(names)) < len(names):
        twice = next(name for at, name in enumerate(names) if name in names[:at])
        raise ProtocolError(f"{where}: expected names that differ, got {twice[:40]!r} twice")
