"""Fakes for tests of the runtime, ours and others': a session and its workers on a clock that only moves when told.

A `Cluster` drives sessions and a `WorkerMachine` per tier without threads or sockets. Its network, which is in
`testing_network.py`, keeps the promises of
a `flagsplit.transport.Channel` and no more: messages are in order per connection and lane, those under way are lost
when an end dies, a death is noticed late, and a process or a link may fall silent without a word. Only `fate` breaks
these promises, where a test sets it. All chance comes from one seed, so a history can be told again.
"""

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial

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
from flagsplit.runtime.testing_network import Network, Node, Span
from flagsplit.runtime.testing_network import Times as Times
from flagsplit.runtime.worker_machine import WorkerHooks, WorkerMachine, WorkerOptions
from flagsplit.targets.interface import Array
from flagsplit.transport.channel import inbound_name
from flagsplit.transport.messages import Message, PeerAddress
from flagsplit.transport.testing import VirtualClock

Compute = Callable[[str, str, Mapping[str, Array]], Mapping[str, Array]]
"""Runs a segment: tier, segment id and inputs to outputs. A FlagsplitError counts as a failed run."""


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
        self._facts, self._options = facts, session
        self._worker, self._times = worker, times or Times()
        self._library = {facts.bundle: (facts, compute)}
        self._at_start = [facts.bundle]
        self._random = random.Random(seed)  # noqa: S311 - a seeded simulation
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers, self._rids = itertools.count(), itertools.count(1)
        self._network = Network(self, self._times, self._random)
        self._slowdown: dict[str, float] = {}
        self._nodes: dict[str, Node] = {}
        for tier in facts.tiers[1:]:
            self.start(tier)
        self.session = self.join(facts.tiers[0])

    @property
    def highest_attempt(self) -> int:
        """Of all attempts that were announced."""
        return self._network.highest_attempt

    def node(self, tier: str) -> Node:
        """The process of a tier, or of a session by its name, as it is now."""
        return self._nodes[tier]

    def add_bundle(self, facts: SessionFacts, compute: Compute, *, at_start: bool = False) -> None:
        """Let there be another bundle; with `at_start`, workers have it from their next start on."""
        self._library[facts.bundle] = (facts, compute)
        if at_start:
            self._at_start.append(facts.bundle)

    def join(self, name: str, bundle: str = "") -> Node:
        """Another session, by default of the first bundle. Its name is for `submit`, partitions and `end`."""
        facts, _ = self._library[bundle or self._facts.bundle]
        instance = self._new_instance()
        addresses = {tier: PeerAddress(f"sim://{tier}") for tier in facts.tiers[1:]}
        machine = SessionMachine(facts, addresses, instance, self._options)
        return self.host(name, facts.tiers[0], instance, machine, machine.start())

    def host(self, name: str, tier: str, instance: str, machine: Machine, first: list[Instruction]) -> Node:
        """Let a machine of any kind take part; it dials `sim://TIER` and accepts nobody."""
        node = self._nodes[name] = Node(tier, instance, machine)
        self._follow(node, first)
        self._plan_tick(node)
        return node

    def submit(self, inputs: Mapping[str, Array], deadline_s: float = 60.0, plan: str = "", *, name: str = "") -> int:
        """Ask; the answer will be in `answers` under the number that comes back."""
        rid = next(self._rids)
        node = self._nodes[name] if name else self.session
        self.tell_node(node, Submit(rid, inputs, self.clock.now_s() + deadline_s, plan))
        return rid

    def drain(self, tier: str) -> None:
        """Ask a worker to finish what it has and end."""
        self.tell_node(self._nodes[tier], BeginDrain("this worker is to end"))

    def lose(self, one: str, other: str) -> None:
        """Break the connections between two processes, both of which live on."""
        ends = {self._nodes[one], self._nodes[other]}
        for node in (self._nodes[one], self._nodes[other]):
            for connection in list(node.connections.values()):
                if set(connection.ends) == ends and node is connection.ends[0]:
                    self.note(f"{one} and {other} lose each other")
                    for end in (0, 1):
                        self.later(self._times.notice_s, partial(self._network.lose, connection, end, "reset"))

    def abandon(self, rid: int) -> None:
        """Give a request up."""
        self.tell_node(self.session, Abandon(rid))

    def tell(self, name: str, event: Event) -> None:
        """Let a session or a worker learn of something that no other method brings about."""
        self.tell_node(self._nodes[name], event)

    def start(self, tier: str) -> None:
        """Start a worker that is not running."""
        if tier in self._nodes and self._nodes[tier].alive:
            return
        instance = self._new_instance()
        served = {bundle: served_of(self._library[bundle][0], tier) for bundle in self._at_start}
        hooks = WorkerHooks(is_admin=lambda _key: True)
        machine = WorkerMachine(tier, served, instance, None, self._worker, hooks=hooks)
        self._nodes[tier] = Node(tier, instance, machine)
        self.note(f"{tier} starts")
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
        self.note(f"{tier} freezes")

    def resume(self, tier: str) -> None:
        """Let a frozen worker go on with what it missed."""
        node = self._nodes[tier]
        node.stopped = False
        self.note(f"{tier} goes on")
        missed, node.missed = node.missed, []
        for event in missed:
            self.tell_node(node, event)
        self._plan_tick(node)

    def slow(self, tier: str, factor: float) -> None:
        """Slow an engine down from its next run on."""
        self._slowdown[tier] = factor

    def partition(self, one: str, other: str) -> None:
        """Hold back everything between two tiers, and tell nobody."""
        self._network.partition(one, other)

    def heal(self, one: str, other: str) -> None:
        """End a partition; what was held back arrives, where the connection is still there."""
        self._network.heal(one, other)

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
        self._network.send(node, inbound_name(self.session.instance), message)

    def _new_instance(self) -> str:
        return self._random.randbytes(16).hex()

    def note(self, text: str) -> None:
        """Add to the story."""
        self.story.append(f"{self.clock.now_s():.3f} {text}")

    def later(self, span: Span, action: Callable[[], None]) -> None:
        """Do something after a time that is drawn from a span of seconds."""
        self.at(self.clock.now_s() + self._random.uniform(*span), action)

    def _end(self, node: Node, how: str) -> None:
        if not node.alive:
            return
        node.alive = False
        self.note(f"{node.tier} is {how}")
        for connection in dict.fromkeys((*node.connections.values(), *node.accepted)):
            self._network.close(connection, connection.ends.index(node), f"{node.tier} is gone")

    def tell_node(self, node: Node, event: Event) -> None:
        """Hand an event to a process, unless it is dead."""
        if not node.alive:
            return
        if node.stopped:
            node.missed.append(event)
            return
        self._follow(node, node.machine.handle(event, self.clock.now_s()))
        self._plan_tick(node)

    def _plan_tick(self, node: Node) -> None:
        due = node.machine.next_tick()
        if node.alive and not node.stopped and not self.clock.now_s() < node.next_tick <= due:
            node.next_tick = max(due, self.clock.now_s() + 1e-6)
            self.at(node.next_tick, lambda: self._tick(node))

    def _tick(self, node: Node) -> None:
        if node.alive and not node.stopped:
            node.next_tick = -1.0
            if node.machine.next_tick() <= self.clock.now_s():
                self.tell_node(node, Tick())
            self._plan_tick(node)

    def _follow(self, node: Node, instructions: list[Instruction]) -> None:
        for instruction in instructions:
            self.overhear(node.tier, instruction)
            match instruction:
                case Send(peer, message):
                    self._network.send(node, peer, message)
                case Run():
                    node.jobs.append((instruction, self.clock.now_s()))
                    self._begin(node)
                case Skip(token):
                    self._skip(node, token)
                case Connect(peer, address, _):
                    node.dials[peer] = address.removeprefix("sim://")
                    node.told_down.discard(peer)
                    self.later((0.0, 0.01), lambda peer=peer: self._network.dial(node, peer))  # type: ignore[misc]
                case Disconnect(peer):
                    node.dials.pop(peer, None)
                    self._network.hang_up(node, peer)
                case Withdraw(peer, sid, rid):
                    self._network.withdraw(node, peer, sid, rid)
                case Deliver(rid) | Fail(rid):
                    if rid in self.answers:
                        raise InternalError(f"request {rid} was answered twice: {self.answers[rid]}, {instruction}")
                    self.answers[rid] = instruction
                case TierChanged(tier, state, reason):
                    self.note(f"session: {tier} {state} {reason}")
                    if not hasattr(self, "session") or node is self.session:
                        self.tiers[tier] = instruction
                case Ended(reason):
                    self.note(f"{node.tier} ended: {reason}")
                    self.later((0.0, 0.0), lambda: self._leave(node))
                case OpenUpload() | StorePart() | CloseUpload() | LoadBundle() | UnloadBundle():
                    self._take_in(node, instruction)
                case Note(text):
                    self.note(f"{node.tier}: {text}")

    def _leave(self, node: Node) -> None:
        if node.alive:
            self.tell_node(node, Leave())
            self._end(node, "left")

    def _take_in(
        self, node: Node, instruction: OpenUpload | StorePart | CloseUpload | LoadBundle | UnloadBundle
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
        self.later(self._times.run_s, lambda: self.tell_node(node, news))

    def _begin(self, node: Node) -> None:
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
        self.later((takes_s, takes_s), lambda: self._finish(node, ran))

    def _finish(self, node: Node, ran: Ran) -> None:
        node.is_busy = False
        self.tell_node(node, ran)
        self._begin(node)

    def _skip(self, node: Node, token: int) -> None:
        kept = [job for job in node.jobs if job[0].token != token]
        if len(kept) < len(node.jobs):
            node.jobs = kept
            self.later((0.0, 0.0), lambda: self.tell_node(node, Ran(token, None, "skipped")))


def served_of(facts: SessionFacts, tier: str) -> Served:
    """What the worker of a tier knows of a bundle."""
    index = facts.tiers.index(tier)
    own = {step.segment: step for steps in facts.steps.values() for step in steps if step.tier == index}
    return Served(facts.tiers, own)


def bundle_bytes(bundle: str, size_bytes: int = 3_000_000) -> bytes:
    """What stands for the file of a bundle in a `Cluster`."""
    return random.Random(bundle).randbytes(size_bytes)  # noqa: S311 - made-up content
