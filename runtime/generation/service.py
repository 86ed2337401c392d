"""A service of token streams: one tier of a generative model behind a channel, for as long as it is wanted."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

from flagsplit.runtime.bundle_events import Served
from flagsplit.runtime.engine import Engine
from flagsplit.runtime.events import Instruction, Run
from flagsplit.runtime.generation.events import Event as EngineEvent
from flagsplit.runtime.generation.events import Generate
from flagsplit.runtime.generation.service_machine import StreamFacts, StreamMachine
from flagsplit.runtime.generation.stats import EngineStats
from flagsplit.runtime.generation.stream_events import Begin, Generated, Quit
from flagsplit.runtime.serving import Serving
from flagsplit.runtime.shell import Shell
from flagsplit.runtime.telemetry.observer import Observer, Observers
from flagsplit.runtime.telemetry.settings import About, TelemetrySettings
from flagsplit.runtime.worker_machine import WorkerHooks, WorkerOptions
from flagsplit.targets.interface import Array, TensorSpec
from flagsplit.transport.channel import Channel

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from flagsplit.runtime.telemetry.telemetry import Telemetry

_BROKEN = "the engine fails at every step; see the log, and start the service again"

Encode = Callable[[str, Mapping[str, Array]], Mapping[str, Array]]
"""What is left of the encoder behind the cut of a plan: its name and the tensors that crossed, to the context."""


class TokenEngine(Protocol):
    """What makes the tokens: `flagsplit.runtime.generation.engine.GenerationEngine`, or another of its kind."""

    def start(self) -> None:
        """Begin to take streams."""

    def submit(self, request: Generate) -> None:
        """A stream is wanted; events tell what becomes of it."""

    def cancel(self, stream_id: str) -> None:
        """A stream is not wanted any more."""

    def expected_wait_s(self, client: str = "") -> float:
        """How long a new stream would wait."""

    def stats(self) -> EngineStats:
        """How it goes."""

    def stop(self) -> None:
        """Free everything."""


@dataclass(frozen=True)
class ServiceProgram:
    """What a service serves.

    Attributes:
        digest: of the bundle or program; clients name it.
        tiers: names of all tiers, the clients' first.
        tier: which of them this is.
        facts: what streams begin from.
    """

    digest: str
    tiers: tuple[str, ...]
    tier: str
    facts: StreamFacts


@dataclass(frozen=True)
class ServiceSettings:
    """Choices of the operator.

    Attributes:
        machine: limits, heartbeats, how long streams outlive their connection, how long draining may take.
        telemetry: whether and where it can be watched.
        hooks: whom to ask for rights.
    """

    machine: WorkerOptions = field(default_factory=lambda: WorkerOptions(max_bundle_bytes=0))
    telemetry: TelemetrySettings = field(default_factory=TelemetrySettings)
    hooks: WorkerHooks = field(default_factory=WorkerHooks)


class StreamService(Serving):
    """Serves token streams. It listens when the constructor returns; `stop` ends it, `drain` lets it end.

    Args:
        program: what it serves.
        make_engine: makes what generates, given where its events go; the service starts and stops it.
        encode: runs on a thread of its own, one stream after another, clients in turn.
        channel: how to listen; the service closes it.
        address: where to listen.
        settings: choices of the operator.
        failed: called if the service breaks.
        ended: called when it ended by itself, because it was drained.

    Attributes:
        address: where it really listens.
        engine: what generates.

    Raises:
        ConfigError: the address is taken or malformed.
    """

    def __init__(
        self,
        program: ServiceProgram,
        make_engine: Callable[[Callable[[EngineEvent], None]], TokenEngine],
        encode: Encode,
        channel: Channel,
        address: str,
        settings: ServiceSettings | None = None,
        failed: Callable[[Exception], None] = lambda _: None,
        ended: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings = settings or ServiceSettings()
        super().__init__("service", channel, failed, ended)
        self.program = program
        self.engine = make_engine(lambda event: self._shell.post(Generated(event)))
        self._engines = _Engines(self.engine, _encoders(program, encode, lambda ran: self._shell.post(ran)))
        try:
            self._machine = StreamMachine(
                program.tier,
                {program.digest: Served(program.tiers, {})},
                channel.instance,
                {program.digest: program.facts},
                self._settings.machine,
                hooks=replace(self._settings.hooks, wait_us=lambda: int(min(self.engine.expected_wait_s(), 1e6) * 1e6)),
            )
            self._telemetry = self._watched(program, channel.instance)
            self._shell = Shell(
                self._machine, channel, self._engines, self._tell, self._broke, "flagsplit-service", self._observer()
            )
            self.address = channel.listen(address)
            self._engines.start(tuple(program.facts.cuts))
        except BaseException:
            channel.close()
            self._engines.stop()
            self._unwatch()
            raise
        if self._telemetry is not None:
            self._telemetry.watch(self._machine, self._engines.encoders, 0.0)
        self._shell.start([])

    @property
    def registry(self) -> "CollectorRegistry | None":
        """Its metrics, where others of this process can add theirs; None if it is not watched."""
        return None if self._telemetry is None else self._telemetry.metrics.registry

    def _watched(self, program: ServiceProgram, instance: str) -> "Telemetry | None":
        if not self._settings.telemetry.is_wanted:
            return None
        from flagsplit.runtime.telemetry.telemetry import Telemetry  # only here: it takes a tenth of a second

        about = About("worker", program.tier, program.tiers, tuple(program.facts.cuts), program.digest, instance)
        return Telemetry(about, self._settings.telemetry)

    def _observer(self) -> Observer | None:
        telemetry, engine = self._telemetry, self.engine
        if telemetry is None:
            return None
        from flagsplit.runtime.telemetry.stream_metrics import StreamMetrics, engine_snapshot

        telemetry.trouble = lambda: _BROKEN if engine.stats().is_broken else ""
        telemetry.extras["generation"] = lambda: engine_snapshot(engine.stats())
        return Observers([telemetry.observer, StreamMetrics(telemetry.metrics.registry, engine.stats)])

    def _tell(self, instruction: Instruction) -> None:
        match instruction:
            case Begin(generate):
                self.engine.submit(generate)
            case Quit(stream_id):
                self.engine.cancel(stream_id)
            case _:
                super()._tell(instruction)


class _Remainder:
    """What is left of the encoder behind one cut, as something that the runtime's engine runs."""

    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()

    def __init__(self, encode: Encode, cut: str) -> None:
        self._encode, self._cut = encode, cut

    def run(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """Run once."""
        return dict(self._encode(self._cut, tensors))

    def close(self) -> None:
        """Nothing to free: the encoder is its owner's."""


class _Engines:
    """Where encoders run and tokens are made, as one thing to the shell."""

    def __init__(self, tokens: TokenEngine, encoders: Engine) -> None:
        self._tokens, self.encoders = tokens, encoders

    def start(self, cuts: tuple[str, ...]) -> None:
        self.encoders.start(cuts)
        self._tokens.start()

    def submit(self, run: Run) -> None:
        """Run what is left of an encoder when its turn comes."""
        self.encoders.submit(run)

    def skip(self, token: int) -> None:
        """Do not run what did not begin yet."""
        self.encoders.skip(token)

    def stop(self) -> None:
        """Free everything."""
        self.encoders.stop()
        self._tokens.stop()


def _encoders(program: ServiceProgram, encode: Encode, done: Callable[..., None]) -> Engine:
    cuts = tuple(program.facts.cuts)
    return Engine(
        lambda _, cut: _Remainder(encode, cut), cuts, dict.fromkeys(cuts, 0.0), 1.0, done, bundle=program.digest
    )
