"""Clients and services of token streams on a clock that only moves when told, over a network that fails.

The network is that of `flagsplit.runtime.testing_simulation`. Engines are made up: tokens are hashes of everything that
a stream should have by then, so one that was lost, repeated or put elsewhere changes all that follow.
"""

import itertools
from collections.abc import Sequence
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
from flagsplit.runtime.events import Instruction, Ran, Run, Skip
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
from flagsplit.runtime.testing_network import Node
from flagsplit.runtime.testing_simulation import Simulation
from flagsplit.runtime.worker_machine import WorkerOptions
from flagsplit.transport.messages import PeerAddress


@dataclass
class Told:
    """What the application was told of one stream."""

    request: StreamRequest
    tokens: list[int] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)
    over: Over | None = None


class StreamWorld(Simulation):
    """Some services and clients."""

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
        super().__init__(seed)
        self.told: dict[tuple[str, int], Told] = {}
        self.engines: dict[str, MadeUpEngine] = {}
        self._service, self._client, self._slots = service or WorkerOptions(), client or ClientOptions(), slots
        self._local = local
        self._rids = itertools.count(1)
        self._here: dict[tuple[str, int], int] = {}
        self.names = [f"r{index}" for index in range(replicas)]
        for name in self.names:
            self.start(name)

    def start(self, name: str) -> None:
        """Start a service that is not running."""
        if name in self._nodes and self._nodes[name].alive:
            return
        instance = self._new_instance()
        machine = StreamMachine(
            "cloud", {BUNDLE: Served(("phone", "cloud"), {})}, instance, {BUNDLE: FACTS}, self._service
        )
        node = self._nodes[name] = Node(name, instance, machine)
        self.engines[name] = MadeUpEngine(self, node, self._slots)
        self.note(f"{name} starts")
        self._plan_tick(node)

    def join(self, name: str = "c", replicas: Sequence[str] | None = None) -> None:
        """Start a client."""
        instance = self._new_instance()
        addresses = [PeerAddress(f"sim://{each}") for each in (self.names if replicas is None else replicas)]
        machine = ClientMachine(ClientFacts(BUNDLE), addresses, instance, self._client, has_local=self._local)
        self.host(name, name, instance, machine, machine.start())

    def ask(self, request: StreamRequest, client: str = "c") -> Told:
        """Ask for a stream."""
        rid = next(self._rids)
        told = self.told[client, rid] = Told(request)
        self.tell(client, Ask(rid, request))
        return told

    def cancel(self, told: Told) -> None:
        client, rid = next(key for key, each in self.told.items() if each is told)
        self.tell(client, Stop(rid))

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

    def _do(self, node: Node, instruction: Instruction) -> None:
        match instruction:
            case Run():
                self.later((0.001, 0.05), lambda: self._encode(node, instruction))
            case Skip() | StopLocal():
                pass
            case Begin(generate):
                self.engines[node.tier].submit(generate)
            case Quit(stream_id):
                self.engines[node.tier].cancel(stream_id)
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
