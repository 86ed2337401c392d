"""What the session and the workers have in common: taking tensors in, running a segment, passing tensors on.

A request visits the hops of its route. At each, the tensors of the message before are put together, the segment runs
unless its results are there already, and what the hop carries goes on. Values stay until the request is done, so a
later attempt starts from what is still here; that is what makes a fallback cheap.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from flagsplit.errors import InternalError, ProtocolError
from flagsplit.runtime.events import Instruction, Ran, Run, Skip
from flagsplit.runtime.itinerary import PlannedStep
from flagsplit.targets.interface import Array
from flagsplit.transport.checksum import crc32
from flagsplit.transport.messages import (
    INLINE,
    ITEM_SIZE_BYTES,
    MAX_DIMS,
    MAX_HEADER_BYTES,
    MAX_HOPS,
    MAX_INLINE_BYTES,
    RESUME,
    Chunk,
    Have,
    Hop,
    HopTiming,
    Open,
    TensorHeader,
    encode,
)
from flagsplit.transport.squeeze_policy import LinkSqueezer
from flagsplit.transport.tensors import Assembly, Incoming, TransferLimits, chunks_of, inline_payload

FlightKey = tuple[str, int]

_MAX_DEADLINE_S = 1e9
# Below this the question what is there already takes longer than sending it all again.
RESUME_FROM_BYTES = 64 << 10
# By more than so much two headers never differ whose words are the same: numbers take 9 bytes and perhaps a key.
_NUMBERS_BYTES = 32 * (4 + 2 * MAX_HOPS)


@dataclass
class Flight:
    """A request at one tier.

    Attributes:
        sid, rid: the session's id and the request's number in it.
        attempt: the newest attempt seen; older ones are ignored.
        plan: name of its plan.
        route: its hops.
        deadline: local time after which nobody waits for it.
        bundle: digest of its bundle.
        epoch: the session's count of its bundles and policies.
        traceparent: the trace that it belongs to, as in W3C Trace Context, or "".
        values: every tensor of it that this tier made or received.
        arrivals: tensors on their way in, by hop.
        partial: tensors that began to come in under an earlier attempt, by name.
        departures: tensors that wait for the receiver to say how much of them it has, by hop.
        reached: hops that this tier already took up in this attempt.
        neighbors: peer to which a tier of the route belongs, as messages came from it.
        trace: timings of the hops so far.
        bytes_in: bytes of the message that led to a hop.
        client: on whose account it is; by default its session is a client by itself.
    """

    sid: str
    rid: int
    attempt: int
    plan: str
    route: tuple[Hop, ...]
    deadline: float
    bundle: str = ""
    epoch: int = 0
    traceparent: str = ""
    values: dict[str, Array] = field(default_factory=dict)
    arrivals: dict[int, tuple[Open, Assembly]] = field(default_factory=dict)
    partial: dict[str, Incoming] = field(default_factory=dict)
    departures: dict[int, tuple[Open, list[memoryview]]] = field(default_factory=dict)
    reached: set[int] = field(default_factory=set)
    neighbors: dict[str, str] = field(default_factory=dict)
    trace: tuple[HopTiming, ...] = ()
    bytes_in: int = 0
    client: str = ""

    def __post_init__(self) -> None:
        self.client = self.client or self.sid

    @property
    def key(self) -> FlightKey:
        """What names the request everywhere."""
        return self.sid, self.rid

    @property
    def held_bytes(self) -> int:
        """Bytes of all values held, and of those announced."""
        coming = {header.name: header.size_bytes for opened, _ in self.arrivals.values() for header in opened.tensors}
        begun = {name: incoming.header.size_bytes for name, incoming in self.partial.items()}
        return sum((begun | coming).values()) + sum(value.nbytes for value in self.values.values())

    def restart(self, attempt: int, plan: str, route: tuple[Hop, ...]) -> None:
        """Begin a new attempt; values stay, and what there is of those that were on their way."""
        self.attempt, self.plan, self.route = attempt, plan, route
        self.set_arrivals_aside()
        self.departures.clear()
        self.reached.clear()
        self.neighbors.clear()
        self.trace, self.bytes_in = (), 0

    def set_arrivals_aside(self) -> None:
        """Nobody waits for what is on its way in, but a later attempt may go on from there."""
        for _, assembly in self.arrivals.values():
            self.partial.update(
                (name, incoming) for name, incoming in assembly.incoming.items() if incoming.received_bytes
            )
        self.arrivals.clear()


@dataclass(frozen=True)
class Outstanding:
    """A run that was asked for, and the hop that waits for it unless it was skipped."""

    key: FlightKey
    bundle: str
    segment: str
    attempt: int
    hop: int
    skipped: bool = False


class Relay:
    """The flights at one tier and the segments that it can run.

    Args:
        tier: the tier's name.
        segments: by bundle and id, what each segment of this tier reads and makes.
        limits: on tensors that come in.
    """

    def __init__(self, tier: str, segments: Mapping[str, Mapping[str, PlannedStep]], limits: TransferLimits) -> None:
        self.tier = tier
        self.segments = {bundle: dict(steps) for bundle, steps in segments.items()}
        self.limits = limits
        self.now = 0.0
        self.flights: dict[FlightKey, Flight] = {}
        self._runs: dict[int, Outstanding] = {}
        self._next_token = 0
        self._fits: tuple[object, ...] | None = None

    @property
    def waiting_runs(self) -> int:
        """Segments asked for that have not come back."""
        return len(self._runs)

    def runs_of(self, bundle: str) -> int:
        """Segments of a bundle that were asked for and have not come back."""
        return sum(run.bundle == bundle for run in self._runs.values())

    def check_open(self, opened: Open, bundle: str) -> None:
        """Whether an announcement for a bundle makes sense at this tier, whatever is here already.

        Raises:
            ProtocolError: it does not.
        """
        hop = opened.hop
        if hop == 0 or opened.route[hop].tier != self.tier:
            raise ProtocolError(f"expected a hop of tier {self.tier}, came hop {hop} of {opened.route[hop].tier!r}")
        if opened.route[hop].segment and opened.route[hop].segment not in self.segments.get(bundle, {}):
            raise ProtocolError(f"tier {self.tier} has no segment {opened.route[hop].segment!r}")
        names = tuple(header.name for header in opened.tensors)
        if names != opened.route[hop - 1].carry:
            raise ProtocolError(f"hop {hop - 1} carries {opened.route[hop - 1].carry}, but {names} came")
        if len(opened.trace) != hop:
            raise ProtocolError(f"expected a timing for each of {hop} hops, came {len(opened.trace)}")

    def accept_open(self, flight: Flight, opened: Open, peer: str) -> bool:
        """Take up the announcement of a hop's tensors; one that came before is ignored.

        Returns:
            Whether they are all there already: they came with it, or none of them has any bytes.

        Raises:
            ProtocolError: the route or the tensors break a rule or a limit.
        """
        hop = opened.hop
        if hop in flight.reached or hop in flight.arrivals:
            return False
        if opened.route != flight.route:
            raise ProtocolError(f"request {opened.rid} changed its route within attempt {opened.attempt}")
        flight.neighbors[opened.route[hop - 1].tier] = peer
        assembly = Assembly(opened, self.limits, self._kept(flight, opened) if opened.resume else None)
        for header in opened.tensors:
            flight.partial.pop(header.name, None)
        flight.arrivals[hop] = (opened, assembly)
        return assembly.complete

    @staticmethod
    def _kept(flight: Flight, opened: Open) -> dict[str, Incoming]:
        """What is here already of tensors that are announced again."""
        kept = dict(flight.partial)
        for header in opened.tensors:
            value = flight.values.get(header.name)
            if value is not None and tensor_header(header.name, value) == header:
                kept[header.name] = Incoming.whole(header, np.frombuffer(tensor_bytes(value), np.uint8))
        return kept

    def have(self, flight: Flight, hop: int) -> Have:
        """How much of the tensors of a hop is here, for a sender that asked to resume."""
        offsets = flight.arrivals[hop][1].offsets()
        return Have(flight.sid, flight.rid, flight.attempt, hop, offsets)

    def depart(self, message: Have) -> Iterator[Instruction]:
        """The receiver said how much it has: send the rest. What nobody asked about is ignored."""
        flight = self.flights.get((message.sid, message.rid))
        if flight is None or flight.attempt != message.attempt or message.hop not in flight.departures:
            return
        opened, buffers = flight.departures.pop(message.hop)
        squeezer = self.squeezer(flight, message.hop)
        chunks = chunks_of(opened, buffers, offsets=message.offsets, squeezer=squeezer)
        yield from self.send_on(flight, message.hop, tuple(chunks))

    def accept_chunk(self, chunk: Chunk) -> Flight | None:
        """Put a chunk in its place.

        Returns:
            The flight, if its hop has all its tensors now; None if there is more to come or nobody waits for it.

        Raises:
            ProtocolError: the chunk contradicts its announcement or its checksum.
        """
        flight = self.flights.get((chunk.sid, chunk.rid))
        if flight is None or chunk.attempt != flight.attempt or chunk.hop not in flight.arrivals:
            return None
        return flight if flight.arrivals[chunk.hop][1].accept(chunk) else None

    def arrive(self, flight: Flight, hop: int) -> Iterator[Instruction]:
        """All tensors of a hop are here: run its segment, or pass on what it carries."""
        opened, assembly = flight.arrivals.pop(hop)
        for header, buffer in zip(opened.tensors, assembly.buffers(), strict=True):
            flight.values[header.name] = _array(header, buffer)
        flight.trace = opened.trace
        flight.bytes_in = sum(header.size_bytes for header in opened.tensors)
        yield from self.take_up(flight, hop)

    def take_up(self, flight: Flight, hop: int) -> Iterator[Instruction]:
        """Run the segment of a hop, unless its results are here from an earlier attempt."""
        flight.reached.add(hop)
        segment = flight.route[hop].segment
        step = self.segments[flight.bundle][segment] if segment else None
        if step is None or all(name in flight.values for name in step.outputs):
            yield from self.pass_on(flight, hop, HopTiming(self.tier, "", 0, 0, flight.bytes_in, 0))
            return
        missing = [name for name in step.inputs if name not in flight.values]
        if missing:
            raise ProtocolError(f"segment {segment} of tier {self.tier} needs {missing[0]!r}, which did not come")
        run = Outstanding(flight.key, flight.bundle, segment, flight.attempt, hop)
        for token, other in self._runs.items():
            if other.key != run.key or other.skipped:
                continue
            if (other.bundle, other.segment) == (run.bundle, segment):
                self._runs[token] = run  # an earlier attempt asked already, and the result will be the same
                return
        self._next_token += 1
        self._runs[self._next_token] = run
        inputs = {name: flight.values[name] for name in step.inputs}
        yield Run(self._next_token, segment, inputs, flight.bundle, flight.client, flight.deadline)

    def finish_run(self, event: Ran) -> tuple[Flight, int] | None:
        """Keep a run's results.

        Returns:
            The flight and the hop that waited for them, or None if nobody does any more.
        """
        run = self._runs.pop(event.token, None)
        if run is None:
            raise InternalError(f"a run with token {event.token} came back that nobody asked for")
        flight = self.flights.get(run.key)
        if flight is None or flight.bundle != run.bundle:
            return None
        flight.values.update(event.outputs or {})
        wanted = flight.attempt == run.attempt and run.hop in flight.reached and not run.skipped
        return (flight, run.hop) if wanted else None

    def skip_runs(self, flight: Flight) -> Iterator[Instruction]:
        """A request is forgotten: what it still waits for need not run."""
        for token, run in self._runs.items():
            if run.key == flight.key and not run.skipped:
                self._runs[token] = replace(run, skipped=True)
                yield Skip(token)

    def pass_on(self, flight: Flight, hop: int, timing: HopTiming) -> Iterator[Instruction]:
        """Send what a hop carries to the next; the last hop ends in `landed`."""
        carry = flight.route[hop].carry
        absent = [name for name in carry if name not in flight.values]
        if absent:
            raise ProtocolError(f"hop {hop} of tier {self.tier} carries {absent[0]!r}, which is not here")
        headers = tuple(tensor_header(name, flight.values[name]) for name in carry)
        sent = sum(header.size_bytes for header in headers)
        flight.trace = (*flight.trace, replace(timing, bytes_out=sent))
        if hop == len(flight.route) - 1:
            yield from self.landed(flight)
            return
        buffers = [tensor_bytes(flight.values[name]) for name in carry]
        resume = sent >= RESUME_FROM_BYTES and flight.attempt > 1 and self.understands(flight, hop + 1, RESUME)
        is_small = 0 < sent <= MAX_INLINE_BYTES and not resume
        payload = inline_payload(buffers) if is_small and self.understands(flight, hop + 1, INLINE) else b""
        opened = Open(
            sid=flight.sid,
            rid=flight.rid,
            attempt=flight.attempt,
            epoch=flight.epoch,
            plan=flight.plan,
            hop=hop + 1,
            route=flight.route,
            tensors=headers,
            deadline_ms=int(min(max(0.0, flight.deadline - self.now), _MAX_DEADLINE_S) * 1000),
            trace=flight.trace,
            bundle=flight.bundle,
            resume=resume,
            traceparent=flight.traceparent,
            inline_crc32=crc32(payload) if payload else None,
            payload=payload,
        )
        self._check_header(opened)
        if opened.resume:
            flight.departures[hop + 1] = (opened, buffers)
            yield from self.send_on(flight, hop + 1, (opened,))
        else:
            chunks = chunks_of(opened, buffers, squeezer=self.squeezer(flight, hop + 1))
            yield from self.send_on(flight, hop + 1, (opened, *chunks))

    def _check_header(self, opened: Open) -> None:
        """A route that others made may fit on its way in and not on its way out, which has one more timing.

        One that differs from the last in nothing but numbers need not be encoded to know.

        Raises:
            ProtocolError: it does not.
        """
        ran = tuple([(timing.tier, timing.segment) for timing in opened.trace])
        words = (opened.sid, opened.plan, opened.bundle, opened.traceparent[:2], opened.hop, opened.resume, ran)
        like = (opened.route, opened.tensors, *words)
        if like == self._fits:
            return
        try:
            header = encode(opened)[0]
        except InternalError as error:
            raise ProtocolError(f"hop {opened.hop} cannot be announced: {error}") from error
        self._fits = like if len(header) <= MAX_HEADER_BYTES - _NUMBERS_BYTES else None

    def understands(self, flight: Flight, hop: int, feature: str) -> bool:  # noqa: ARG002
        """Whether the peer of a hop named a feature."""
        return False

    def squeezer(self, flight: Flight, hop: int) -> LinkSqueezer | None:  # noqa: ARG002
        """What squeezes tensors on the way to a hop, if anything does."""
        return None

    def landed(self, flight: Flight) -> Iterator[Instruction]:
        """The route ends here. Only a session is at the end of a route."""
        raise ProtocolError(f"the route of request {flight.rid} ends at tier {self.tier}, not at its session")

    def send_on(self, flight: Flight, hop: int, messages: Sequence[Open | Chunk]) -> Iterator[Instruction]:
        """Send to the peer of a hop."""
        raise NotImplementedError


def tensor_header(name: str, value: Array) -> TensorHeader:
    """How a tensor is announced.

    Raises:
        ProtocolError: its element type or rank cannot travel.
    """
    dtype = value.dtype.name
    if dtype not in ITEM_SIZE_BYTES or value.ndim > MAX_DIMS:
        raise ProtocolError(
            f"{name!r} cannot be sent: it is {dtype} with {value.ndim} dimensions, "
            f"expected a number or a boolean with at most {MAX_DIMS}"
        )
    return TensorHeader(name, dtype, tuple(value.shape), value.nbytes)


def tensor_bytes(value: Array) -> memoryview:
    """The bytes of a tensor, row-major; a copy only where they are not that already."""
    flat = np.ascontiguousarray(value).reshape(-1)
    return flat.view(np.uint8).data if flat.size else memoryview(b"")


def _array(header: TensorHeader, buffer: memoryview) -> Array:
    return np.frombuffer(buffer, dtype=np.dtype(header.dtype)).reshape(header.shape)
