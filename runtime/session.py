"""The session as an application sees it: ask, and get the answer, whatever happens to the tiers meanwhile.

`Session` is thread-safe. Its first tier runs in this process; the machine, the channel and the engine run on threads of
their own (`flagsplit.runtime.shell`). `AsyncSession` is its asyncio twin.
"""

import asyncio
import itertools
import math
import threading
import time
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from flagsplit.errors import ConfigError, FlagsplitError, InputError, PeerError, RefusedError
from flagsplit.runtime.bundle import Bundle
from flagsplit.runtime.engine import Engine, check_slowdown
from flagsplit.runtime.events import Abandon, Deliver, Fail, Instruction, Note, Submit, TierChanged
from flagsplit.runtime.inputs import check_inputs
from flagsplit.runtime.report import Basis, Report
from flagsplit.runtime.residency import order_of, sizes_of
from flagsplit.runtime.session_machine import SessionFacts, SessionMachine, SessionOptions
from flagsplit.runtime.shell import Shell, describe
from flagsplit.runtime.telemetry.settings import TelemetrySettings
from flagsplit.runtime.telemetry.wanted import telemetry_of
from flagsplit.targets.interface import Array, LoadOptions
from flagsplit.transport.channel import Channel
from flagsplit.transport.messages import PeerAddress


class Answer(dict[str, Array]):
    """The graph outputs by name, and the report of how they came about.

    Attributes:
        report: where the request ran, what crossed the links, how long it took.
    """

    def __init__(self, outputs: Mapping[str, Array], report: Report) -> None:
        super().__init__(outputs)
        self.report = report


@dataclass(frozen=True)
class SessionSettings:
    """Choices of the application.

    Attributes:
        deadline_s: seconds that a request may take unless it says otherwise.
        connect_s: seconds to wait for the workers at the start.
        memory_budget_bytes: how much the segments loaded in this process may hold.
        host: threads and such of the engine.
        machine: window, attempts, heartbeats.
        slowdown: makes this tier so many times as slow, to emulate another device.
        emulated: whether another tier or a link is slowed on purpose; reports then say so, as they do for `slowdown`.
        http: HOST:PORT at which to serve metrics, health and stats; port 0 takes a free one, "" serves nothing.
        trace_file: where to append the spans of requests, OTLP in JSON lines; None records none.

    Raises:
        ConfigError: the slow-down is below 1 or no number.
    """

    deadline_s: float = 60.0
    connect_s: float = 10.0
    memory_budget_bytes: float = 2e9
    host: LoadOptions = field(default_factory=LoadOptions)
    machine: SessionOptions = field(default_factory=SessionOptions)
    slowdown: float = 1.0
    emulated: bool = False
    http: str = ""
    trace_file: Path | None = None

    def __post_init__(self) -> None:
        check_slowdown(self.slowdown)

    @property
    def basis(self) -> Basis:
        """What the figures of reports are."""
        return "emulated" if self.emulated or self.slowdown > 1 else "measured"


class Session:
    """A connection to the workers of a bundle. Use it in a `with` statement, or call `close`.

    Args:
        bundle: what to run.
        workers: address of each worker, by tier name; a tier without one is not used.
        channel: the way to them; the session closes it.
        settings: choices of the application.

    Raises:
        PolicyError: a tier is unknown, or is the session's own.
        BundleError: a segment of this tier cannot be loaded.
        RefusedError: a worker refused the session, for instance because it serves another bundle.
    """

    def __init__(
        self,
        bundle: Bundle,
        workers: Mapping[str, PeerAddress],
        channel: Channel,
        settings: SessionSettings | None = None,
    ) -> None:
        self.bundle = bundle
        self._settings = settings or SessionSettings()
        self._rids = itertools.count(1)
        self._futures: dict[int, Future[Answer]] = {}
        self._lock = threading.Lock()
        self._tiers: dict[str, TierChanged] = {}
        self._tier_changed = threading.Condition(self._lock)
        self._broken: FlagsplitError | None = None
        self._closed = False
        self.events: deque[str] = deque(maxlen=1000)
        self._telemetry = None
        try:
            self._workers = self._checked(workers)
            watching = TelemetrySettings(self._settings.http, self._settings.trace_file)
            self._telemetry = telemetry_of(bundle, 0, channel.instance, watching)
            observer = None if self._telemetry is None else self._telemetry.observer
            self._machine = SessionMachine(_facts(bundle), workers, channel.instance, self._settings.machine)
            engine = self._engine()
            name = "flagsplit-session"
            self._shell = Shell(self._machine, channel, engine, self._tell, self._fail_all, name, observer)
            best = bundle.plans.pool.plans[0].name
            engine.start([step.segment for step in bundle.plans.steps[best] if step.tier == 0])
        except FlagsplitError:
            channel.close()
            self._unwatch()
            raise
        if self._telemetry is not None:
            self._telemetry.watch(self._machine, engine, self._settings.memory_budget_bytes)
        try:
            self._shell.start(self._machine.start())
        except BaseException:
            self._unwatch()
            raise
        try:
            self._await_workers()
        except FlagsplitError:
            self.close()
            raise

    def _checked(self, workers: Mapping[str, PeerAddress]) -> tuple[str, ...]:
        for tier in workers:
            if self.bundle.tier_index(tier) == 0:
                raise ConfigError(f"tier {tier} runs in this process; name only the tiers beyond it")
        return tuple(workers)

    def _engine(self) -> Engine:
        bundle, host = self.bundle, self._settings.host
        return Engine(
            lambda segment: bundle.load(0, segment, host),
            order_of(bundle, 0),
            sizes_of(bundle, 0),
            self._settings.memory_budget_bytes,
            lambda ran: self._shell.post(ran),
            self._settings.slowdown,
        )

    def _await_workers(self) -> None:
        """Wait until each worker was heard of; a refusal is an error, an absence is not."""
        deadline = time.monotonic() + self._settings.connect_s
        with self._tier_changed:
            while not all(tier in self._tiers for tier in self._workers) and self._broken is None:
                if not self._tier_changed.wait(max(0.0, deadline - time.monotonic())):
                    break
            refused = [change for change in self._tiers.values() if change.state == "refused"]
            broken = self._broken
        if broken is not None:
            raise broken
        if refused:
            raise RefusedError(f"tier {refused[0].tier} refused the session: {refused[0].reason}")

    @property
    def http(self) -> str:
        """URL at which metrics, health and stats are served, "" if they are not."""
        return "" if self._telemetry is None else self._telemetry.http

    @property
    def tiers(self) -> dict[str, str]:
        """State of each tier beyond this one: "up", or why it is not."""
        with self._lock:
            known = dict(self._tiers)
        return {
            tier: "not heard of yet" if change is None else "up" if change.state == "up" else change.reason
            for tier in self._workers
            for change in (known.get(tier),)
        }

    def submit(
        self, inputs: Mapping[str, object], *, plan: str = "", deadline_s: float | None = None
    ) -> Future[Answer]:
        """Ask without waiting.

        Args:
            inputs: one array per graph input, of the declared dtype and shape. They are copied.
            plan: name of a pooled plan to use while its tiers are there; "" takes the best.
            deadline_s: seconds after which there is no answer any more.

        Returns:
            A future of the answer. Cancelling it before the answer comes abandons the request.

        Raises:
            InputError: an input has the wrong name, dtype or shape, or the deadline is no number.
            PolicyError: the pool has no such plan.
            PeerError: the session is closed.
        """
        arrays = check_inputs(self.bundle.inputs, inputs, self.bundle.facts.dim_ranges)
        deadline_s = self._settings.deadline_s if deadline_s is None else deadline_s
        if math.isnan(deadline_s):
            raise InputError("expected seconds until the deadline, came nan; math.inf waits for ever")
        if plan:
            self.bundle.plan(plan)
        future: Future[Answer] = Future()
        rid = next(self._rids)
        with self._lock:
            if self._broken is not None:
                raise self._broken
            if self._closed:
                raise PeerError("the session is closed; open another")
            self._futures[rid] = future
        future.add_done_callback(lambda done: self._on_done(rid, done))
        self._shell.post(Submit(rid, arrays, time.monotonic() + deadline_s, plan))
        return future

    def run(self, inputs: Mapping[str, object], *, plan: str = "", deadline_s: float | None = None) -> Answer:
        """Ask and wait.

        Args:
            inputs: one array per graph input, of the declared dtype and shape.
            plan: name of a pooled plan to use while its tiers are there; "" takes the best.
            deadline_s: seconds after which there is no answer any more.

        Returns:
            The graph outputs by name, with `.report`.

        Raises:
            InputError: an input has the wrong name, dtype or shape, or the model cannot run on it.
            UnavailableError: no plan could answer within the deadline.
        """
        return self.submit(inputs, plan=plan, deadline_s=deadline_s).result()

    def stream(self, requests: Iterable[Mapping[str, object]], *, plan: str = "") -> Iterator[Answer]:
        """Answers to many requests, in their order, several on their way at once.

        Args:
            requests: inputs, taken one by one as there is room.
            plan: as in `run`.
        """
        pending: deque[Future[Answer]] = deque()
        try:
            for inputs in requests:
                pending.append(self.submit(inputs, plan=plan))
                if len(pending) >= self._settings.machine.window:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()

    def close(self) -> None:
        """Abandon what is under way, say goodbye, free everything. A second call does nothing."""
        with self._lock:
            self._closed = True
        self._shell.stop()
        self._fail_futures(PeerError("the session was closed before the answer came"))
        self._unwatch()

    def _unwatch(self) -> None:
        if self._telemetry is not None:
            self._telemetry.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _on_done(self, rid: int, future: Future[Answer]) -> None:
        if future.cancelled() and self._futures.pop(rid, None) is not None:
            self._shell.post(Abandon(rid))

    def _tell(self, instruction: Instruction) -> None:
        match instruction:
            case Deliver(rid, outputs, report):
                future = self._futures.pop(rid, None)
                if future is not None and future.set_running_or_notify_cancel():
                    future.set_result(Answer(outputs, replace(report, basis=self._settings.basis)))
            case Fail(rid, error):
                future = self._futures.pop(rid, None)
                if future is not None and future.set_running_or_notify_cancel():
                    future.set_exception(error)
            case TierChanged(tier, state, reason):
                self.events.append(f"{tier} {state}{': ' + reason if reason else ''}")
                with self._tier_changed:
                    self._tiers[tier] = instruction
                    self._tier_changed.notify_all()
            case Note(text):
                self.events.append(text)

    def _fail_all(self, error: Exception) -> None:
        broken = error if isinstance(error, FlagsplitError) else describe(error)
        with self._tier_changed:
            self._broken = broken
            self._tier_changed.notify_all()
        self._fail_futures(broken)

    def _fail_futures(self, error: FlagsplitError) -> None:
        while self._futures:
            _, future = self._futures.popitem()
            if future.set_running_or_notify_cancel():
                future.set_exception(error)


class AsyncSession:
    """The asyncio twin of `Session`: the same words, awaited. Use it in an `async with` statement."""

    def __init__(self, session: Session) -> None:
        self._session = session

    @property
    def bundle(self) -> Bundle:
        """What it runs."""
        return self._session.bundle

    @property
    def tiers(self) -> dict[str, str]:
        """As `Session.tiers`."""
        return self._session.tiers

    async def run(self, inputs: Mapping[str, object], *, plan: str = "", deadline_s: float | None = None) -> Answer:
        """As `Session.run`; cancelling the task abandons the request."""
        return await asyncio.wrap_future(self._session.submit(inputs, plan=plan, deadline_s=deadline_s))

    async def stream(
        self, requests: AsyncIterable[Mapping[str, object]], *, plan: str = "", window: int = 8
    ) -> AsyncIterator[Answer]:
        """Answers to many requests, in their order, up to `window` on their way at once."""
        pending: deque[asyncio.Future[Answer]] = deque()
        try:
            async for inputs in requests:
                pending.append(asyncio.wrap_future(self._session.submit(inputs, plan=plan)))
                if len(pending) >= window:
                    yield await pending.popleft()
            while pending:
                yield await pending.popleft()
        finally:
            for future in pending:
                future.cancel()

    async def close(self) -> None:
        """As `Session.close`."""
        await asyncio.to_thread(self._session.close)


def _facts(bundle: Bundle) -> SessionFacts:
    return SessionFacts(
        bundle=bundle.digest,
        tiers=bundle.tiers,
        pool=bundle.plans.pool,
        steps=bundle.plans.steps,
        nominal=bundle.plans.nominal,
        inputs=tuple(tensor.name for tensor in bundle.inputs),
        outputs=tuple(tensor.name for tensor in bundle.outputs),
        answers=bundle.plans.answers,
    )
