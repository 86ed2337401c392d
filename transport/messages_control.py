"""What is said on the control lane: who is there, what became of requests, credit, which bundles there are.

Data never delays it. Bytes and limits are in `docs/wire.md`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from flagsplit.errors import ProtocolError
from flagsplit.transport.message_fields import (
    MAX_HOPS,
    MAX_PAYLOAD_BYTES,
    Costs,
    Digest,
    Features,
    HopIndex,
    Instance,
    Lane,
    LaterNatural,
    Name,
    Natural,
    Offsets,
    OptionalDigest,
    Permille,
    Reason,
    Sha256,
    Tier,
    TokenList,
    VersionPair,
)
from flagsplit.transport.schema import APPENDED, Flag, ListOf, MapOf, StructOf, Text, Whole


@dataclass(frozen=True, slots=True)
class PeerAddress:
    """Where a tier listens. An empty `server_key` means: the key you would expect there anyway."""

    address: Annotated[str, Text(256)]
    server_key: Annotated[str, Text(40, re.compile("(.{40})?"))] = ""


@dataclass(frozen=True, slots=True)
class Hello:
    """First message of the connecting side. `instance` names this start of the process; a restart is another one.

    Said again later it asks for another bundle. `credit_bytes` of payload may be sent to it before it says Credit; 0
    stands for no limit.
    """

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
    credit_bytes: LaterNatural = 0


@dataclass(frozen=True, slots=True)
class Welcome:
    """The listening side accepts: version, limits, and how much it is slowed down to emulate a device."""

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
    credit_bytes: LaterNatural = 0
    slowdown_permille: Permille = 1000


@dataclass(frozen=True, slots=True)
class Reject:
    """The listening side declines the Hello."""

    TYPE: ClassVar[str] = "RJ"
    LANE: ClassVar[Lane] = Lane.CONTROL
    code: Name
    reason: Reason = ""


@dataclass(frozen=True, slots=True)
class Failed:
    """A tier could not do its part of an attempt; `retry_ms` says in how long it may have room, 0 is not known."""

    TYPE: ClassVar[str] = "FA"
    LANE: ClassVar[Lane] = Lane.CONTROL
    sid: Name
    rid: Natural
    attempt: Natural
    tier: Tier
    code: Name
    reason: Reason = ""
    retryable: Annotated[bool, Flag()] = False
    retry_ms: LaterNatural = 0


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
class LinkGauge:
    """What a tier measured of its connection to another, in the direction away from itself."""

    tier: Tier
    bytes_per_s: Natural
    rtt_us: Natural
    loss_permille: Annotated[int, Whole(0, 1000)] = 0


@dataclass(frozen=True, slots=True)
class Pong:
    """Echo of a Ping, with the requests waiting, the epoch, how long a new run would wait, and what links are like."""

    TYPE: ClassVar[str] = "PO"
    LANE: ClassVar[Lane] = Lane.CONTROL
    seq: Natural
    sent_us: Natural
    queue: Natural = 0
    epoch: Natural = 0
    wait_us: LaterNatural = 0
    held_bytes: LaterNatural = 0
    links: Annotated[tuple[LinkGauge, ...], ListOf(StructOf(LinkGauge), most=MAX_HOPS), APPENDED] = ()


@dataclass(frozen=True, slots=True)
class Drain:
    """The sender finishes what it has and takes nothing new, of one bundle or, if none is named, of any.

    `successor` is the bundle that takes the place of the one named.
    """

    TYPE: ClassVar[str] = "DR"
    LANE: ClassVar[Lane] = Lane.CONTROL
    reason: Reason = ""
    bundle: OptionalDigest = ""
    successor: OptionalDigest = ""


@dataclass(frozen=True, slots=True)
class Bye:
    """The sender leaves on purpose."""

    TYPE: ClassVar[str] = "BY"
    LANE: ClassVar[Lane] = Lane.CONTROL
    reason: Reason = ""


@dataclass(frozen=True, slots=True)
class Credit:
    """How many payload bytes came on the data lane of this connection in all, and how many may come in all.

    `held_us` is how long this was held back since the last of those bytes came. Feature "credit".
    """

    TYPE: ClassVar[str] = "CR"
    LANE: ClassVar[Lane] = Lane.CONTROL
    received_bytes: Natural
    limit_bytes: Natural
    held_us: Natural = 0


@dataclass(frozen=True, slots=True)
class Have:
    """Answer to an Open that asked to resume: for each of its tensors, how many bytes from its start are here already.

    Feature "resume".
    """

    TYPE: ClassVar[str] = "HA"
    LANE: ClassVar[Lane] = Lane.CONTROL
    sid: Name
    rid: Natural
    attempt: Natural
    hop: HopIndex
    offsets: Offsets


@dataclass(frozen=True, slots=True)
class BundleOffer:
    """The sender has a bundle file of that size and digest (SHA-256 of its bytes, in hex); the answer is BundleStatus.

    Feature "bundles".
    """

    TYPE: ClassVar[str] = "BO"
    LANE: ClassVar[Lane] = Lane.CONTROL
    file_sha256: Sha256
    bundle: Digest
    size_bytes: Natural


@dataclass(frozen=True, slots=True)
class BundleStatus:
    """What became of a bundle: "partial" with the bytes that are here, "loading", "ready", "refused" or "retired"."""

    TYPE: ClassVar[str] = "BS"
    LANE: ClassVar[Lane] = Lane.CONTROL
    bundle: Digest
    state: Annotated[str, Text(16)]
    offset: Natural = 0
    reason: Reason = ""


@dataclass(frozen=True, slots=True)
class BundleRetire:
    """Serve a bundle no longer: finish what runs, tell its sessions (Drain), then free it. Feature "bundles"."""

    TYPE: ClassVar[str] = "BR"
    LANE: ClassVar[Lane] = Lane.CONTROL
    bundle: Digest
    successor: OptionalDigest = ""


@dataclass(frozen=True, slots=True)
class Tokens:
    """What was generated for a request since the message before: `tokens` are numbers `offset`.. of its answer.

    Tokens are counted from 0 without the prompt, and those that an Open named as delivered are counted but not said
    again. With `last` nothing follows, and `reason` says why: "stop", "length", "deadline" or "cancelled".
    `wait_us` is how long the request waited for its first step in this attempt, `run_us` how long the step took that
    made these tokens, and `batch` how many requests shared it. Where the Open asked for `logprobs`, `costs` has for
    each token, and for the stop token if one ended the stream, its log-probability times -1,000,000, and the first
    message says with `no_speech` how likely it is that nobody speaks, in millionths. Feature "generate".
    """

    TYPE: ClassVar[str] = "TK"
    LANE: ClassVar[Lane] = Lane.CONTROL
    sid: Name
    rid: Natural
    attempt: Natural
    offset: Natural
    tokens: TokenList = ()
    last: Annotated[bool, Flag()] = False
    reason: Annotated[str, Text(64)] = ""
    wait_us: LaterNatural = 0
    run_us: LaterNatural = 0
    batch: Annotated[int, Whole(1, 65535), APPENDED] = 1
    costs: Costs = ()
    no_speech: Permille = 0

    def check_wire(self) -> None:
        if self.costs and not 0 <= len(self.costs) - len(self.tokens) <= self.last:
            raise ProtocolError(f".costs: expected one for each of {len(self.tokens)} tokens, got {len(self.costs)}")
