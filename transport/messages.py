"""The messages of wire protocol 1 and their two-frame encoding: `[msgpack header][raw payload]`.

Everything a peer can say is a class in `messages_control.py` or `messages_data.py`, with the limit of each field in its
type; `docs/wire.md` says the same for other languages, and `tests/transport/golden/` holds the bytes. A field is only
ever appended, with a default, and left out where it has that; types never change.
How messages travel is in `channel.py`, how tensors become chunks in `tensors.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeAlias, cast

import msgpack

from flagsplit.errors import InternalError, ProtocolError
from flagsplit.transport.message_fields import BUNDLES as BUNDLES
from flagsplit.transport.message_fields import CREDIT as CREDIT
from flagsplit.transport.message_fields import FEATURES as FEATURES
from flagsplit.transport.message_fields import GENERATE as GENERATE
from flagsplit.transport.message_fields import INLINE as INLINE
from flagsplit.transport.message_fields import ITEM_SIZE_BYTES as ITEM_SIZE_BYTES
from flagsplit.transport.message_fields import LZ4 as LZ4
from flagsplit.transport.message_fields import MAX_DIMS as MAX_DIMS
from flagsplit.transport.message_fields import MAX_GENERATION_BYTES as MAX_GENERATION_BYTES
from flagsplit.transport.message_fields import MAX_HEADER_BYTES as MAX_HEADER_BYTES
from flagsplit.transport.message_fields import MAX_HOPS as MAX_HOPS
from flagsplit.transport.message_fields import MAX_INLINE_BYTES as MAX_INLINE_BYTES
from flagsplit.transport.message_fields import MAX_NAME_BYTES as MAX_NAME_BYTES
from flagsplit.transport.message_fields import MAX_PAYLOAD_BYTES as MAX_PAYLOAD_BYTES
from flagsplit.transport.message_fields import MAX_TENSORS as MAX_TENSORS
from flagsplit.transport.message_fields import MAX_TOKENS as MAX_TOKENS
from flagsplit.transport.message_fields import OLDEST_VERSION as OLDEST_VERSION
from flagsplit.transport.message_fields import PROBE as PROBE
from flagsplit.transport.message_fields import RESUME as RESUME
from flagsplit.transport.message_fields import VERSION as VERSION
from flagsplit.transport.message_fields import ZSTD as ZSTD
from flagsplit.transport.message_fields import Frame as Frame
from flagsplit.transport.message_fields import Lane as Lane
from flagsplit.transport.message_fields import Version as Version
from flagsplit.transport.messages_control import BundleOffer as BundleOffer
from flagsplit.transport.messages_control import BundleRetire as BundleRetire
from flagsplit.transport.messages_control import BundleStatus as BundleStatus
from flagsplit.transport.messages_control import Bye as Bye
from flagsplit.transport.messages_control import Cancel as Cancel
from flagsplit.transport.messages_control import Credit as Credit
from flagsplit.transport.messages_control import Done as Done
from flagsplit.transport.messages_control import Drain as Drain
from flagsplit.transport.messages_control import Failed as Failed
from flagsplit.transport.messages_control import Have as Have
from flagsplit.transport.messages_control import Hello as Hello
from flagsplit.transport.messages_control import LinkGauge as LinkGauge
from flagsplit.transport.messages_control import PeerAddress as PeerAddress
from flagsplit.transport.messages_control import Ping as Ping
from flagsplit.transport.messages_control import Pong as Pong
from flagsplit.transport.messages_control import Reject as Reject
from flagsplit.transport.messages_control import Tokens as Tokens
from flagsplit.transport.messages_control import Welcome as Welcome
from flagsplit.transport.messages_data import Attach as Attach
from flagsplit.transport.messages_data import BundlePart as BundlePart
from flagsplit.transport.messages_data import Chunk as Chunk
from flagsplit.transport.messages_data import Hop as Hop
from flagsplit.transport.messages_data import HopTiming as HopTiming
from flagsplit.transport.messages_data import Open as Open
from flagsplit.transport.messages_data import Probe as Probe
from flagsplit.transport.messages_data import TensorHeader as TensorHeader
from flagsplit.transport.schema import StructOf

_packb: Final[Callable[[object], bytes]] = msgpack.packb
_unpackb: Final[Callable[..., object]] = msgpack.unpackb  # type: ignore[attr-defined]  # the package has no types

Message: TypeAlias = (
    Hello
    | Welcome
    | Reject
    | Failed
    | Cancel
    | Done
    | Ping
    | Pong
    | Drain
    | Bye
    | Credit
    | Have
    | BundleOffer
    | BundleStatus
    | BundleRetire
    | Tokens
    | Attach
    | Open
    | Chunk
    | BundlePart
    | Probe
)

_CLASSES: Final[tuple[type[Message], ...]] = (
    *(
        Hello,
        Welcome,
        Reject,
        Failed,
        Cancel,
        Done,
        Ping,
        Pong,
        Drain,
        Bye,
        Credit,
        Have,
        BundleOffer,
        BundleStatus,
        BundleRetire,
        Tokens,
    ),
    *(Attach, Open, Chunk, BundlePart, Probe),
)
_WITH_PAYLOAD: Final = (Chunk, BundlePart, Probe)
MESSAGE_TYPES: Final[Mapping[str, type[Message]]] = {cls.TYPE: cls for cls in _CLASSES}
_SCHEMAS: Final = {cls: StructOf(cls) for cls in _CLASSES}


def agreed_version(oldest: Version, newest: Version) -> Version | None:
    """The highest version that we and a peer with that range speak, or None."""
    low, high = max(oldest, OLDEST_VERSION), min(newest, VERSION)
    return high if low <= high else None


def encode(message: Message) -> list[Frame]:
    """Frames of one message; a payload is passed on, not copied.

    Raises InternalError when the message breaks the protocol's own limits, with the field.
    """
    cls = type(message)
    try:
        header = {"type": cls.TYPE, **_SCHEMAS[cls].dump(message)}
    except ProtocolError as exc:
        raise InternalError(f"cannot send a message beyond the limits of the protocol: {cls.__name__}{exc}") from exc
    packed = _packb(header)
    if len(packed) > MAX_HEADER_BYTES:
        raise InternalError(f"{cls.__name__} header takes {len(packed)} bytes, the protocol allows {MAX_HEADER_BYTES}")
    if isinstance(message, Open):
        return [packed, message.payload] if message.payload else [packed]
    if not isinstance(message, _WITH_PAYLOAD):
        return [packed]
    if not 0 < len(message.payload) <= MAX_PAYLOAD_BYTES:
        raise InternalError(f"a {cls.__name__} carries 1..{MAX_PAYLOAD_BYTES} bytes, this one {len(message.payload)}")
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
    if cls is Open and len(frames) == 2 and frames[1]:
        return _load(cls, header, payload=frames[1])
    if cls not in _WITH_PAYLOAD:
        if len(frames) == 2:
            raise ProtocolError(f"{cls.__name__} has no payload frame, got one of {len(frames[1])} bytes")
        return _load(cls, header)
    if len(frames) != 2 or not 0 < len(frames[1]) <= MAX_PAYLOAD_BYTES:
        raise ProtocolError(f"{cls.__name__} needs one payload frame of 1..{MAX_PAYLOAD_BYTES} bytes")
    return _load(cls, header, payload=frames[1])


def _load(cls: type[Message], header: dict[str, object], **off_wire: object) -> Message:
    try:
        return cast("Message", _SCHEMAS[cls].load(header, **off_wire))
    except ProtocolError as exc:
        raise ProtocolError(f"{cls.__name__}{exc}") from exc


def _unpack(frame: Frame) -> dict[str, object]:
    if len(frame) > MAX_HEADER_BYTES:
        raise ProtocolError(f"header: expected at most {MAX_HEADER_BYTES} bytes, got {len(frame)}")
    try:
        header = _unpackb(
            frame,
            raw=False,
            strict_map_key=True,
            max_str_len=MAX_GENERATION_BYTES,
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
