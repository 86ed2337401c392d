"""A worker: one tier of a bundle behind a listening channel, for as long as it is wanted."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from flagsplit.runtime.bundle import Bundle
from flagsplit.runtime.engine import Engine, check_slowdown
from flagsplit.runtime.events import Instruction, Note
from flagsplit.runtime.residency import order_of, sizes_of
from flagsplit.runtime.shell import Shell
from flagsplit.runtime.telemetry.settings import TelemetrySettings
from flagsplit.runtime.telemetry.wanted import telemetry_of
from flagsplit.runtime.worker_machine import WorkerMachine, WorkerOptions
from flagsplit.targets.interface import LoadOptions
from flagsplit.transport.channel import Channel
from flagsplit.transport.messages import PeerAddress

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WorkerSettings:
    """Choices of the operator.

    Attributes:
        memory_budget_bytes: how much the loaded segments may hold.
        host: threads and such of the engine.
        machine: limits and heartbeats.
        beyond: addresses of tiers beyond this one; they win over what sessions say.
        slowdown: makes this tier so many times as slow, to emulate another device.
        telemetry: how it can be watched.

    Raises:
        ConfigError: the slow-down is below 1 or no number.
    """

    memory_budget_bytes: float = 8e9
    host: LoadOptions = field(default_factory=LoadOptions)
    machine: WorkerOptions = field(default_factory=WorkerOptions)
    beyond: Mapping[str, PeerAddress] = field(default_factory=dict)
    slowdown: float = 1.0
    telemetry: TelemetrySettings = field(default_factory=TelemetrySettings)

    def __post_init__(self) -> None:
        check_slowdown(self.slowdown)


class Worker:
    """Serves one tier of a bundle. It listens when the constructor returns; `stop` ends it.

    Args:
        bundle: what to serve.
        tier: position of the tier.
        channel: how to listen; the worker closes it.
        address: where to listen.
        settings: choices of the operator.
        failed: called if the worker breaks.

    Attributes:
        address: where it really listens.
        http: URL of its metrics, health and stats, "" if they are not served.

    Raises:
        ConfigError: the address is taken or malformed.
        BundleError: a segment cannot be loaded.
    """

    def __init__(
        self,
        bundle: Bundle,
        tier: int,
        channel: Channel,
        address: str,
        settings: WorkerSettings | None = None,
        failed: Callable[[Exception], None] = lambda _: None,
    ) -> None:
        settings = settings or WorkerSettings()
        self._failed = failed
        machine = WorkerMachine(
            bundle.tiers[tier],
            bundle.tiers,
            bundle.segments_of(tier),
            bundle.digest,
            channel.instance,
            settings.beyond,
            settings.machine,
        )
        engine = Engine(
            lambda segment: bundle.load(tier, segment, settings.host),
            order_of(bundle, tier),
            sizes_of(bundle, tier),
            settings.memory_budget_bytes,
            lambda ran: self._shell.post(ran),
            settings.slowdown,
        )
        try:
            self._telemetry = telemetry_of(bundle, tier, channel.instance, settings.telemetry)
        except BaseException:
            channel.close()
            raise
        observer = None if self._telemetry is None else self._telemetry.observer
        name = f"flagsplit-{bundle.tiers[tier]}"
        self._shell = Shell(machine, channel, engine, self._tell, self._broke, name, observer)
        self.http = "" if self._telemetry is None else self._telemetry.http
        try:
            self.address = channel.listen(address)
            best = bundle.plans.pool.plans[0].name
            engine.start([step.segment for step in bundle.plans.steps[best] if step.tier == tier])
        except BaseException:
            channel.close()
            self._unwatch()
            raise
        if self._telemetry is not None:
            self._telemetry.watch(machine, engine, settings.memory_budget_bytes)
        self._shell.start([])

    def stop(self) -> None:
        """Say goodbye to all peers and free everything. A second call does nothing."""
        self._shell.stop()
        self._unwatch()

    def _unwatch(self) -> None:
        if self._telemetry is not None:
            self._telemetry.close()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until the worker ended; whether it has."""
        return self._shell.join(timeout_s)

    @staticmethod
    def _tell(instruction: Instruction) -> None:
        if isinstance(instruction, Note):
            _log.info("%s", instruction.text)

    def _broke(self, error: Exception) -> None:
        _log.error("the worker broke: %s: %s", type(error).__name__, error)
        if self._telemetry is not None:
            self._telemetry.state = "the worker broke"
        self._failed(error)
