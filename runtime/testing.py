"""Fakes for tests of the runtime, ours and others': a session and its workers on a clock that only moves when told.

A `Cluster` drives sessions and a `WorkerMachine` per tier without threads or sockets, over the network and on the clock
of a `Simulation`.
"""

import itertools
import random
from collections.abc import Callable, Mapping

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
from flagsplit.runtime.events import Abandon, Deliver, Event, Fail, Instruction, Ran, Run, Skip, Submit, TierChanged
from flagsplit.runtime.session_machine import SessionFacts, SessionMachine, SessionOptions
from flagsplit.runtime.testing_network import Node
from flagsplit.runtime.testing_network import Times as Times
from flagsplit.runtime.testing_simulation import Simulation
from flagsplit.runtime.worker_machine import WorkerHooks, WorkerMachine, WorkerOptions
from flagsplit.targets.interface import Array
from flagsplit.transport.channel import inbound_name
from flagsplit.transport.messages import Message, PeerAddress

Compute = Callable[[str, str, Mapping[str, Array]], Mapping[str, Array]]
"""Runs a segment: tier, segment id and inputs to outputs. A FlagsplitError counts as a failed run."""


class Cluster(Simulation):
    """A session, and a worker for each tier beyond it. All start at time 0.

    Args:
        facts: of the bundle; the session's tier is the first.
        compute: stands for all engines.
        seed: same seed and same calls, same history.
        session: options of the session.
        worker: options of all workers.
        times: how long things take.

    Attributes:
        answers: what became of each request, by number.
        tiers: the last word of the session about each tier.
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
        super().__init__(seed, times)
        self.answers: dict[int, Deliver | Fail] = {}
        self.tiers: dict[str, TierChanged] = {}
        self._facts, self._options, self._worker = facts, session, worker
        self._library = {facts.bundle: (facts, compute)}
        self._at_start = [facts.bundle]
        self._rids = itertools.count(1)
        self._slowdown: dict[str, float] = {}
        for tier in facts.tiers[1:]:
            self.start(tier)
        self.session = self.join(facts.tiers[0])

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

    def submit(self, inputs: Mapping[str, Array], deadline_s: float = 60.0, plan: str = "", *, name: str = "") -> int:
        """Ask; the answer will be in `answers` under the number that comes back."""
        rid = next(self._rids)
        node = self._nodes[name] if name else self.session
        self.tell_node(node, Submit(rid, inputs, self.clock.now_s() + deadline_s, plan))
        return rid

    def abandon(self, rid: int) -> None:
        """Give a request up."""
        self.tell_node(self.session, Abandon(rid))

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

    def slow(self, tier: str, factor: float) -> None:
        """Slow an engine down from its next run on."""
        self._slowdown[tier] = factor

    def worker(self, tier: str) -> WorkerMachine:
        """The machine of a worker as it is now."""
        machine = self._nodes[tier].machine
        if not isinstance(machine, WorkerMachine):
            raise InternalError(f"{tier} is the session's own tier")
        return machine

    def send(self, tier: str, message: Message) -> None:
        """Say something to the session in a worker's name."""
        node = self._nodes[tier]
        self.network.send(node, inbound_name(self.session.instance), message)

    def _do(self, node: Node, instruction: Instruction) -> None:
        match instruction:
            case Run():
                node.jobs.append((instruction, self.clock.now_s()))
                self._begin(node)
            case Skip(token):
                self._skip(node, token)
            case Deliver(rid) | Fail(rid):
                if rid in self.answers:
                    raise InternalError(f"request {rid} was answered twice: {self.answers[rid]}, {instruction}")
                self.answers[rid] = instruction
            case TierChanged(tier, state, reason):
                self.note(f"session: {tier} {state} {reason}")
                if not hasattr(self, "session") or node is self.session:
                    self.tiers[tier] = instruction
            case OpenUpload() | StorePart() | CloseUpload() | LoadBundle() | UnloadBundle():
                self._take_in(node, instruction)

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
        takes_s = self.random.uniform(*self._times.run_s) * self._slowdown.get(node.tier, 1.0)
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
