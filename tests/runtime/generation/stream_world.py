"""Clients and services of token streams on a clock that only moves when told, over a network that fails.

The network is that of `flagsplit.runtime.testing`. Engines are made up: tokens are hashes of everything that a stream
should have by then, so one that was lost, repeated or put elsewhere changes all that follow.
"""

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from tests.runtime.generation.stream_oracle import (
    BUNDLE,
    FACTS,
    STEP_S,
    VOCABULARY,
    MadeUpEngine,
    encode,
    expected,
    rows_of,
)

from flagsplit.errors import InternalError
from flagsplit.runtime.bundle_events import Served
from flagsplit.runtime.events import (
    BeginDrain,
    Connect,
    Disconnect,
    Ended,
    Event,
    Instruction,
    Leave,
    Note,
    Ran,
    Run,
    Send,
    Skip,
    Tick,
    Withdraw,
)
from flagsplit.runtime.generation.client_machine import ClientMachine
from flagsplit.runtime.generation.client_replicas import ClientFacts
from flagsplit.runtime.generation.client_streams import ClientOptions
from flagsplit.runtime.generation.options import GenerationOptions
from flagsplit.runtime.generation.service_machine import StreamMachine
from flagsplit.runtime.generation.stream_events import (
    Ask,
    Begin,
    GiveTokens,
    Made,
    MakeRows,
    Over,
    Place,
    Quit,
    RowsMade,
    RunLocal,
    Stop,
    StopLocal,
    StreamRequest,
)
from flagsplit.runtime.testing_network import Network, Node, Span, Times
from flagsplit.runtime.worker_machine import WorkerOptions
from flagsplit.transport.messages import Message, PeerAddress
from flagsplit.transport.testing import VirtualClock


@dataclass
class Told:
    """What the application was told of one stream."""

    request: StreamRequest
    tokens: list[int] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)
    over: Over | None = None


class StreamWorld:
    """Some services and clients; arguments and attributes as for `flagsplit.runtime.testing.Cluster`."""

    def __init__(
        self,
        replicas: int = 2,
        *,
        seed: int = 0,
        slots: int = 8,
        client: ClientOptions | None = None,
        service: WorkerOptions | None = None,
        local: bool = False,
    ) -> None:
        self.clock = VirtualClock()
        self.watch: Callable[[str, str, Message], None] = lambda _source, _target, _message: None
        self.fate: Callable[[str, str, Message], Sequence[float]] = lambda _source, _target, _message: (0.0,)
        self.story: deque[str] = deque(maxlen=400)
        self.told: dict[tuple[str, int], Told] = {}
        self.random = random.Random(seed)
        self.engines: dict[str, MadeUpEngine] = {}
        self._times = Times()
        self._service, self._client, self._slots = service or WorkerOptions(), client or ClientOptions(), slots
        self._local = local
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers, self._rids = itertools.count(), itertools.count(1)
        self.network = Network(self, self._times, self.random)
        self._nodes: dict[str, Node] = {}
        self._here: dict[tuple[str, int], int] = {}
        self.names = [f"r{index}" for index in range(replicas)]
        for name in self.names:
            self.start(name)

    def node(self, tier: str) -> Node:
        return self._nodes[tier]

    def start(self, name: str) -> None:
        """Start a service that is not running."""
        if name in self._nodes and self._nodes[name].alive:
            return
        instance = self.random.randbytes(16).hex()
        machine = StreamMachine(
            "cloud", {BUNDLE: Served(("phone", "cloud"), {})}, instance, {BUNDLE: FACTS}, self._service
        )
        node = self._nodes[name] = Node(name, instance, machine)
        self.engines[name] = MadeUpEngine(self, node, self._slots)
        self.note(f"{name} starts")
        self._plan_tick(node)

    def join(self, name: str = "c", replicas: Sequence[str] | None = None) -> None:
        """Start a client."""
        instance = self.random.randbytes(16).hex()
        addresses = [PeerAddress(f"sim://{each}") for each in (self.names if replicas is None else replicas)]
        machine = ClientMachine(ClientFacts(BUNDLE), addresses, instance, self._client, has_local=self._local)
        node = self._nodes[name] = Node(name, instance, machine)
        self._follow(node, machine.start())
        self._plan_tick(node)

    def ask(self, request: StreamRequest, client: str = "c") -> Told:
        """Ask for a stream."""
        rid = next(self._rids)
        told = self.told[client, rid] = Told(request)
        self.tell_node(self._nodes[client], Ask(rid, request))
        return told

    def cancel(self, told: Told) -> None:
        client, rid = next(key for key, each in self.told.items() if each is told)
        self.tell_node(self._nodes[client], Stop(rid))

    def request(self, *, rows: bool = False, deadline_s: float = 120.0, most: int = 40, key: str = "") -> StreamRequest:
        """A stream like no other."""
        draw = self.random
        options = GenerationOptions(max_tokens=draw.randint(1, most), seed=draw.randint(0, 2))
        deadline = self.clock.now_s() + deadline_s
        prompt = tuple(draw.randint(2, VOCABULARY - 1) for _ in range(draw.randint(1 if rows else 0, 4)))
        if rows:
            return StreamRequest(None, prompt, options, "p1", deadline, key)
        plan = draw.choice(["p1", "p2"])
        size = draw.choice([3, 40_000])
        tensors = {name: np.array([draw.random()] * size, np.float32)[None] for name in FACTS.cuts[plan]}
        return StreamRequest(tensors, prompt, options, plan, deadline, key)

    def drain(self, name: str) -> None:
        self.tell_node(self._nodes[name], BeginDrain("it is to end"))

    def kill(self, name: str) -> None:
        self._end(self._nodes[name], "killed")

    def stop(self, name: str) -> None:
        """Freeze a process: it neither hears nor says anything, and nobody is told."""
        self._nodes[name].stopped = True
        self.note(f"{name} freezes")

    def resume(self, name: str) -> None:
        node = self._nodes[name]
        node.stopped = False
        self.note(f"{name} goes on")
        missed, node.missed = node.missed, []
        for event in missed:
            self.tell_node(node, event)
        self._plan_tick(node)

    def lose(self, one: str, other: str) -> None:
        """Break the connection between two processes that live on."""
        for connection in list(self._nodes[one].connections.values()):
            if {end.tier for end in connection.ends} == {one, other}:
                for end in (0, 1):
                    self.later(self._times.notice_s, lambda c=connection, e=end: self.network.lose(c, e, "reset"))  # type: ignore[misc]

    def run(self, seconds: float) -> None:
        end = self.clock.now_s() + seconds
        while self._agenda and self._agenda[0][0] <= end:
            due, _, action = heapq.heappop(self._agenda)
            self.clock.advance(max(0.0, due - self.clock.now_s()))
            action()
        self.clock.advance(max(0.0, end - self.clock.now_s()))

    def at(self, time_s: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._agenda, (max(time_s, self.clock.now_s()), next(self._numbers), action))

    def later(self, span: Span, action: Callable[[], None]) -> None:
        self.at(self.clock.now_s() + self.random.uniform(*span), action)

    def note(self, text: str) -> None:
        self.story.append(f"{self.clock.now_s():.3f} {text}")

    def tell_node(self, node: Node, event: Event) -> None:
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
            if node.next_tick < float("inf"):
                self.at(node.next_tick, lambda: self._tick(node))

    def _tick(self, node: Node) -> None:
        if node.alive and not node.stopped:
            node.next_tick = -1.0
            if node.machine.next_tick() <= self.clock.now_s():
                self.tell_node(node, Tick())
            self._plan_tick(node)

    def _end(self, node: Node, how: str) -> None:
        if node.alive:
            node.alive = False
            self.note(f"{node.tier} is {how}")
            for connection in dict.fromkeys((*node.connections.values(), *node.accepted)):
                self.network.close(connection, connection.ends.index(node), f"{node.tier} is gone")

    def leave(self, name: str) -> None:
        node = self._nodes[name]
        if node.alive:
            self.tell_node(node, Leave())
            self._end(node, "left")

    def _follow(self, node: Node, instructions: list[Instruction]) -> None:
        for instruction in instructions:
            match instruction:
                case Send(peer, message):
                    self.network.send(node, peer, message)
                case Connect(peer, address, _):
                    node.dials[peer] = address.removeprefix("sim://")
                    node.told_down.discard(peer)
                    self.later((0.0, 0.01), lambda peer=peer: self.network.dial(node, peer))  # type: ignore[misc]
                case Disconnect(peer):
                    node.dials.pop(peer, None)
                    self.network.hang_up(node, peer)
                case Withdraw(peer, sid, rid):
                    self.network.withdraw(node, peer, sid, rid)
                case Ended(reason):
                    self.note(f"{node.tier} ended: {reason}")
                    self.later((0.0, 0.0), lambda: self.leave(node.tier))
                case Run():
                    self.later((0.001, 0.05), lambda run=instruction: self._encode(node, run))  # type: ignore[misc]
                case Skip() | StopLocal():
                    pass
                case Begin(generate):
                    self.engines[node.tier].submit(generate)
                case Quit(stream_id):
                    self.engines[node.tier].cancel(stream_id)
                case Note(text):
                    self.note(f"{node.tier}: {text}")
                case _:
                    self._tell_application(node, instruction)

    def _encode(self, node: Node, run: Run) -> None:
        outputs = encode(run.segment, run.inputs)
        self.tell_node(node, Ran(run.token, outputs))

    def _tell_application(self, node: Node, instruction: Instruction) -> None:
        match instruction:
            case GiveTokens(rid, offset, tokens, place):
                told = self.told[node.tier, rid]
                assert offset == len(told.request.delivered) + len(told.tokens), f"stream {rid}: token {offset}"
                assert told.over is None
                told.tokens += tokens
                told.places += [place] * len(tokens)
            case Over(rid):
                told = self.told[node.tier, rid]
                assert told.over is None, f"stream {rid} ended twice"
                told.over = instruction
                self.note(f"stream {rid} ends: {instruction.reason} {instruction.error or ''}")
            case RunLocal(rid, attempt, request, delivered):
                self._here[node.tier, rid] = attempt
                self._local_step(node, rid, attempt, request, list(delivered))
            case MakeRows(rid, position, tokens):
                told = self.told[node.tier, rid]
                every = [*told.request.prompt, *told.tokens]
                assert tuple(every[position:]) == tokens
                self.later(
                    (0.001, 0.01),
                    lambda: self.tell_node(node, RowsMade(rid, position, rows_of(every, position))),
                )
            case _:
                raise InternalError(f"nobody follows {instruction}")

    def _local_step(self, node: Node, rid: int, attempt: int, request: StreamRequest, made: list[int]) -> None:
        wanted, reason = expected(request)
        if made == wanted:
            done = Made(rid, attempt, len(made), (), last=True, reason=reason)
            self.later(STEP_S, lambda: self.tell_node(node, done))
            return
        event = Made(rid, attempt, len(made), (wanted[len(made)],))

        def step() -> None:
            self.tell_node(node, event)
            self._local_step(node, rid, attempt, request, wanted[: len(made) + 1])

        self.later(STEP_S, step)
