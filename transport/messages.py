"""The messages of wire protocol 1 and their two-frame encoding: `[msgpack header][raw payload]`.

Everything a peer can say is a class here, with the limit of each field in its type; `docs/wire.md` says the same for
other languages, and `tests/transport/golden/` holds the bytes. A field is only ever appended, with a default; types
never change.
How messages travel is in `channel.py`, how tensors become chunks in `tensors.py`.
"""

import enum
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Final, TypeAlias, cast

import msgpack

from flagsplit.errors import InternalError, ProtocolError
from flagsplit.transport.schema import Flag, ListOf, MapOf, Prose, StructOf, Text, Whole

Version: TypeAlias = tuple[int, int]
Frame: TypeAlias = bytes | memoryview

VERSION: Final[Version] = (1, 0)
MAX_HEADER_BYTES: Final = 64 << 10
MAX_PAYLOAD_BYTES: Final = 1 << 20
MAX_TENSORS: Final = 256
MAX_HOPS: Final = 16
MAX_DIMS: Final = 8

ITEM_SIZE_BYTES: Final[Mapping[str, int]] = {
    name: size_bytes
    for size_bytes, names in {
        1: "bool int8 uint8 float8_e4m3fn float8_e5m2",
        2: "int16 uint16 float16 bfloat16",
        4: "int32 uint32 float32",
        8: "int64 uint64 float64 complex64",
        16: "complex128",
    }.items()
    for name in names.split()
}

_packb: Final[Callable[[object], bytes]] = msgpack.packb
_unpackb: Final[Callable[..., object]] = msgpack.unpackb  # type: ignore[attr-defined]  # the package has no types
_UINT32 = 2**32 - 1
_UINT53 = 2**53 - 1  # what JavaScript and Java doubles still hold exactly

Natural = Annotated[int, Whole(0, _UINT53)]
Crc32 = Annotated[int, Whole(0, _UINT32)]
HopIndex = Annotated[int, Whole(0, MAX_HOPS - 1)]
VersionPair = Annotated[Version, ListOf(Whole(0, 65535), most=2, fewest=2)]
Instance = Annotated[str, Text(32, re.compile("[0-9a-f]{32}"))]
Name = Annotated[str, Text(64)]
Tier = Annotated[str, Text(64)]
Digest = Annotated[str, Text(128)]
TensorName = Annotated[str, Text(256)]
Reason = Annotated[str, Prose(1024)]
Features = Annotated[tuple[str, ...], ListOf(Text(64), most=64)]
TensorNames = Annotated[tuple[str, ...], ListOf(Text(256), most=MAX_TENSORS)]


class Lane(enum.Enum):
    """Each peer has one connection per lane, so that bulk never delays what keeps the session alive."""

    CONTROL = "control"
    DATA = "data"


@dataclass(frozen=True, slots=True)
class PeerAddress:
    """Where a tier listens. An empty `server_key` means: the key you would expect there anyway."""

    address: Annotated[str, Text(256)]
    server_key: Annotated[str, Text(40, re.compile("(.{40})?"))] = ""


@dataclass(frozen=True, slots=True)
class Hello:
    """First message of the connecting side. `instance` names this start of the process; a restart is another one."""

    TYPE: ClassVar[str] = "HI"
    LANE: ClassVar[Lane] = Lane.CONTROL
    version_min: VersionPair
    version_max: VersionPair
    instance: Instance
    role: Annotated[str, Text(16, re.compile("session|worker"))]
    bundle: Digest
    heartbeat_ms: Annotated[int, Whole(1, 3_600_000)]
    peers: Annotated[Mapping[str, PeerAddress], MapOf(Text(64), StructOf(PeerAddress), most=MAX_HOPS)] = field(
        default_factory=dict, hash=False
    )
    features: Features = ()


@dataclass(frozen=True, slots=True)
class Welcome:
    """The listening side accepts: the version chosen, and what it will take."""

    TYPE: ClassVar[str] = "WE"
    LANE: ClassVar[Lane] = Lane.CONTROL
    version: VersionPair
    instance: Instance
    epoch: Natural
    bundle: Digest
    tier: Tier
    max_tensor_bytes: Natural
    max_chunk_bytes: Annotated[int, Whole(1, MAX_PAYLOAD_BYTES)]
    features: Features = ()


@dataclass(frozen=True, slots=True)
class Reject:
    """The listening side declines the Hello."""

    TYPE: ClassVar[str] = "RJ"
    LANE: ClassVar[Lane] = Lane.CONTROL
    code: Name
    reason: Reason = ""


@dataclass(frozen=True, slots=True)
class Failed:
    """A tier could not do its part of an attempt."""

    TYPE: ClassVar[str] = "FA"
    LANE: ClassVar[Lane] = Lane.CONTROL
    sid: Name
    rid: Natural
    attempt: Natural
    tier: Tier
    code: Name
    reason: Reason = ""
    retryable: Annotated[bool, Flag()] = False


@dataclass(frozen=True, slots=True)
class Cancel:
    """Stop working on an attempt; its answer is no longer wanted."""

    TYPE: ClassVar[str] = "CA"
    LANE: ClassVar[Lane] = Lane.CONTROL
    sid: Name
    rid: Natural
    attempt: Natural


@dataclass(frozen=True, slots=True)
class Done:
    """The answer of a request was accepted: forget everything about it."""

    TYPE: ClassVar[str] = "DN"
    LANE: ClassVar[Lane] = Lane.CONTROL
    sid: Name
    rid: Natural


@dataclass(frozen=True, slots=True)
class Ping:
    """`sent_us` is the sender's own clock; the peer only echoes it."""

    TYPE: ClassVar[str] = "PI"
    LANE: ClassVar[Lane] = Lane.CONTROL
    seq: Natural
    sent_us: Natural


@dataclass(frozen=True, slots=True)
class Pong:
    """Echo of a Ping, with the number of requests waiting and the epoch."""

    TYPE: ClassVar[str] = "PO"
    LANE: ClassVar[Lane] = Lane.CONTROL
    seq: Natural
    sent_us: Natural
    queue: Natural = 0
    epoch: Natural = 0


@dataclass(frozen=True, slots=True)
class Drain:
    """The sender finishes what it has and takes nothing new."""

    TYPE: ClassVar[str] = "DR"
    LANE: ClassVar[Lane] = Lane.CONTROL
    reason: Reason = ""


@dataclass(frozen=True, slots=True)
class Bye:
    """The sender leaves on purpose."""

    TYPE: ClassVar[str] = "BY"
    LANE: ClassVar[Lane] = Lane.CONTROL
    reason: Reason = ""


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


@dataclass(frozen=True, slots=True)
class HopTiming:
    """What a hop that is done already measured about itself."""

    tier: Tier
    segment: Annotated[str, Text(128)]
    wait_us: Natural
    run_us: Natural
    bytes_in: Natural
    bytes_out: Natural


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """A tensor announced by Open; its bytes follow in Chunks, little-endian and row-major."""

    name: TensorName
    dtype: Annotated[str, Text(16)]
    shape: Annotated[tuple[int, ...], ListOf(Whole(0, _UINT53), most=MAX_DIMS)]
    size_bytes: Natural

    def check_wire(self, where: str) -> None:
        item_bytes = ITEM_SIZE_BYTES.get(self.dtype)
        if item_bytes is None:
            raise ProtocolError(f"{where}.dtype: expected one of {', '.join(ITEM_SIZE_BYTES)}, got {self.dtype!r}")
        if math.prod(self.shape) * item_bytes != self.size_bytes:
            raise ProtocolError(
                f"{where}: {self.dtype} of shape {list(self.shape)} takes {math.prod(self.shape) * item_bytes} bytes, "
                f"but size_bytes says {self.size_bytes}"
            )


@dataclass(frozen=True, slots=True)
class Open:
    """Announces the tensors of one hop of one attempt; Chunks follow. `deadline_ms` is what is left when it is sent."""

    TYPE: ClassVar[str] = "OP"
    LANE: ClassVar[Lane] = Lane.DATA
    sid: Name
    rid: Natural
    attempt: Natural
    epoch: Natural
    plan: Digest
    hop: HopIndex
    route: Annotated[tuple[Hop, ...], ListOf(StructOf(Hop), most=MAX_HOPS, fewest=1)]
    tensors: Annotated[tuple[TensorHeader, ...], ListOf(StructOf(TensorHeader), most=MAX_TENSORS)]
    deadline_ms: Natural
    trace: Annotated[tuple[HopTiming, ...], ListOf(StructOf(HopTiming), most=MAX_HOPS)] = ()
    outputs: TensorNames = ()

    def check_wire(self, where: str) -> None:
        if self.hop >= len(self.route):
            raise ProtocolError(
                f"{where}.hop: expected less than the {len(self.route)} hops of the route, got {self.hop}"
            )


@dataclass(frozen=True, slots=True)
class Chunk:
    """Bytes `offset`.. of tensor number `tensor` of the Open with the same sid, rid, attempt and hop."""

    TYPE: ClassVar[str] = "CH"
    LANE: ClassVar[Lane] = Lane.DATA
    sid: Name
    rid: Natural
    attempt: Natural
    hop: HopIndex
    tensor: Annotated[int, Whole(0, MAX_TENSORS - 1)]
    offset: Natural
    crc32: Crc32
    payload: Frame = field(default=b"", hash=False, repr=False)


Message: TypeAlias = (
    Hello | Welcome | Reject | Failed | Cancel | Done | Ping | Pong | Drain | Bye | Attach | Open | Chunk
)  # fmt: skip

_CLASSES: Final[tuple[type[Message], ...]] = (
    *(Hello, Welcome, Reject, Failed, Cancel, Done, Ping, Pong, Drain, Bye),
    *(Attach, Open, Chunk),
)
MESSAGE_TYPES: Final[Mapping[str, type[Message]]] = {cls.TYPE: cls for cls in _CLASSES}
_SCHEMAS: Final = {cls: StructOf(cls) for cls in _CLASSES}


def encode(message: Message) -> list[Frame]:
    """Frames of one message; a payload is passed on, not copied.

    Raises InternalError when the message breaks the protocol's own limits, with the field.
    """
    cls = type(message)
    try:
        header = {"type": cls.TYPE, **_SCHEMAS[cls].dump(message, cls.__name__)}
    except ProtocolError as exc:
        raise InternalError(f"cannot send a message beyond the limits of the protocol: {exc}") from exc
    packed = _packb(header)
    if len(packed) > MAX_HEADER_BYTES:
        raise InternalError(f"{cls.__name__} header takes {len(packed)} bytes, the protocol allows {MAX_HEADER_BYTES}")
    if not isinstance(message, Chunk):
        return [packed]
    if not 0 < len(message.payload) <= MAX_PAYLOAD_BYTES:
        raise InternalError(f"a Chunk carries 1..{MAX_PAYLOAD_BYTES} bytes, this one {len(message.payload)}")
    return [packed, message.payload]


def decode(frames: Sequence[Frame]) -> Message:
    """Message of the frames of one ZeroMQ message. Raises ProtocolError, and nothing else, on anything wrong."""
    if not 1 <= len(frames) <= 2:
        raise ProtocolError(f"expected a header and at most one payload frame, got {len(frames)} frames")
    header = _unpack(frames[0])
    code = header.get("type")
    cls = MESSAGE_TYPES.get(code) if isinstance(code, str) else None
    if cls is None:
        raise ProtocolError(f"type: expected one of {', '.join(MESSAGE_TYPES)}, got {str(code)[:40]!r}")
    if cls is not Chunk:
        if len(frames) == 2:
            raise ProtocolError(f"{cls.__name__} has no payload frame, got one of {len(frames[1])} bytes")
        return cast("Message", _SCHEMAS[cls].load(header, cls.__name__))
    if len(frames) != 2 or not 0 < len(frames[1]) <= MAX_PAYLOAD_BYTES:
        raise ProtocolError(f"Chunk needs one payload frame of 1..{MAX_PAYLOAD_BYTES} bytes")
    return cast("Message", _SCHEMAS[cls].load(header, cls.__name__, payload=frames[1]))


def _unpack(frame: Frame) -> dict[str, object]:
    if len(frame) > MAX_HEADER_BYTES:
        raise ProtocolError(f"header: expected at most {MAX_HEADER_BYTES} bytes, got {len(frame)}")
    try:
        header = _unpackb(
            frame,
            raw=False,
            strict_map_key=True,
            max_str_len=4096,
            max_bin_len=4096,
            max_array_len=1024,
            max_map_len=256,
            max_ext_len=16,
        )
    # Every way in which msgpack says no; ValueError includes ExtraData, bad UTF-8 and the limits.
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as exc:
        raise ProtocolError(f"header is not msgpack within the limits: {type(exc).__name__}: {str(exc)[:80]}") from exc
    if not isinstance(header, dict):
        raise ProtocolError(f"header: expected a map, got {type(header).__name__}")
    return header
