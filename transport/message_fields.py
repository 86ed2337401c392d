"""Limits of the wire protocol, and the types of its fields: each carries its own limit.

The messages made of them are in `messages_control.py` and `messages_data.py`.
"""

import enum
import re
from collections.abc import Mapping
from typing import Annotated, Final, TypeAlias

from flagsplit.transport.schema import APPENDED, ListOf, Prose, Text, Whole

Version: TypeAlias = tuple[int, int]
Frame: TypeAlias = bytes | memoryview

VERSION: Final[Version] = (1, 2)
OLDEST_VERSION: Final[Version] = (1, 0)
MAX_HEADER_BYTES: Final = 64 << 10
MAX_PAYLOAD_BYTES: Final = 1 << 20
MAX_TENSORS: Final = 256
MAX_NAME_BYTES: Final = 256
MAX_HOPS: Final = 16
MAX_DIMS: Final = 8
MAX_INLINE_BYTES: Final = 64 << 10
MAX_GENERATION_BYTES: Final = 8 << 10
MAX_TOKENS: Final = 1024

CREDIT: Final = "credit"
RESUME: Final = "resume"
PROBE: Final = "probe"
BUNDLES: Final = "bundles"
ZSTD: Final = "zstd"
LZ4: Final = "lz4"
INLINE: Final = "inline"
GENERATE: Final = "generate"
FEATURES: Final = (CREDIT, RESUME, PROBE, BUNDLES, ZSTD, LZ4, INLINE, GENERATE)
"""What a peer may name in its Hello or Welcome: the messages and fields since version 1.1 that it understands."""

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

UINT32 = 2**32 - 1
UINT53 = 2**53 - 1  # what JavaScript and Java doubles still hold exactly

Natural = Annotated[int, Whole(0, UINT53)]
Crc32 = Annotated[int, Whole(0, UINT32)]
LaterCrc32 = Annotated[int | None, Whole(0, UINT32), APPENDED]
HopIndex = Annotated[int, Whole(0, MAX_HOPS - 1)]
VersionPair = Annotated[Version, ListOf(Whole(0, 65535), most=2, fewest=2)]
Instance = Annotated[str, Text(32, re.compile("[0-9a-f]{32}"))]
Name = Annotated[str, Text(64)]
Tier = Annotated[str, Text(64)]
Digest = Annotated[str, Text(128)]
TensorName = Annotated[str, Text(MAX_NAME_BYTES)]
Reason = Annotated[str, Prose(1024)]
OptionalDigest = Annotated[str, Text(128), APPENDED]
LaterNatural = Annotated[int, Whole(0, UINT53), APPENDED]
Permille = Annotated[int, Whole(0, 1_000_000), APPENDED]
Sha256 = Annotated[str, Text(64, re.compile("[0-9a-f]{64}"))]
Offsets = Annotated[tuple[int, ...], ListOf(Whole(0, UINT53), most=MAX_TENSORS)]
Squeeze = Annotated[str, Text(8, re.compile("(zstd|lz4)?")), APPENDED]
# W3C Trace Context: version, trace id, parent id, flags.
TraceParent = Annotated[str, Text(55, re.compile("(00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2})?")), APPENDED]
Generation = Annotated[str, Text(MAX_GENERATION_BYTES), APPENDED]
Costs = Annotated[tuple[int, ...], ListOf(Whole(0, UINT32), most=MAX_TOKENS + 1), APPENDED]
TokenList = Annotated[tuple[int, ...], ListOf(Whole(0, UINT53), most=MAX_TOKENS)]
Features = Annotated[tuple[str, ...], ListOf(Text(64), most=64)]
TensorNames = Annotated[tuple[str, ...], ListOf(Text(MAX_NAME_BYTES), most=MAX_TENSORS)]


class Lane(enum.Enum):
    """Each peer has one connection per lane, so that bulk never delays what keeps the session alive."""

    CONTROL = "control"
    DATA = "data"

    __hash__ = object.__hash__  # members are single objects; Enum's own hash is a Python function, called per message
