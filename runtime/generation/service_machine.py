"""A worker that also makes tokens: what it takes for a stream, what its engine is told, what the client gets.

To everybody else a stream is a request like any other: its tensors are assembled within the same limits and credit, it
counts towards its client's share, lingers when the connection breaks, and is waited for when the worker drains
(`flagsplit.runtime.worker_machine`). Instead of a segment, the remainder of the encoder runs for its cut, and what that
gives goes to the generation engine. Who steps when is the engine's business (`engine.py`); threads are `service.py`'s.
"""

from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from flagsplit.errors import ConfigError, ProtocolError
from flagsplit.runtime.bundle_events import Served
from flagsplit.runtime.events import Event, Instruction, Ran, Run, Send
from flagsplit.runtime.generation.events import RETRYABLE, Code, Generate, Refused, Tokens
from flagsplit.runtime.generation.stream_events import Begin, Generated, Quit
from flagsplit.runtime.generation.stream_spec import StreamSpec, parse_spec
from flagsplit.runtime.relay import Flight, FlightKey, Outstanding
from flagsplit.runtime.worker_machine import WorkerHooks, WorkerMachine, WorkerOptions
from flagsplit.targets.interface import Array
from flagsplit.transport import messages
from flagsplit.transport.channel import inbound_name
from flagsplit.transport.messages import GENERATE, MAX_TOKENS, Failed, Open
from flagsplit.transport.tensors import TransferLimits

TOKENS: Final = "tokens"
ROWS: Final = "rows"
_CONTEXT: Final = "context/"
_REASON_CHARS: Final = 900
_MILLION: Final = 1_000_000
_MOST_COST: Final = (1 << 32) - 1
_CODES: Final[Mapping[Code, str]] = {
    "busy": "busy",
    "drain": "draining",
    "no-state": "no-state",
    "deadline": "deadline",
    "bad-input": "input",
    "too-large": "too-large",
    "broken": "compute",
}
"""What the engine calls a trouble, and what the protocol calls it."""


@dataclass(frozen=True)
class StreamFacts:
    """What a service can be asked to generate from.

    Attributes:
        cuts: by plan, the names of the tensors that cross its cut.
        vocabulary: how many tokens there are.
        width: of the rows of a model whose first layers run elsewhere; 0 takes none.
        loop: name of the loop in the bundle.
        prompt: the model's own, for streams that come without one.
        max_positions: tokens that a stream may have: more are refused before any is looked at.
    """

    cuts: Mapping[str, tuple[str, ...]]
    vocabulary: int
    prompt: tuple[int, ...] = ()
    width: int = 0
    loop: str = ""
    max_positions: int = 1 << 17


@dataclass
class StreamCounts:
    """What became of streams since the start."""

    begun: int = 0
    resumed: int = 0
    tokens: int = 0
    ended: dict[str, int] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)


@dataclass
class _Stream:
    """What a flight has that is a stream.

    Attributes:
        spec: what its newest attempt asks for.
        cut: the plan whose cut its context was made from.
        has_context: whether the values of its flight are what the engine needs, and no longer tensors of a cut.
        engine_id: its id at the engine, "" while that has nothing of it.
        attempt: for which the engine works.
    """

    spec: StreamSpec
    cut: str
    has_context: bool = False
    engine_id: str = ""
    attempt: int = 0


class StreamMachine(WorkerMachine):
    """One tier that runs the loop of a generative model.

    Args:
        tier, served, instance, options, limits, hooks: see `WorkerMachine`.
        facts: by digest of a bundle, what streams of it are made from; a bundle without has none.
    """

    def __init__(
        self,
        tier: str,
        served: Mapping[str, Served],
        instance: str,
        facts: Mapping[str, StreamFacts],
        options: WorkerOptions | None = None,
        limits: TransferLimits | None = None,
        hooks: WorkerHooks | None = None,
    ) -> None:
        options = options or WorkerOptions()
        options = replace(options, features=tuple(dict.fromkeys((*options.features, GENERATE))))
        super().__init__(tier, served, instance, None, options, limits, hooks=hooks)
        self.facts = dict(facts)
        self.streams: dict[FlightKey, _Stream] = {}
        self.stream_counts = StreamCounts()
        self._at_engine: dict[str, FlightKey] = {}
        self._begun = 0

    @property
    def waiting_runs(self) -> int:
        """What is under way: encoders, and streams at the engine."""
        return len(self._runs) + len(self._at_engine)

    def _handle(self, event: Event) -> Iterator[Instruction]:
        if isinstance(event, Generated):
            yield from self._on_generated(event.event)
        else:
            yield from super()._handle(event)

    def check_open(self, opened: Open, bundle: str) -> None:
        """As for any tier; a stream moreover asks for what this one has."""
        super().check_open(opened, bundle)
        flight = self.flights.get((opened.sid, opened.rid))
        if flight is not None and bool(opened.generation) != (flight.key in self.streams):
            raise ProtocolError(f"request {opened.rid} is a stream in some of its attempts and not in others")
        if opened.generation:
            _check_stream(opened, _spec_of(opened), self.facts.get(bundle))

    def account_of(self, opened: Open) -> str:
        """As for any request; who may pass on others' requests, as a gateway does, names them by their streams."""
        client, key = super().account_of(opened), self.peers.key_of(inbound_name(opened.sid))
        name = _spec_of(opened).stream if opened.generation and self._is_worker(key) else ""
        return f"{client}/{name}" if name else client

    def accept_open(self, flight: Flight, opened: Open, peer: str) -> bool:
        """Take up an announcement; of a stream, what it asks for too."""
        complete = super().accept_open(flight, opened, peer)
        if opened.generation and flight.attempt == opened.attempt:
            spec = _spec_of(opened)
            stream = self.streams.get(flight.key)
            if stream is None:
                self.streams[flight.key] = _Stream(spec, opened.plan)
                self.stream_counts.begun += 1
            else:
                self.stream_counts.resumed += stream.spec.position is None
                stream.spec = spec
        return complete

    def take_up(self, flight: Flight, hop: int) -> Iterator[Instruction]:
        """All tensors of a stream are here: make its context if that is not there yet, then let the engine begin."""
        stream = self.streams.get(flight.key)
        if stream is None:
            yield from super().take_up(flight, hop)
            return
        if self.now >= flight.deadline:
            yield from self.give_up_late(flight)
            return
        flight.reached.add(hop)
        if stream.spec.position is not None or stream.has_context:
            yield from self._begin(flight, stream)
        elif stream.spec.kept:
            text = f"tier {self.tier} kept nothing of this stream; send its tensors again"
            yield from self.fail(flight, self.tier, "no-state", text, retryable=True)
        else:
            yield from self._encode(flight, stream, hop)

    def _encode(self, flight: Flight, stream: _Stream, hop: int) -> Iterator[Instruction]:
        """Run what is left of the encoder behind a cut, unless an earlier attempt of the stream has it under way."""
        wanted = Outstanding(flight.key, flight.bundle, flight.plan, flight.attempt, hop)
        for token, other in self._runs.items():
            if (other.key, other.segment, other.skipped) == (flight.key, flight.plan, False):
                self._runs[token] = wanted
                return
        self._next_token += 1
        self._runs[self._next_token] = wanted
        stream.cut = flight.plan
        inputs = {name: flight.values[name] for name in self.facts[flight.bundle].cuts[flight.plan]}
        yield Run(self._next_token, flight.plan, inputs, flight.bundle, flight.client, flight.deadline)

    def finish_run(self, event: Ran) -> tuple[Flight, int] | None:
        """As for any run; what a stream's encoder gives takes the place of its tensors."""
        run = self._runs.get(event.token)
        stream = self.streams.get(run.key) if run is not None else None
        if run is None or stream is None or event.outputs is None:
            return super().finish_run(event)
        tokens = self.flights[run.key].values.get(TOKENS)
        found = super().finish_run(event)
        kept = {} if tokens is None else {TOKENS: tokens}
        kept.update((_CONTEXT + name, array) for name, array in event.outputs.items())
        self.flights[run.key].values = kept
        stream.has_context = True
        return found

    def _go_on(self, flight: Flight, hop: int, event: Ran) -> Iterator[Instruction]:
        stream = self.streams.get(flight.key)
        if stream is not None and event.is_input and self.now < flight.deadline:
            yield from self.fail(flight, self.tier, "input", event.error, retryable=False)
        elif stream is None or event.error or self.now >= flight.deadline:
            yield from super()._go_on(flight, hop, event)
        else:
            yield from self._begin(flight, stream)

    def _begin(self, flight: Flight, stream: _Stream) -> Iterator[Instruction]:
        """Hand a stream to the engine. What it needs no more of the tensors is freed."""
        facts, spec = self.facts[flight.bundle], stream.spec
        tokens, rows = flight.values.pop(TOKENS, None), flight.values.pop(ROWS, None)
        context = {
            name.removeprefix(_CONTEXT): array for name, array in flight.values.items() if name.startswith(_CONTEXT)
        }
        flight.values = {_CONTEXT + name: array for name, array in context.items()}
        said = () if tokens is None else tuple(int(token) for token in tokens)
        if len(said) == spec.delivered:
            said = (*facts.prompt, *said)
        beyond = next((token for token in said if not 0 <= token < facts.vocabulary), None)
        if beyond is not None:
            text = f"expected tokens of 0..{facts.vocabulary - 1}, came {beyond}"
            yield from self.fail(flight, self.tier, "input", text, retryable=False)
            return
        if stream.engine_id and not spec.position:
            yield from self._quit(stream)
        if not stream.engine_id:
            self._begun += 1
            stream.engine_id = f"{flight.sid}.{flight.rid}.{self._begun}"
            self._at_engine[stream.engine_id] = flight.key
        stream.attempt = flight.attempt
        yield Begin(
            Generate(
                stream.engine_id,
                flight.client,
                context or None,
                said,
                spec.delivered,
                spec.options,
                flight.deadline,
                spec.input_s,
                rows,
                spec.position or 0,
            )
        )

    def _on_generated(self, event: Tokens | Refused) -> Iterator[Instruction]:
        """The engine says something of a stream; of one that nobody wants any more it may be late."""
        key = self._at_engine.get(event.stream_id)
        if key is None:
            return
        flight, stream = self.flights[key], self.streams[key]
        is_wanted = stream.attempt == flight.attempt
        if isinstance(event, Refused):
            self._forget_engine(stream)
            if is_wanted:
                yield from self._refuse(flight, event)
            return
        if event.done and event.reason:  # without a reason it waits for its next rows
            self._forget_engine(stream)
            ended = self.stream_counts.ended
            ended[event.reason] = ended.get(event.reason, 0) + 1
        self.stream_counts.tokens += len(event.tokens)
        if is_wanted:
            yield from self._say(flight, event)

    def _say(self, flight: Flight, event: Tokens) -> Iterator[Instruction]:
        peer = inbound_name(flight.sid)
        if peer not in self.peers.inbound:
            return
        timings = event.timings
        for start in range(0, max(1, len(event.tokens)), MAX_TOKENS):
            part = event.tokens[start : start + MAX_TOKENS]
            last = bool(event.done and event.reason) and start + len(part) == len(event.tokens)
            logprobs = event.logprobs[start : start + len(part) + last]
            said = messages.Tokens(
                flight.sid,
                flight.rid,
                flight.attempt,
                event.offset + start,
                part,
                last,
                event.reason if last else "",
                max(0, timings.wait_us),
                max(0, timings.step_us),
                min(max(1, timings.batch), 65535),
                tuple(min(_MOST_COST, max(0, round(-each * _MILLION))) for each in logprobs),
                0 if start else round(event.no_speech * _MILLION),
            )
            yield Send(peer, said)

    def _refuse(self, flight: Flight, event: Refused) -> Iterator[Instruction]:
        code = _CODES[event.code]
        counts = self.stream_counts.refused
        counts[code] = counts.get(code, 0) + 1
        self.failures[code] += 1
        peer = inbound_name(flight.sid)
        if peer in self.peers.inbound:
            text, again_ms = event.reason[:_REASON_CHARS], int(max(0.0, event.retry_after_s) * 1000)
            is_retryable = event.code in RETRYABLE
            yield Send(
                peer, Failed(flight.sid, flight.rid, flight.attempt, self.tier, code, text, is_retryable, again_ms)
            )

    def _is_wanted(self, flight: Flight, opened: Open) -> Generator[Instruction, None, bool]:
        """As for any request; a later attempt of a stream that does not carry on where it waits begins it anew."""
        stream, before = self.streams.get(flight.key), flight.attempt
        wanted = yield from super()._is_wanted(flight, opened)
        if stream is not None and flight.attempt != before and not _spec_of(opened).position:
            yield from self._quit(stream)
        return wanted

    def _send_away(self, flight: Flight, *, parked: bool) -> Iterator[Instruction]:
        """The client is away: no more tokens are made, what they are made from stays."""
        yield from super()._send_away(flight, parked=parked)
        if parked and flight.key in self.streams:
            yield from self._quit(self.streams[flight.key])

    def drop(self, flight: Flight) -> Iterator[Instruction]:
        """Forget a request; the engine too, if it is a stream."""
        stream = self.streams.pop(flight.key, None)
        yield from super().drop(flight)
        if stream is not None:
            yield from self._quit(stream)

    def _quit(self, stream: _Stream) -> Iterator[Instruction]:
        if stream.engine_id:
            yield Quit(stream.engine_id)
            self._forget_engine(stream)

    def _forget_engine(self, stream: _Stream) -> None:
        self._at_engine.pop(stream.engine_id, None)
        stream.engine_id = ""

    def _finish(self) -> Iterator[Instruction]:
        """As for any worker; who waits for a stream that is not over in time is told to go on elsewhere."""
        if self.bundles.draining and not self._ended and self.now >= self._drain_until:
            for key in list(self.streams):
                flight = self.flights[key]
                text = f"{self.bundles.draining}; go on elsewhere"
                yield from self.fail(flight, self.tier, "draining", text, retryable=True)
                yield from self.drop(flight)
        yield from super()._finish()


def _spec_of(opened: Open) -> StreamSpec:
    """Raises ProtocolError when the text is none that a stream may have."""
    try:
        return parse_spec(opened.generation) if opened.generation else StreamSpec()
    except ConfigError as error:
        raise ProtocolError(str(error)) from None


def _check_stream(opened: Open, spec: StreamSpec, facts: StreamFacts | None) -> None:
    """Whether the tensors of a stream are those that it needs, whatever is in them.

    Raises:
        ProtocolError: they are not.
    """
    if facts is None or spec.loop not in ("", facts.loop):
        raise ProtocolError(f"no loop {spec.loop!r} of this bundle runs here")
    if len(opened.route) != 2 or opened.hop != 1:
        raise ProtocolError(f"a stream has a route of 2 hops, came {len(opened.route)}")
    tensors = {header.name: header for header in opened.tensors}
    tokens, rows = tensors.pop(TOKENS, None), tensors.pop(ROWS, None)
    if tokens is not None and (tokens.dtype != "int64" or len(tokens.shape) != 1):
        raise ProtocolError(f"tokens: expected int64 of one dimension, came {tokens.dtype} {list(tokens.shape)}")
    if tokens is not None and tokens.shape[0] > facts.max_positions:
        raise ProtocolError(f"tokens: expected at most {facts.max_positions}, came {tokens.shape[0]}")
    if spec.delivered > (tokens.shape[0] if tokens is not None else 0):
        raise ProtocolError(f"{spec.delivered} tokens were delivered, but not so many came with the stream")
    if spec.position is not None:
        if tensors or rows is None or not facts.width:
            raise ProtocolError(f"rows from position {spec.position} are announced; expected them alone, and asked for")
        if rows.dtype != "float32" or len(rows.shape) != 2 or rows.shape[1] != facts.width or not rows.shape[0]:
            raise ProtocolError(f"rows: expected float32 [n, {facts.width}], came {rows.dtype} {list(rows.shape)}")
        return
    cut = facts.cuts.get(opened.plan)
    if cut is None:
        raise ProtocolError(f"no stream begins from plan {opened.plan!r} here, only from {', '.join(facts.cuts)}")
    expected = set() if spec.kept else set(cut)
    if rows is not None or tensors.keys() != expected:
        raise ProtocolError(f"expected the tensors {sorted(expected)} of plan {opened.plan}, came {sorted(tensors)}")


def tokens_array(tokens: tuple[int, ...]) -> Array:
    """Tokens as the tensor that travels."""
    return np.array(tokens, np.int64)
