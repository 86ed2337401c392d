"""A worker: one tier of some bundles behind a listening channel, for as long as it is wanted."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from flagsplit.errors import BundleError, ConfigError
from flagsplit.runtime.batching import BatchOptions
from flagsplit.runtime.bundle import Bundle, default_cache, open_bundle
from flagsplit.runtime.bundle_events import (
    CloseUpload,
    LoadBundle,
    OpenUpload,
    Served,
    StorePart,
    UnloadBundle,
)
from flagsplit.runtime.bundle_intake import BundleIntake
from flagsplit.runtime.engine import Engine, check_slowdown
from flagsplit.runtime.events import Instruction
from flagsplit.runtime.residency import Loadout, ModeChoice, loadout
from flagsplit.runtime.serving import Serving
from flagsplit.runtime.shell import Shell
from flagsplit.runtime.telemetry.settings import TelemetrySettings
from flagsplit.runtime.telemetry.wanted import telemetry_of
from flagsplit.runtime.worker_machine import WorkerHooks, WorkerMachine, WorkerOptions
from flagsplit.targets.interface import LoadOptions
from flagsplit.transport.channel import Channel
from flagsplit.transport.messages import PeerAddress
from flagsplit.transport.squeeze import host_speeds
from flagsplit.transport.squeeze_policy import SqueezePolicy


def _any(_bundle: Bundle) -> None:
    """Every bundle will do."""


@dataclass(frozen=True)
class WorkerSettings:
    """Choices of the operator.

    Attributes:
        memory_budget_bytes: how much the loaded segments of all bundles may hold.
        host: threads and such of the engine.
        machine: limits and heartbeats.
        beyond: addresses of tiers beyond this one; they win over what sessions say.
        slowdown: makes this tier so many times as slow, to emulate another device.
        residency: how pooled plans are held; "auto" takes whole segments if they fit the budget, else atoms.
        batching: whether small requests run together; off by default.
        telemetry: whether and where it can be watched.
        hooks: whom to ask for rights.
        cache: where bundles that are sent here are kept.
        check: raises a FlagsplitError for a bundle that is sent here and must not be served, such as an unsigned one.

    Raises:
        ConfigError: the slow-down is below 1 or no number.
    """

    memory_budget_bytes: float = 8e9
    host: LoadOptions = field(default_factory=LoadOptions)
    machine: WorkerOptions = field(default_factory=WorkerOptions)
    beyond: Mapping[str, PeerAddress] = field(default_factory=dict)
    slowdown: float = 1.0
    residency: ModeChoice = "auto"
    batching: BatchOptions = field(default_factory=BatchOptions)
    telemetry: TelemetrySettings = field(default_factory=TelemetrySettings)
    hooks: WorkerHooks = field(default_factory=WorkerHooks)
    cache: Path | None = None
    check: Callable[[Bundle], None] = _any

    def __post_init__(self) -> None:
        check_slowdown(self.slowdown)


class Worker(Serving):
    """Serves one tier of some bundles. It listens when the constructor returns; `stop` ends it, `drain` lets it end.

    Args:
        bundles: what to serve from the start; one, several, or none.
        tier: the tier, by name or by its position in all the bundles.
        channel: how to listen; the worker closes it.
        address: where to listen.
        settings: choices of the operator.
        failed: called if the worker breaks.
        ended: called when it ended by itself, because it was drained.

    Attributes:
        address: where it really listens.
        tier: name of the tier.

    Raises:
        ConfigError: the address is taken or malformed.
        BundleError: a segment cannot be loaded.
        PolicyError: a bundle has no such tier.
    """

    def __init__(
        self,
        bundles: Bundle | Sequence[Bundle],
        tier: int | str,
        channel: Channel,
        address: str,
        settings: WorkerSettings | None = None,
        failed: Callable[[Exception], None] = lambda _: None,
        ended: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings = settings or WorkerSettings()
        super().__init__("worker", channel, failed, ended)
        bundles = (bundles,) if isinstance(bundles, Bundle) else tuple(bundles)
        self._held: dict[str, Loadout] = {}
        self._engine = self._make_engine()
        try:
            self.tier = bundles[0].tiers[tier] if isinstance(tier, int) else tier
            self._machine = WorkerMachine(
                self.tier,
                {bundle.digest: self._served(bundle) for bundle in bundles},
                channel.instance,
                self._settings.beyond,
                self._settings.machine,
                slowdown=self._settings.slowdown,
                hooks=replace(
                    self._settings.hooks,
                    wait_us=lambda: int(self._engine.expected_wait_s() * 1e6),
                    squeezing=SqueezePolicy(host_speeds),
                ),
            )
            first = bundles[0] if bundles else None
            self._telemetry = telemetry_of(first, self.tier, channel.instance, self._settings.telemetry)
            observer = None if self._telemetry is None else self._telemetry.observer
            name = f"flagsplit-{self.tier}"
            self._shell = Shell(self._machine, channel, self._engine, self._tell, self._broke, name, observer)
            self._intake = BundleIntake(
                self._settings.cache or default_cache(), self._take_in, self._let_go, self._shell.post
            )
            self.address = channel.listen(address)
            self._engine.start([])
            for bundle in bundles:
                self._load(bundle)
        except BaseException:
            channel.close()
            self._engine.stop()
            self._unwatch()
            raise
        if self._telemetry is not None:
            self._telemetry.watch(self._machine, self._engine, self._settings.memory_budget_bytes)
        self._shell.start([])

    def stop(self) -> None:
        """Say goodbye to all peers and free everything. A second call does nothing."""
        super().stop()
        self._intake.close()

    def _served(self, bundle: Bundle) -> Served:
        index = bundle.tier_index(self.tier)
        if index == 0:
            raise ConfigError(
                f"tier {self.tier} is the one that asks and runs inside the session; serve one of the others"
            )
        return Served(bundle.tiers, bundle.segments_of(index))

    def _make_engine(self) -> Engine:
        settings = self._settings
        return Engine(
            lambda digest, segment: self._held[digest].load(segment),
            (),
            {},
            settings.memory_budget_bytes,
            lambda ran: self._shell.post(ran),
            settings.slowdown,
            batching=settings.batching,
        )

    def _load(self, bundle: Bundle) -> None:
        """Load what the first requests of a bundle will need, beside what is there, and let them come."""
        tier, settings = bundle.tier_index(self.tier), self._settings
        held = loadout(bundle, tier, settings.memory_budget_bytes, settings.host, settings.residency)
        best = bundle.plans.pool.plans[0].name
        first = [step.segment for step in bundle.plans.steps[best] if step.tier == tier]
        self._held[bundle.digest] = held
        try:
            self._engine.add(bundle.digest, held.order, held.size_bytes, first, held.parts).result()
        except BaseException:
            self._let_go(bundle.digest)
            raise

    def _let_go(self, digest: str) -> None:
        self._engine.remove(digest)
        self._held.pop(digest, None)

    def _take_in(self, path: Path, digest: str) -> Served:
        """A bundle was sent here: check it like any other, and load it. On the intake's thread."""
        bundle = open_bundle(path, self._settings.cache)
        if bundle.digest != digest:
            raise BundleError(f"expected bundle {digest[:12]}, the file holds {bundle.digest[:12]}; send it again")
        self._settings.check(bundle)
        served = self._served(bundle)
        self._load(bundle)
        return served

    def _tell(self, instruction: Instruction) -> None:
        match instruction:
            case OpenUpload() | StorePart() | CloseUpload() | LoadBundle() | UnloadBundle():
                self._intake.do(instruction)
            case _:
                super()._tell(instruction)
