"""What a client knows of its streams and of the replicas that make them, and how a stream is asked for.

What follows from an event is decided in `client_machine.py`.
"""

import hashlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Final, Literal

import numpy as np

from flagsplit.errors import FlagsplitError, InputError, UnavailableError
from flagsplit.runtime.generation.client_replicas import Replica
from flagsplit.runtime.generation.service_machine import ROWS, TOKENS, tokens_array
from flagsplit.runtime.generation.stream_events import StreamRequest
from flagsplit.runtime.generation.stream_spec import StreamSpec
from flagsplit.runtime.liveness import LivenessOptions
from flagsplit.runtime.relay import RESUME_FROM_BYTES, tensor_bytes, tensor_header
from flagsplit.targets.interface import Array
from flagsplit.transport.checksum import crc32
from flagsplit.transport.messages import (
    INLINE,
    MAX_INLINE_BYTES,
    RESUME,
    Hop,
    HopTiming,
    Open,
)

LOCAL: Final = ""
"""The place that is the client itself; replicas are called by their addresses."""
_MAX_DEADLINE_S: Final = 1e9
_SUSPECT_AFTER: Final = 3

Choice = Literal["hash", "load"]


@dataclass(frozen=True)
class ClientOptions:
    """Times and limits of a client of token streams.

    Attributes:
        choice: "hash" sends streams of one key to one replica while the set of replicas stays as it is, and moves few
            when it changes; "load" takes the replica with the least to do.
        stall_s: how long a stream may be without a token before another replica, if there is one, takes it; until the
            first, it may also wait as long as the replica said that it would.
        local_after_s: how long a stream without a replica waits for one before this process goes on with it.
        pause_s: how long a replica that refused a stream without saying when to come again is passed by; twice as long
            each time.
        max_failures: how often in a row a stream may fail, or lose its replica, without a token in between.
        liveness: heartbeats to the replicas.
    """

    choice: Choice = "hash"
    stall_s: float = 15.0
    local_after_s: float = 1.0
    pause_s: float = 0.25
    max_failures: int = 12
    liveness: LivenessOptions = field(default_factory=LivenessOptions)


@dataclass
class LiveStream:
    """A stream that is not over.

    Attributes:
        rid, request: its number, and what the application asked for.
        since: since when it has been where it is, or waits for a place.
        look_at: when somebody has to look at it again: it may be stuck, or a replica may have room again.
        made: the tokens that were given to the application.
        attempt: the newest that was sent anywhere.
        at: address of the replica that makes it, `LOCAL`, or None while it waits for a place.
        was_placed: whether it ever had one.
        states: by replica that may have something of it, that replica's instance.
        met: instances that were sent its tensors, or some of them.
        passed: by replica, or for `LOCAL`, until when it is passed by.
        failures: how often it failed since its last token.
        rows: for a model whose first layers run here: what they gave, from position 0 on.
        rows_told: how many of these the replica `at` was told.
        waits_for_rows: whether the next are being made.
        last_error: why it failed last.
    """

    rid: int
    request: StreamRequest
    since: float
    look_at: float = math.inf
    made: list[int] = field(default_factory=list)
    attempt: int = 0
    at: str | None = None
    was_placed: bool = False
    states: dict[str, str] = field(default_factory=dict)
    met: set[str] = field(default_factory=set)
    passed: dict[str, float] = field(default_factory=dict)
    failures: int = 0
    rows: list[Array] = field(default_factory=list)
    rows_told: int = 0
    waits_for_rows: bool = False
    last_error: str = ""

    @property
    def is_suspect(self) -> bool:
        """Whether it failed so often that it may be to blame."""
        return self.failures >= _SUSPECT_AFTER

    @property
    def has_rows(self) -> bool:
        """Whether the first layers run here."""
        return self.request.tensors is None

    @property
    def key(self) -> str:
        """By which its replica is chosen."""
        return self.request.key or str(self.rid)

    @property
    def row_count(self) -> int:
        """Positions that there are rows of."""
        return sum(len(rows) for rows in self.rows)


@dataclass(frozen=True)
class Departure:
    """An announcement and the bytes that belong to it."""

    opened: Open
    buffers: list[memoryview]


def depart(
    stream: LiveStream, replica: Replica, sid: str, bundle: str, tiers: tuple[str, str], now: float
) -> Departure:
    """The Open with which a stream goes on at a replica, in its current attempt, and what follows it.

    Args:
        stream: the stream; its `states` say whether the replica may have something of it.
        replica: where it goes.
        sid: the client's instance.
        bundle: its digest.
        tiers: the client's own, and the one that generates.
        now: the time.

    Raises:
        ConfigError: the options take more than a message may have.
        ProtocolError: a tensor cannot travel.
    """
    known = stream.states.get(replica.name) == replica.instance
    request = stream.request
    tensors: dict[str, Array] = {}
    position = None
    if request.tensors is None:
        # A replica that came back with nothing new to tell has quit the stream: it begins again.
        position = stream.rows_told if known and stream.rows_told < stream.row_count else 0
        tensors[ROWS] = np.concatenate(stream.rows)[position:]
    elif not known:
        tensors.update(request.tensors)
    if request.prompt or stream.made:
        tensors[TOKENS] = tokens_array((*request.prompt, *stream.made))
    kept = known and position is None
    options = replace(request.options, deadline_s=0.0)  # the Open says it, for all attempts together
    spec = StreamSpec(options, request.name, "", len(stream.made), position, kept, request.input_s)
    headers = tuple(tensor_header(name, array) for name, array in tensors.items())
    buffers = [tensor_bytes(array) for array in tensors.values()]
    size_bytes = sum(header.size_bytes for header in headers)
    may_have = replica.instance in stream.met and size_bytes >= RESUME_FROM_BYTES
    again = may_have and RESUME in replica.peer.features
    inline = b""
    if 0 < size_bytes <= MAX_INLINE_BYTES and INLINE in replica.peer.features and not again:
        inline = b"".join(buffers)
    opened = Open(
        sid=sid,
        rid=stream.rid,
        attempt=stream.attempt,
        epoch=0,
        plan=request.plan,
        hop=1,
        route=(Hop(tiers[0], "", tuple(tensors)), Hop(tiers[1])),
        tensors=headers,
        deadline_ms=max(1, int(min(request.deadline - now, _MAX_DEADLINE_S) * 1000)),
        trace=(HopTiming(tiers[0], "", 0, 0, 0, size_bytes),),
        bundle=bundle,
        resume=again,
        inline_crc32=crc32(inline) if inline else None,
        generation=spec.to_text(),
        payload=inline,
    )
    return Departure(opened, buffers)


def choose(stream: LiveStream, replicas: Iterable[Replica], choice: Choice) -> Replica | None:
    """The replica for a stream, out of those that take it."""
    weight: Callable[[Replica], float] = (lambda each: -each.load) if choice == "load" else (lambda _: 0.0)
    return max(replicas, key=lambda each: (weight(each), _draw(stream.key, each.name)), default=None)


def error_of(code: str, text: str) -> FlagsplitError:
    """What the application gets when no replica takes a stream."""
    if code == "too-large":
        return InputError(f"no replica has room for the stream; {text}")
    return InputError(text) if code == "compute" else UnavailableError(f"every replica refuses the stream; {text}")


def _draw(key: str, replica: str) -> bytes:
    """Rendezvous hashing: each replica draws for each key, and the highest wins, whoever else takes part."""
    return hashlib.blake2b(f"{key}\0{replica}".encode(), digest_size=8).digest()
