"""The edge's machine by itself, and sessions that are welcome there, for tests of single events."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from tests.runtime.worlds import Graph, make_facts

from flagsplit.runtime.events import Instruction, Ran, Run, Send
from flagsplit.runtime.session_machine import SessionFacts
from flagsplit.runtime.testing import served_of
from flagsplit.runtime.worker_machine import WorkerHooks, WorkerMachine, WorkerOptions
from flagsplit.targets.interface import Array
from flagsplit.transport.channel import Received, Up, inbound_name
from flagsplit.transport.messages import (
    VERSION,
    Failed,
    Hello,
    Hop,
    HopTiming,
    Message,
    Open,
    PeerAddress,
    TensorHeader,
    Welcome,
)
from flagsplit.transport.tensors import chunks_of

TIERS = ("phone", "edge", "cloud")
# x → v0 on the phone → v1 on the edge → v2 in the cloud → v3 on the phone, which reads v0 again.
GRAPH = Graph((("x",), ("v0",), ("v1",), ("v2", "v0")), ("v3",))
TRIP, BY_CLOUD, ALONE = (0, 1, 2, 0), (0, 2, 2, 0), (0, 0, 0, 0)
X: dict[str, Array] = {"x": np.arange(5)}
S, T = "5" * 32, "6" * 32
SESSION, OTHER = f"in:{S}", f"in:{T}"
CLOUD = "cloud@tcp://cloud:1"


def facts(**placements: tuple[int, ...]) -> SessionFacts:
    """The graph on three tiers."""
    return make_facts(GRAPH, TIERS, placements or {"trip": TRIP, "by-cloud": BY_CLOUD, "alone": ALONE})


class Hired:
    """The edge's machine, and a session that is welcome there."""

    def __init__(
        self,
        options: WorkerOptions | None = None,
        *,
        bundles: Sequence[str] = ("d" * 64,),
        hooks: WorkerHooks | None = None,
        **known: PeerAddress,
    ) -> None:
        self.facts = facts()
        served = {bundle: served_of(self.facts, "edge") for bundle in bundles}
        self.machine = WorkerMachine("edge", served, "1" * 32, known, options, hooks=hooks)
        self.now = 100.0
        self.said: list[Instruction] = []

    def tell(self, event: object, after_s: float = 0.0) -> list[Instruction]:
        self.now += after_s
        said = self.machine.handle(event, self.now)  # type: ignore[arg-type]
        self.said += said
        return said

    def say(self, message: Message, peer: str = SESSION) -> list[Instruction]:
        return self.tell(Received(peer, message))

    def hello(self, sid: str = S, cloud: str = "tcp://cloud:1", *, key: str = "", **change: Any) -> list[Instruction]:
        peers = {"cloud": PeerAddress(cloud)} if cloud else {}
        hello = Hello(VERSION, VERSION, sid, "session", self.facts.bundle, 1000, peers)
        self.tell(Up(inbound_name(sid), key))
        return self.tell(Received(inbound_name(sid), replace(hello, **change)))

    def reach_cloud(self, name: str = "cloud@tcp://cloud:1") -> None:
        self.tell(Up(name))
        self.tell(Received(name, Welcome(VERSION, "2" * 32, 0, self.facts.bundle, "cloud", 1, 1)))

    def opened(self, rid: int = 1, attempt: int = 1, sid: str = S, deadline_ms: int = 60_000) -> Open:
        route = (
            Hop("phone", "0", ("v0",)),
            Hop("edge", "1", ("v1",)),
            Hop("cloud", "2", ("v2",)),
            Hop("edge", "", ("v2",)),
            Hop("phone", "3"),
        )
        header = TensorHeader("v0", "int64", (5,), 40)
        trace = (HopTiming("phone", "0", 1, 1, 0, 40),)
        return Open(sid, rid, attempt, 0, "trip", 1, route, (header,), deadline_ms, trace)

    def ask(self, opened: Open, sid: str = S) -> list[Instruction]:
        said = self.tell(Received(inbound_name(sid), opened))
        for chunk in chunks_of(opened, [np.arange(5)]):
            said += self.tell(Received(inbound_name(sid), chunk))
        return said

    def finish(self, sid: str = "") -> list[Instruction]:
        """Let the last run that was asked for, perhaps by one session, end."""
        runs = (said for said in reversed(self.said) if isinstance(said, Run) and sid in ("", said.client))
        run = next(runs)
        return self.tell(Ran(run.token, GRAPH.run(run.segment, run.inputs)))


def failures(said: list[Instruction]) -> list[tuple[str, str, str]]:
    """Peer, tier and code of each Failed."""
    return [
        (s.peer, s.message.tier, s.message.code) for s in said if isinstance(s, Send) and isinstance(s.message, Failed)
    ]


def messages(said: Sequence[Instruction], peer: str = "") -> list[Message]:
    """What is sent, to one peer or to all."""
    return [one.message for one in said if isinstance(one, Send) and peer in ("", one.peer)]
