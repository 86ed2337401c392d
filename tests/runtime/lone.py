"""A session machine without anything around it, for tests that speak every event themselves."""

from dataclasses import replace

import numpy as np
from tests.runtime.worlds import Graph, make_facts

from flagsplit.runtime.events import Instruction, Ran, Run, Send, Submit
from flagsplit.runtime.session_machine import SessionFacts, SessionMachine, SessionOptions
from flagsplit.targets.interface import Array
from flagsplit.transport.channel import Received, Up
from flagsplit.transport.messages import FEATURES, VERSION, HopTiming, Open, PeerAddress, TensorHeader, Welcome

TIERS = ("phone", "edge", "cloud")
# x → v0 on the phone → v1 on the edge → v2 in the cloud → v3 on the phone, which reads v0 again.
GRAPH = Graph((("x",), ("v0",), ("v1",), ("v2", "v0")), ("v3",))
TRIP, BY_CLOUD, ALONE = (0, 1, 2, 0), (0, 2, 2, 0), (0, 0, 0, 0)
X: dict[str, Array] = {"x": np.arange(5)}
S = "5" * 32
SESSION = f"in:{S}"


def facts(**placements: tuple[int, ...]) -> SessionFacts:
    return make_facts(GRAPH, TIERS, placements or {"trip": TRIP, "by-cloud": BY_CLOUD, "alone": ALONE})


class Lone:
    """A session machine and what it said."""

    def __init__(self, options: SessionOptions | None = None, **placements: tuple[int, ...]) -> None:
        addresses = {tier: PeerAddress(f"tcp://{tier}:1") for tier in TIERS[1:]}
        self.facts = facts(**placements)
        self.machine = SessionMachine(self.facts, addresses, S, options)
        self.now = 100.0
        self.said: list[Instruction] = self.machine.start()

    def tell(self, event: object, after_s: float = 0.0) -> list[Instruction]:
        self.now += after_s
        said = self.machine.handle(event, self.now)  # type: ignore[arg-type]
        self.said += said
        return said

    def up(self, tier: str) -> None:
        self.tell(Up(tier))
        self.tell(Received(tier, self.welcome(tier)))

    def welcome(self, tier: str) -> Welcome:
        return Welcome(VERSION, "0" * 32, 0, self.facts.bundle, tier, 1 << 20, 1 << 20, FEATURES)

    def submit(self, rid: int = 1, deadline_s: float = 60.0, plan: str = "") -> list[Instruction]:
        return self.tell(Submit(rid, X, self.now + deadline_s, plan))

    def sent(self, kind: type) -> list[object]:
        return [said.message for said in self.said if isinstance(said, Send) and isinstance(said.message, kind)]

    def run(self) -> Run:
        return next(said for said in reversed(self.said) if isinstance(said, Run))

    def ran(self) -> list[Instruction]:
        run = self.run()
        return self.tell(Ran(run.token, GRAPH.run(run.segment, run.inputs)))

    def to_edge(self, rid: int = 1) -> Open:
        """Submit, run the first segment; gives what went to the edge."""
        self.submit(rid)
        opened = [said.message for said in self.ran() if isinstance(said, Send) and isinstance(said.message, Open)]
        return opened[0]


def timing() -> HopTiming:
    """Of some hop."""
    return HopTiming("edge", "1", 1, 1, 1, 1)


def answer_to(opened: Open) -> Open:
    """What the edge would send to the phone at the end."""
    header = TensorHeader("v2", "int64", (5,), 40)
    return replace(opened, hop=4, tensors=(header,), trace=(timing(),) * 4, inline_crc32=None, payload=b"")
