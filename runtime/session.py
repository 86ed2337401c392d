"""The session as an application sees it: ask, and get the answer, whatever happens to the tiers meanwhile.

`Session` is thread-safe. Its first tier runs in this process; the machine, the channel and the engine run on threads of
their own (`flagsplit.runtime.shell`). The asyncio twin is in `flagsplit.runtime.async_session`, what an application
chooses in `flagsplit.runtime.session_settings`.
"""

import itertools
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from flagsplit.errors import (
    BundleError,
    ConfigError,
    FlagsplitError,
    InputError,
    PeerError,
    PolicyError,
    RefusedError,
    UnavailableError,
)
from flagsplit.runtime.bundle import Bundle
from flagsplit.runtime.decisions import Decision
from flagsplit.runtime.engine import Engine
from flagsplit.runtime.events import (
    Abandon,
    Adopt,
    Adopted,
    Decided,
    Deliver,
    Fail,
    Instruction,
    Note,
    Released,
    Submit,
    Superseded,
    TierChanged,
)
from flagsplit.runtime.inputs import check_inputs
from flagsplit.runtime.pending import Pending
from flagsplit.runtime.residency import Loadout, loadout
from flagsplit.runtime.session_bundle import check_interchangeable, facts_of, first_segments, loosened_by
from flagsplit.runtime.session_facts import SessionFacts
from flagsplit.runtime.session_machine import SessionMachine
from flagsplit.runtime.session_settings import Answer as Answer
from flagsplit.runtime.session_settings import SessionSettings as SessionSettings
from flagsplit.runtime.shell import Shell, describe
from flagsplit.runtime.streaming import streamed
from flagsplit.runtime.telemetry.settings import TelemetrySettings
from flagsplit.runtime.telemetry.tracing import parse_traceparent
from flagsplit.runtime.telemetry.wanted import telemetry_of
from flagsplit.splitter.repolicy import repolicy
from flagsplit.splitter.sla import SLA, parse_sla
from flagsplit.transport.channel import Channel
from flagsplit.transport.messages import PeerAddress
from flagsplit.transport.squeeze import host_speeds
from flagsplit.transport.squeeze_policy import SqueezePolicy

if TYPE_CHECKING:
    from flagsplit.runtime.telemetry.telemetry import Telemetry

_log = logging.getLogger(__name__)

_CLOSED = "the session is closed, or of the process that this one was forked from; open another"

Rebuild = Callable[[Bundle, SLA], Bundle]
"""Builds a bundle again under another policy, and sees to it that the workers have it."""


class Session:
    """A connection to the workers of a bundle. Use it in a `with` statement, or call `close`.

    Args:
        bundle: what to run.
        workers: address of each worker, by tier name; a tier without one is not used.
        channel: the way to them; the session closes it.
        settings: choices of the application.
        rebuild: for policies that no pooled plan keeps.
        part: what is run of the bundle, if that is not all of it, such as `loop_boundary.facts_before_loop` makes.

    Attributes:
        bundle: what answers new requests now.
        events: what happened lately, one line each.

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
        rebuild: Rebuild | None = None,
        part: SessionFacts | None = None,
    ) -> None:
        self.bundle = bundle
        self._part = part
        self.events: deque[str] = deque(maxlen=1000)
        self._settings = settings or SessionSettings()
        self._rebuild = rebuild
        self._held: dict[str, Loadout] = {}
        self._rids = itertools.count(1)
        self._pending: Pending[Answer] = Pending(self._settings.max_pending)
        self._lock = threading.Lock()
        self._swapping = threading.Lock()
        self._tiers: dict[str, TierChanged] = {}
        self._changed = threading.Condition(self._lock)
        self._adopted: list[Adopted] = [Adopted(0, bundle.digest)]
        self._broken: FlagsplitError | None = None
        self._decisions: deque[Decision] = deque(maxlen=256)
        self._telemetry: Telemetry | None = None
        try:
            self._workers = self._checked(workers)
            watching = TelemetrySettings(self._settings.http, self._settings.trace_file)
            self._telemetry = telemetry_of(bundle, bundle.tiers[0], channel.instance, watching)
            observer = None if self._telemetry is None else self._telemetry.observer
            self._machine = SessionMachine(
                part or facts_of(bundle),
                workers,
                channel.instance,
                self._settings.machine,
                squeezing=SqueezePolicy(host_speeds),
            )
            self._held[bundle.digest] = self._load(bundle)
            self._engine = self._make_engine()
            name = "flagsplit-session"
            self._shell = Shell(self._machine, channel, self._engine, self._tell, self._fail_all, name, observer)
            self._engine.start(first_segments(part or facts_of(bundle)))
        except FlagsplitError:
            channel.close()
            self._unwatch()
            raise
        if self._telemetry is not None:
            self._telemetry.watch(self._machine, self._engine, self._settings.memory_budget_bytes)
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

    def _load(self, bundle: Bundle) -> Loadout:
        found = loadout(bundle, 0, self._settings.memory_budget_bytes, self._settings.host)
        wanted = found.order if self._part is None else self._part.own_segments()
        return replace(found, order=[segment for segment in found.order if segment in wanted])

    def _make_engine(self) -> Engine:
        held = self._held[self.bundle.digest]
        return Engine(
            lambda digest, segment: self._held[digest].load(segment),
            held.order,
            held.size_bytes,
            self._settings.memory_budget_bytes,
            lambda ran: self._shell.post(ran),
            self._settings.slowdown,
            bundle=self.bundle.digest,
            parts=held.parts,
            mode=held.mode,
        )

    def _await_workers(self) -> None:
        """Wait until each worker was heard of; a refusal is an error, an absence is not."""
        deadline = time.monotonic() + self._settings.connect_s
        with self._changed:
            while not all(tier in self._tiers for tier in self._workers) and self._broken is None:
                if not self._changed.wait(max(0.0, deadline - time.monotonic())):
                    break
            refused = [change for change in self._tiers.values() if change.state == "refused"]
            broken = self._broken
        if broken is not None:
            raise broken
        if refused:
            raise RefusedError(f"tier {refused[0].tier} refused the session: {refused[0].reason}")

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

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """The latest changes of plan, each with its reason and numbers."""
        return tuple(self._decisions)

    @property
    def http(self) -> str:
        """URL of its metrics, health and stats, "" if it has none."""
        return "" if self._telemetry is None else self._telemetry.http

    @property
    def epoch(self) -> int:
        """How many bundles and policies there were before this one."""
        return self._adopted[-1].epoch

    @property
    def has_room(self) -> bool:
        """Whether `submit` would return at once."""
        return not self._pending.is_full

    def submit(
        self, inputs: Mapping[str, object], *, plan: str = "", deadline_s: float | None = None, traceparent: str = ""
    ) -> Future[Answer]:
        """Ask without waiting for the answer; waits for room while `max_pending` others have none.

        Args:
            inputs: one array per graph input, of the declared dtype and shape. They are copied.
            plan: name of a pooled plan to use while its tiers are there; "" takes the best.
            deadline_s: seconds after which there is no answer any more.
            traceparent: the trace that the request belongs to, as in W3C Trace Context.

        Returns:
            A future of the answer. Cancelling it before the answer comes abandons the request. What is called when it
            is done runs on the session's thread, which all answers wait for: it may `submit`, and must not wait.

        Raises:
            InputError: an input has the wrong name, dtype or shape, or the deadline is no number.
            PolicyError: the pool has no such plan.
            UnavailableError: there was no room within the deadline.
            PeerError: the session is closed, or of the process that this one was forked from.
        """
        self._check_open()
        arrays = check_inputs(self.bundle.inputs, inputs, *self.bundle.sizes)
        deadline_s = self._settings.deadline_s if deadline_s is None else deadline_s
        if math.isnan(deadline_s):
            raise InputError("expected seconds until the deadline, came nan; math.inf waits for ever")
        if traceparent:
            parse_traceparent(traceparent)
        if plan:
            self.bundle.plan(plan)
        deadline = time.monotonic() + deadline_s
        future: Future[Answer] = Future()
        rid = next(self._rids)
        self._pending.add(rid, future, 0.0 if self._shell.is_current else deadline_s)
        future.add_done_callback(lambda done: self._on_done(rid, done))
        self._shell.post(Submit(rid, arrays, deadline, plan, traceparent))
        return future

    def run(
        self, inputs: Mapping[str, object], *, plan: str = "", deadline_s: float | None = None, traceparent: str = ""
    ) -> Answer:
        """Ask and wait; arguments as in `submit`.

        Returns:
            The graph outputs by name, with `.report`.

        Raises:
            InputError: an input has the wrong name, dtype or shape, or the model cannot run on it.
            UnavailableError: no plan could answer within the deadline.
            ConfigError: it was called when an answer was done, on the thread that it would wait for.
        """
        self._check_may_wait("run")
        return self.submit(inputs, plan=plan, deadline_s=deadline_s, traceparent=traceparent).result()

    def stream(
        self,
        requests: Iterable[Mapping[str, object]],
        *,
        plan: str = "",
        deadline_s: float | None = None,
        window: int | None = None,
        ordered: bool = True,
    ) -> Iterator[Answer]:
        """Answers to many requests, several on their way at once.

        Args:
            requests: inputs, taken one by one as there is room.
            plan: as in `submit`.
            deadline_s: seconds that each may take.
            window: how many; by default that of the settings.
            ordered: whether answers come in the order of their requests, or each when it is there.
        """
        return streamed(
            lambda inputs: self.submit(inputs, plan=plan, deadline_s=deadline_s),
            requests,
            window=window or self._settings.machine.window,
            ordered=ordered,
        )

    def swap(self, bundle: Bundle, *, timeout_s: float = 60.0) -> tuple[str, ...]:
        """Answer new requests by another bundle; those under way end with the one that they began with.

        The segments of this tier are loaded beside the old ones first, so no request waits for that.

        Args:
            bundle: with the same inputs and outputs. Workers must serve it already (`flagsplit swap`).
            timeout_s: how long to wait for the workers' word.

        Returns:
            Tiers whose workers do not serve it; they are done without.

        Raises:
            ConfigError: its inputs, outputs or first tier are others.
            BundleError: a segment of this tier cannot be loaded; the old bundle stays.
            UnavailableError: the change did not come about in time.
            PeerError: the session is closed, or was closed meanwhile.
        """
        self._check_may_wait("swap")
        self._check_whole()
        check_interchangeable(self.bundle, bundle)
        with self._swapping:
            return self._adopt(bundle, facts_of(bundle), timeout_s)

    def update_sla(self, sla: SLA | Mapping[str, Any], *, timeout_s: float = 60.0) -> str:
        """Answer new requests under another policy.

        The pooled plans that keep it are used where they are enough, which takes no time. The bundle is built again, if
        this session knows how to, and swapped in where no pooled plan keeps the policy, and where the policy allows or
        wants what that of the bundle did not, because a better plan may not be in the pool. If a worker does not take
        the new bundle then, the pooled plans are used after all, and `events` says why.

        Args:
            sla: the policy, or the plain data of one.
            timeout_s: how long to wait for workers.

        Returns:
            "picked" or "rebuilt".

        Raises:
            PolicyError: no plan keeps it, or it needs a new build and this session cannot make one.
            PeerError: the session is closed, or was closed meanwhile.
        """
        self._check_may_wait("update_sla")
        self._check_whole()
        sla = sla if isinstance(sla, SLA) else parse_sla(sla)
        with self._swapping:
            try:
                pool = repolicy(self.bundle.plans.pool, sla)
            except PolicyError:
                if self._rebuild is None:
                    raise
                self._adopt_rebuilt(self._rebuild, sla, timeout_s)
                return "rebuilt"
            more = loosened_by(self.bundle, sla)
            if more and self._rebuild is not None:
                try:
                    self._adopt_rebuilt(self._rebuild, sla, timeout_s)
                except (RefusedError, PeerError, BundleError, ConfigError) as error:
                    text = f"pooled plans are used, a better one may be missing ({', '.join(more)}): {error}"
                    _log.warning("%s", text)
                    self.events.append(text)
                else:
                    return "rebuilt"
            self._adopt(self.bundle, facts_of(self.bundle, pool), timeout_s)
            return "picked"

    def _adopt_rebuilt(self, rebuild: Rebuild, sla: SLA, timeout_s: float) -> None:
        built = rebuild(self.bundle, sla)
        check_interchangeable(self.bundle, built)
        self._adopt(built, facts_of(built), timeout_s)

    def _check_whole(self) -> None:
        if self._part is not None:
            raise ConfigError("this session runs a part of its bundle; open another for another bundle or policy")

    def _adopt(self, bundle: Bundle, facts: SessionFacts, timeout_s: float) -> tuple[str, ...]:
        self._check_open()
        give_up = time.monotonic() + timeout_s
        if bundle.digest not in self._held:
            held = self._held[bundle.digest] = self._load(bundle)
            first = first_segments(facts)
            loading = self._engine.add(bundle.digest, held.order, held.size_bytes, first, held.parts)
            try:
                loading.result(timeout_s)
            except BaseException as error:
                self._engine.remove(bundle.digest)
                del self._held[bundle.digest]
                if isinstance(error, TimeoutError):
                    raise UnavailableError(f"the new bundle was not loaded within {timeout_s:g} s") from None
                raise
        with self._changed:
            before = len(self._adopted)
            self._shell.post(Adopt(facts))
            while len(self._adopted) == before and self._broken is None:
                if not self._changed.wait(max(0.0, give_up - time.monotonic())):
                    raise UnavailableError(f"the workers did not say within {timeout_s:g} s what they serve")
            if self._broken is not None:
                raise self._broken
            self.bundle = bundle
            return self._adopted[-1].without

    def close(self) -> None:
        """Abandon what is under way, say goodbye, free everything. A second call does nothing."""
        with self._changed:
            self._broken = self._broken or PeerError(_CLOSED)
            self._changed.notify_all()
        self._pending.end()
        self._shell.stop()
        self._unwatch()

    def _check_open(self) -> None:
        if not self._shell.is_running:
            raise self._broken or PeerError(_CLOSED)

    def _check_may_wait(self, what: str) -> None:
        if self._shell.is_current:
            raise ConfigError(
                f"{what} was called when an answer was done, on the session's own thread, and would wait for itself; "
                "use submit there, or another thread"
            )

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
        if future.cancelled() and self._pending.pop(rid) is not None:
            self._shell.post(Abandon(rid))

    def _tell(self, instruction: Instruction) -> None:
        match instruction:
            case Deliver(rid, outputs, report):
                future = self._pending.pop(rid)
                if future is not None and future.set_running_or_notify_cancel():
                    basis = "emulated" if self._settings.basis == "emulated" else report.basis
                    future.set_result(Answer(outputs, replace(report, basis=basis)))
            case Fail(rid, error):
                future = self._pending.pop(rid)
                if future is not None and future.set_running_or_notify_cancel():
                    future.set_exception(error)
            case TierChanged(tier, state, reason):
                self.events.append(f"{tier} {state}{': ' + reason if reason else ''}")
                with self._changed:
                    self._tiers[tier] = instruction
                    self._changed.notify_all()
            case Decided(decision):
                whose = "" if decision.rid is None else f" for request {decision.rid}"
                text = f"plan {decision.from_plan or '(none)'} -> {decision.to_plan}{whose}: {decision.reason}"
                self.events.append(text)
                self._decisions.append(decision)
                numbers = ", ".join(f"{name} {value:.4g}" for name, value in decision.numbers.items())
                _log.info("%s (%s)", text, numbers)
            case Adopted(epoch, bundle):
                self.events.append(f"epoch {epoch}: bundle {bundle[:12]}")
                with self._changed:
                    self._adopted.append(instruction)
                    self._changed.notify_all()
            case Released(bundle):
                self._engine.remove(bundle)
                self._held.pop(bundle, None)
            case Superseded(tier, bundle, successor):
                self.events.append(f"{tier} will stop to serve {bundle[:12]}; {successor[:12]} takes its place")
            case Note(text):
                self.events.append(text)

    def _fail_all(self, error: Exception) -> None:
        broken = error if isinstance(error, FlagsplitError) else describe(error)
        with self._changed:
            self._broken = broken
            self._changed.notify_all()
        self._pending.end(broken)
