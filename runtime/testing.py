"""Fakes for tests of the runtime, ours and others': a session and its workers on a clock that only moves when told.

A `Cluster` drives sessions and a `WorkerMachine` per tier without threads or sockets. Its network keeps the promises of
a `flagsplit.transport.Channel` and no more: messages are in order per connection and lane, those under way are lost
when an end dies, a death is noticed late, and a process or a link may fall silent without a word. Only `fate` breaks
these promises, where a test sets it. All chance comes from one seed, so a history can be told again.
"""

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flagsplit.errors import FlagsplitError, InternalError
from flagsplit.runtime.bundle_events import (
    BundleLoaded,
    BundleUnloaded,
    CloseUpload,
    LoadBundle,
    OpenUpload,
    PartStored,
    Served,
    StorePart,
    UnloadBundle,
    UploadFailed,
    UploadOpened,
)
from flagsplit.runtime.events import (
    Abandon,
    BeginDrain,
    Connect,
    Deliver,
    Disconnect,
    Ended,
    Event,
    Fail,
    Instruction,
    Leave,
    Note,
    Ran,
    Run,
    Send,
    Skip,
    Submit,
    Tick,
    TierChanged,
    Withdraw,
)
from flagsplit.runtime.session_machine import SessionFacts, SessionMachine, SessionOptions
from flagsplit.runtime.shell import Machine
from flagsplit.runtime.worker_machine import WorkerHooks, WorkerMachine, WorkerOptions
from flagsplit.targets.interface import Array
from flagsplit.transport.channel import Down, Received, Up, inbound_name
from flagsplit.transport.messages import Chunk, Hello, Lane, Message, Open, PeerAddress, decode, encode
from flagsplit.transport.testing import VirtualClock

Compute = Callable[[str, str, Mapping[str, Array]], Mapping[str, Array]]
"""Runs a segment: tier, segment id and inputs to outputs. A FlagsplitError counts as a failed run."""

Span = tuple[float, float]


@dataclass(frozen=True)
class Times:
    """How long things take, each drawn evenly from a span of seconds.

    Attributes:
        delay_s: a message on its way.
        notice_s: from the end of a connection until the other side is told.
        redial_s: between two attempts to connect.
        run_s: a segment on an engine that is not slowed down.
    """

    delay_s: Span = (0.001, 0.03)
    notice_s: Span = (0.0, 0.3)
    redial_s: Span = (0.05, 0.5)
    run_s: Span = (0.001, 0.05)


@dataclass(eq=False)
class _Connection:
    """Two ends, the one that dialed first. `names` is what each calls the other, `open` whether it still listens."""

    ends: tuple["_Node", "_Node"]
    names: tuple[str, str]
    open: list[bool] = field(default_factory=lambda: [True, True])
    introduced: bool = False
    last_due: dict[tuple[int, Lane], float] = field(default_factory=dict)
    flying: list["_Flying"] = field(default_factory=list)


@dataclass(eq=False)
class _Flying:
    connection: _Connection
    target: int
    message: Message


@dataclass(eq=False)
class _Node:
    """A process, from its start to its end."""

    tier: str
    instance: str
    machine: Any  # a `Machine` of any kind; tests look into them
    alive: bool = True
    stopped: bool = False
    jobs: list[tuple[Run, float]] = field(default_factory=list)
    is_busy: bool = False
    next_tick: float = -1.0
    dials: dict[str, str] = field(default_factory=dict)
    told_down: set[str] = field(default_factory=set)
    connections: dict[str, _Connection] = field(default_factory=dict)
    accepted: list[_Connection] = field(default_factory=list)
    parts: dict[str, bytearray] = field(default_factory=dict)
    uploads: dict[int, str] = field(default_factory=dict)
    missed: list[Event] = field(default_factory=list)


class Cluster:
    """A session, and a worker for each tier beyond it. All start at time 0.

    Args:
        facts: of the bundle; the session's tier is the first.
        compute: stands for all engines.
        seed: same seed and same calls, same history.
        session: options of the session.
        worker: options of all workers.
        times: how long things take.

    Attributes:
        clock: the time.
        answers: what became of each request, by number.
        tiers: the last word of the session about each tier.
        watch: called with source tier, target tier and message just before a message arrives; may kill either.
        fate: called with source tier, target tier and message when a message is sent; gives, for each copy that is to
            arrive, by how many seconds it is late. Nothing loses it; one that is late loses its place in its lane.
        overhear: called with tier and instruction before an instruction is followed.
        story: what happened, the newest last.
        highest_attempt: of all attempts that were announced.
    """

    def __init__(
        self,
        facts: SessionFacts,
        compute: Compute,
        *,
        seed: int = 0,
        session: SessionOptions | None = None,
        worker: WorkerOptions | None = None,
        times: Times | None = None,
    ) -> None:
        self.clock = VirtualClock()
        self.answers: dict[int, Deliver | Fail] = {}
        self.tiers: dict[str, TierChanged] = {}
        self.watch: Callable[[str, str, Message], None] = lambda _source, _target, _message: None
        self.fate: Callable[[str, str, Message], Sequence[float]] = lambda _source, _target, _message: (0.0,)
        self.overhear: Callable[[str, Instruction], None] = lambda _tier, _instruction: None
        self.story: deque[str] = deque(maxlen=400)
        self.highest_attempt = 0
        self._facts, self._options = facts, session
        self._worker, self._times = worker, times or Times()
        self._library = {facts.bundle: (facts, compute)}
        self._at_start = [facts.bundle]
        self._random = random.Random(seed)  # noqa: S311 - a seeded simulation
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers, self._rids = itertools.count(), itertools.count(1)
        self._slowdown: dict[str, float] = {}
        self._partitions: set[frozenset[str]] = set()
        self._cut_off: list[_Flying] = []
        self._nodes: dict[str, _Node] = {}
        for tier in facts.tiers[1:]:
            self.start(tier)
        self.session = self.join(facts.tiers[0])

    def add_bundle(self, facts: SessionFacts, compute: Compute, *, at_start: bool = False) -> None:
        """Let there be another bundle; with `at_start`, workers have it from their next start on."""
        self._library[facts.bundle] = (facts, compute)
        if at_start:
            self._at_start.append(facts.bundle)

    def join(self, name: str, bundle: str = "") -> _Node:
        """Another session, by default of the first bundle. Its name is for `submit`, partitions and `end`."""
        facts, _ = self._library[bundle or self._facts.bundle]
        instance = self._new_instance()
        addresses = {tier: PeerAddress(f"sim://{tier}") for tier in facts.tiers[1:]}
        machine = SessionMachine(facts, addresses, instance, self._options)
        return self.host(name, facts.tiers[0], instance, machine, machine.start())

    def host(self, name: str, tier: str, instance: str, machine: Machine, first: list[Instruction]) -> _Node:
        """Let a machine of any kind take part; it dials `sim://TIER` and accepts nobody."""
        node = self._nodes[name] = _Node(tier, instance, machine)
        self._follow(node, first)
        self._plan_tick(node)
        return node

    def submit(self, inputs: Mapping[str, Array], deadline_s: float = 60.0, plan: str = "", *, name: str = "") -> int:
        """Ask; the answer will be in `answers` under the number that comes back."""
        rid = next(self._rids)
        node = self._nodes[name] if name else self.session
        self._tell(node, Submit(rid, inputs, self.clock.now_s() + deadline_s, plan))
        return rid

    def drain(self, tier: str) -> None:
        """Ask a worker to finish what it has and end."""
        self._tell(self._nodes[tier], BeginDrain("this worker is to end"))

    def lose(self, one: str, other: str) -> None:
        """Break the connections between two processes, both of which live on."""
        ends = {self._nodes[one], self._nodes[other]}
        for node in (self._nodes[one], self._nodes[other]):
            for connection in list(node.connections.values()):
                if set(connection.ends) == ends and node is connection.ends[0]:
                    self._note(f"{one} and {other} lose each other")
                    for end in (0, 1):
                        self._later(self._times.notice_s, lambda c=connection, end=end: self._lose(c, end, "reset"))  # type: ignore[misc]

    def abandon(self, rid: int) -> None:
        """Give a request up."""
        self._tell(self.session, Abandon(rid))

    def tell(self, name: str, event: Event) -> None:
        """Let a session or a worker learn of something that no other method brings about."""
        self._tell(self._nodes[name], event)

    def start(self, tier: str) -> None:
        """Start a worker that is not running."""
        if tier in self._nodes and self._nodes[tier].alive:
            return
        instance = self._new_instance()
        served = {bundle: served_of(self._library[bundle][0], tier) for bundle in self._at_start}
        hooks = WorkerHooks(is_admin=lambda _key: True)
        machine = WorkerMachine(tier, served, instance, None, self._worker, hooks=hooks)
        self._nodes[tier] = _Node(tier, instance, machine)
        self._note(f"{tier} starts")
        self._plan_tick(self._nodes[tier])

    def kill(self, tier: str) -> None:
        """End a worker without a last word."""
        self._end(self._nodes[tier], "killed")

    def leave(self, tier: str) -> None:
        """End a worker in order."""
        self._leave(self._nodes[tier])

    def stop(self, tier: str) -> None:
        """Freeze a worker: it neither hears nor says anything, and nobody is told."""
        self._nodes[tier].stopped = True
        self._note(f"{tier} freezes")

    def resume(self, tier: str) -> None:
        """Let a frozen worker go on with what it missed."""
        node = self._nodes[tier]
        node.stopped = False
        self._note(f"{tier} goes on")
        missed, node.missed = node.missed, []
        for event in missed:
            self._tell(node, event)
        self._plan_tick(node)

    def slow(self, tier: str, factor: float) -> None:
        """Slow an engine down from its next run on."""
        self._slowdown[tier] = factor

    def partition(self, one: str, other: str) -> None:
        """Hold back everything between two tiers, and tell nobody."""
        self._partitions.add(frozenset((one, other)))

    def heal(self, one: str, other: str) -> None:
        """End a partition; what was held back arrives, where the connection is still there."""
        self._partitions.discard(frozenset((one, other)))
        held, self._cut_off = self._cut_off, []
        for flying in held:
            self._arrive(flying)

    def at(self, time_s: float, action: Callable[[], None]) -> None:
        """Do something at a time."""
        heapq.heappush(self._agenda, (max(time_s, self.clock.now_s()), next(self._numbers), action))

    def run(self, seconds: float) -> None:
        """Let time pass."""
        end = self.clock.now_s() + seconds
        while self._agenda and self._agenda[0][0] <= end:
            due, _, action = heapq.heappop(self._agenda)
            self.clock.advance(max(0.0, due - self.clock.now_s()))
            action()
        self.clock.advance(max(0.0, end - self.clock.now_s()))  # the sum of the steps may end a rounding later

    def is_alive(self, tier: str) -> bool:
        """Whether a tier's process runs, frozen or not."""
        return self._nodes[tier].alive

    def worker(self, tier: str) -> WorkerMachine:
        """The machine of a worker as it is now."""
        machine = self._nodes[tier].machine
        if not isinstance(machine, WorkerMachine):
            raise InternalError(f"{tier} is the session's own tier")
        return machine

    def send(self, tier: str, message: Message) -> None:
        """Say something to the session in a worker's name."""
        node = self._nodes[tier]
        self._send(node, inbound_name(self.session.instance), message)

    def _new_instance(self) -> str:
        return self._random.randbytes(16).hex()

    def _note(self, text: str) -> None:
        self.story.append(f"{self.clock.now_s():.3f} {text}")

    def _later(self, span: Span, action: Callable[[], None]) -> None:
        self.at(self.clock.now_s() + self._random.uniform(*span), action)

    def _end(self, node: _Node, how: str) -> None:
        if not node.alive:
            return
        node.alive = False
        self._note(f"{node.tier} is {how}")
        for connection in dict.fromkeys((*node.connections.values(), *node.accepted)):
            self._close(connection, connection.ends.index(node), f"{node.tier} is gone")

    def _tell(self, node: _Node, event: Event) -> None:
        if not node.alive:
            return
        if node.stopped:
            node.missed.append(event)
            return
        self._follow(node, node.machine.handle(event, self.clock.now_s()))
        self._plan_tick(node)

    def _plan_tick(self, node: _Node) -> None:
        due = node.machine.next_tick()
        if node.alive and not node.stopped and not self.clock.now_s() < node.next_tick <= due:
            node.next_tick = max(due, self.clock.now_s() + 1e-6)
            self.at(node.next_tick, lambda: self._tick(node))

    def _tick(self, node: _Node) -> None:
        if node.alive and not node.stopped:
            node.next_tick = -1.0
            if node.machine.next_tick() <= self.clock.now_s():
                self._tell(node, Tick())
            self._plan_tick(node)

    def _follow(self, node: _Node, instructions: list[Instruction]) -> None:
        for instruction in instructions:
            self.overhear(node.tier, instruction)
            match instruction:
                case Send(peer, message):
                    self._send(node, peer, message)
                case Run():
                    node.jobs.append((instruction, self.clock.now_s()))
                    self._begin(node)
                case Skip(token):
                    self._skip(node, token)
                case Connect(peer, address, _):
                    node.dials[peer] = address.removeprefix("sim://")
                    node.told_down.discard(peer)
                    self._later((0.0, 0.01), lambda peer=peer: self._dial(node, peer))  # type: ignore[misc]
                case Disconnect(peer):
                    node.dials.pop(peer, None)
                    self._hang_up(node, peer)
                case Withdraw(peer, sid, rid):
                    self._withdraw(node, peer, sid, rid)
                case Deliver(rid) | Fail(rid):
                    if rid in self.answers:
                        raise InternalError(f"request {rid} was answered twice: {self.answers[rid]}, {instruction}")
                    self.answers[rid] = instruction
                case TierChanged(tier, state, reason):
                    self._note(f"session: {tier} {state} {reason}")
                    if not hasattr(self, "session") or node is self.session:
                        self.tiers[tier] = instruction
                case Ended(reason):
                    self._note(f"{node.tier} ended: {reason}")
                    self._later((0.0, 0.0), lambda: self._leave(node))
                case OpenUpload() | StorePart() | CloseUpload() | LoadBundle() | UnloadBundle():
                    self._take_in(node, instruction)
                case Note(text):
                    self._note(f"{node.tier}: {text}")

    def _leave(self, node: _Node) -> None:
        if node.alive:
            self._tell(node, Leave())
            self._end(node, "left")

    def _take_in(
        self, node: _Node, instruction: OpenUpload | StorePart | CloseUpload | LoadBundle | UnloadBundle
    ) -> None:
        """Stands for the files of a worker: whatever is sent counts as the bundle that was named."""
        news: Event
        match instruction:
            case OpenUpload(upload, sha256):
                node.uploads[upload] = sha256
                news = UploadOpened(upload, len(node.parts.setdefault(sha256, bytearray())))
            case StorePart(upload, offset, payload):
                part = node.parts[node.uploads[upload]]
                part[offset : offset + len(payload)] = payload
                news = PartStored(upload, len(part))
            case CloseUpload(upload, keep):
                sha256 = node.uploads.pop(upload)
                if not keep:
                    del node.parts[sha256]
                return
            case LoadBundle(upload, bundle):
                data = bytes(node.parts.pop(node.uploads.pop(upload)))
                known = bundle in self._library and data == bundle_bytes(bundle)
                facts, _ = self._library[bundle if known else self._facts.bundle]
                news = BundleLoaded(upload, bundle, served_of(facts, node.tier))
                if not known:
                    news = UploadFailed(upload, "the file is damaged")
            case UnloadBundle(bundle):
                news = BundleUnloaded(bundle)
        self._later(self._times.run_s, lambda: self._tell(node, news))

    def _begin(self, node: _Node) -> None:
        """Give an idle engine its next run."""
        if node.is_busy or not node.jobs:
            return
        run, asked_s = node.jobs.pop(0)
        node.is_busy = True
        takes_s = self._random.uniform(*self._times.run_s) * self._slowdown.get(node.tier, 1.0)
        wait_us, run_us = int((self.clock.now_s() - asked_s) * 1e6), int(takes_s * 1e6)
        try:
            compute = self._library[run.bundle][1]
            ran = Ran(run.token, compute(node.tier, run.segment, run.inputs), "", wait_us, run_us)
        except FlagsplitError as error:
            ran = Ran(run.token, None, str(error), wait_us, run_us)
        self._later((takes_s, takes_s), lambda: self._finish(node, ran))

    def _finish(self, node: _Node, ran: Ran) -> None:
        node.is_busy = False
        self._tell(node, ran)
        self._begin(node)

    def _skip(self, node: _Node, token: int) -> None:
        kept = [job for job in node.jobs if job[0].token != token]
        if len(kept) < len(node.jobs):
            node.jobs = kept
            self._later((0.0, 0.0), lambda: self._tell(node, Ran(token, None, "skipped")))

    def _is_cut(self, one: _Node, other: _Node) -> bool:
        return frozenset((one.tier, other.tier)) in self._partitions

    def _dial(self, node: _Node, peer: str) -> None:
        if not node.alive or peer not in node.dials or peer in node.connections:
            return
        target = self._nodes[node.dials[peer]]
        if node.stopped:
            pass  # tries again when it goes on
        elif target.alive and not target.stopped and not self._is_cut(node, target):
            connection = _Connection((node, target), (peer, inbound_name(node.instance)))
            node.connections[peer] = connection
            target.accepted.append(connection)
            node.told_down.discard(peer)
            self._tell(node, Up(peer))
            return
        elif peer not in node.told_down:
            node.told_down.add(peer)
            self._tell(node, Down(peer, "nobody answers"))
        self._later(self._times.redial_s, lambda: self._dial(node, peer))

    def _hang_up(self, node: _Node, peer: str) -> None:
        connection = node.connections.pop(peer, None)
        if connection is not None:
            self._close(connection, connection.ends.index(node), "the peer hung up")

    def _close(self, connection: _Connection, end: int, reason: str) -> None:
        """One end is gone; the other notices in a while and may still get what was under way."""
        connection.open[end] = False
        if connection.open[1 - end]:
            self._later(self._times.notice_s, lambda: self._lose(connection, 1 - end, reason))

    def _lose(self, connection: _Connection, end: int, reason: str) -> None:
        node, peer = connection.ends[end], connection.names[end]
        if not connection.open[end]:
            return
        connection.open[end] = False
        if connection.open[1 - end]:
            self._close(connection, end, reason)
        if node.connections.get(peer) is connection:
            del node.connections[peer]
            self._tell(node, Down(peer, reason))
        if peer in node.dials:
            self._later(self._times.redial_s, lambda: self._dial(node, peer))

    def _send(self, node: _Node, peer: str, message: Message) -> None:
        connection = node.connections.get(peer)
        if connection is None:
            return
        if isinstance(message, Open):
            self.highest_attempt = max(self.highest_attempt, message.attempt)
        target = 1 - connection.ends.index(node)
        key = (target, message.LANE)
        due = max(connection.last_due.get(key, 0.0), self.clock.now_s() + self._random.uniform(*self._times.delay_s))
        connection.last_due[key] = due
        message = decode(encode(message))
        for late_s in self.fate(node.tier, connection.ends[target].tier, message):
            flying = _Flying(connection, target, message)
            connection.flying.append(flying)
            self.at(due + late_s, lambda flying=flying: self._arrive(flying))  # type: ignore[misc]

    def _withdraw(self, node: _Node, peer: str, sid: str, rid: int) -> None:
        """What has left already arrives nevertheless: a part of what is under way, the oldest first."""
        connection = node.connections.get(peer)
        if connection is None:
            return
        target = 1 - connection.ends.index(node)
        queued = [
            flying for flying in connection.flying if flying.target == target and _is_of(flying.message, sid, rid)
        ]
        for flying in queued[self._random.randint(0, len(queued)) :]:
            connection.flying.remove(flying)

    def _arrive(self, flying: _Flying) -> None:
        connection, message = flying.connection, flying.message
        source, target = connection.ends[1 - flying.target], connection.ends[flying.target]
        if flying not in connection.flying:
            return
        if self._is_cut(source, target):
            self._cut_off.append(flying)
            return
        if connection.open[flying.target]:
            self.watch(source.tier, target.tier, message)
        connection.flying.remove(flying)
        if not connection.open[flying.target] or not target.alive:
            return
        peer = connection.names[flying.target]
        if flying.target == 1 and not connection.introduced:
            if not isinstance(message, Hello):
                raise InternalError(f"{type(message).__name__} came before Hello")
            self._introduce(connection)
        self._note(f"{source.tier} → {target.tier}: {_brief(message)}")
        self._tell(target, Received(peer, message))

    def _introduce(self, connection: _Connection) -> None:
        target, peer = connection.ends[1], connection.names[1]
        connection.introduced = True
        if peer in target.connections:
            self._lose(target.connections[peer], 1, "it connected anew")
        target.connections[peer] = connection
        self._tell(target, Up(peer))


def served_of(facts: SessionFacts, tier: str) -> Served:
    """What the worker of a tier knows of a bundle."""
    index = facts.tiers.index(tier)
    own = {step.segment: step for steps in facts.steps.values() for step in steps if step.tier == index}
    return Served(facts.tiers, own)


def bundle_bytes(bundle: str, size_bytes: int = 3_000_000) -> bytes:
    """What stands for the file of a bundle in a `Cluster`."""
    return random.Random(bundle).randbytes(size_bytes)  # noqa: S311 - made-up content


def _is_of(message: Message, sid: str, rid: int) -> bool:
    return isinstance(message, Open | Chunk) and (message.sid, message.rid) == (sid, rid)


def _brief(message: Message) -> str:
    about = [f"{name} {getattr(message, name)}" for name in ("rid", "attempt", "hop", "code") if hasattr(message, name)]
    return " ".join((type(message).__name__, *about))
