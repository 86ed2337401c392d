"""Three tiers on one host, slowed down, joined by shaped links, and what the runtime itself costs here.

The phone runs in the session, edge and cloud are worker processes, one proxy stands for each link. What a plan is
predicted to take in a network follows from the network's figures and from `Overheads`, measured once on a model that
computes nothing to speak of.
"""

import statistics
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from onnx import TensorProto, helper, save

import flagsplit
from flagsplit.apps.groundwork import BuildOptions
from flagsplit.apps.local import LocalWorkers
from flagsplit.apps.pipeline import build
from flagsplit.runtime.bundle import Bundle
from flagsplit.runtime.session import Answer, Session, SessionSettings
from flagsplit.splitter.state import State
from flagsplit.targets.interface import Array, LoadOptions
from flagsplit.transport.emulation import LinkShape, ShapingProxy

TIERS = ("phone", "edge", "cloud")
SLOWDOWNS = {"phone": 12.0, "edge": 4.0, "cloud": 1.0}
_PROBE_BYTES = 2 << 20
_PROBE_RUNS = 15


@dataclass(frozen=True)
class Way:
    """A link: Mbit/s away from the phone and towards it, and milliseconds one way."""

    up_mbit: float
    down_mbit: float
    delay_ms: float

    @property
    def shapes(self) -> tuple[LinkShape, LinkShape]:
        """What the proxy does, up and down."""
        delay_s = self.delay_ms / 1e3
        return LinkShape(self.up_mbit * 1e6 / 8, delay_s), LinkShape(self.down_mbit * 1e6 / 8, delay_s)


Network = tuple[Way, Way]
"""From the phone to the edge, from the edge to the cloud."""

NETWORKS: dict[str, Network] = {
    "wifi": (Way(100, 150, 2.5), Way(200, 200, 8)),
    "lan": (Way(400, 400, 0.5), Way(400, 400, 2)),
    "5g": (Way(40, 200, 8), Way(200, 200, 8)),
    "lte": (Way(12, 40, 22), Way(200, 200, 15)),
    "bad": (Way(4, 8, 60), Way(50, 50, 20)),
}
NOMINAL = "wifi"


@dataclass(frozen=True)
class Overheads:
    """What the runtime costs on this host, beside computing and the wire.

    Attributes:
        message_s: for each message that a tier acts on, the request at the phone included.
        byte_s: for each byte over a link: checksums, encryption, copies.
    """

    message_s: float
    byte_s: float

    def state(self, network: Network, slowdown: float = 1.0) -> State:
        """A network as the planner sees it, and how fast this host is now."""
        delays = tuple(way.delay_ms / 1e3 for way in network)
        return State(
            slowdown=(slowdown,) * len(TIERS),
            up_s_per_byte=tuple(8e-6 / way.up_mbit + self.byte_s for way in network),
            down_s_per_byte=tuple(8e-6 / way.down_mbit + self.byte_s for way in network),
            up_s_per_message=delays,
            down_s_per_message=delays,
            alive=(True,) * len(TIERS),
        )

    def links(self, network: Network) -> dict[str, str]:
        """The same as options of a build."""
        state = self.state(network)
        rates = zip(state.up_s_per_byte, state.down_s_per_byte, strict=True)
        texts = [f"{8 / up:.0f}bit:{8 / down:.0f}bit" for up, down in rates]
        return {
            tier: f"{text}/{2 * way.delay_ms:g}ms" for tier, text, way in zip(TIERS[1:], texts, network, strict=True)
        }


class Line:
    """A bundle on the three tiers. Use it in a `with` statement."""

    def __init__(self, bundle: Bundle) -> None:
        self._stack = ExitStack()
        try:
            workers = LocalWorkers(bundle.path, TIERS[1:], slowdowns=SLOWDOWNS)
            self._stack.enter_context(workers)
            free = LinkShape(float("inf"))
            ports = {tier: int(at.address.rpartition(":")[2]) for tier, at in workers.addresses.items()}
            self._links = [self._stack.enter_context(ShapingProxy("127.0.0.1", port, free)) for port in ports.values()]
            settings = SessionSettings(slowdown=SLOWDOWNS["phone"], emulated=True, host=LoadOptions(threads=1))
            # An edge learns from the session where the cloud is, so it goes through the second link as well.
            addresses = {tier: link.address for tier, link in zip(ports, self._links, strict=True)}
            self._session: Session = self._stack.enter_context(flagsplit.connect(bundle, addresses, settings=settings))
        except BaseException:
            self._stack.close()
            raise

    def join_by(self, network: Network) -> None:
        """Another network from now on."""
        for link, way in zip(self._links, network, strict=True):
            link.set_shapes(*way.shapes)

    def ask(self, inputs: Mapping[str, Array], plan: str = "") -> Answer:
        """Ask once, by that plan if it can be, or by the session's own choice."""
        return self._session.run(inputs, plan=plan)

    def run(self, inputs: Mapping[str, Array], plan: str) -> Answer:
        """Ask once, by that plan and no other."""
        answer = self._session.run(inputs, plan=plan)
        if (answer.report.plan, answer.report.attempts) != (plan, 1):
            raise RuntimeError(
                f"plan {plan} was asked for, {answer.report.plan} answered: {list(self._session.events)}"
            )
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def measure_overheads(folder: Path) -> Overheads:
    """Send little and much to the edge and to the cloud; what is left after computing and the wire is the runtime's."""
    line = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "probe", line[:1], line[1:])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), folder / "probe.onnx")
    build(folder / "probe.onnx", TIERS, folder / "probe.flagsplit", options=BuildOptions(dims={"n": 16}))
    network = NETWORKS["lan"]
    with Line(flagsplit.open(folder / "probe.flagsplit")) as tiers:
        tiers.join_by(network)
        small, large = ({"x": np.zeros(count, np.float32)} for count in (16, _PROBE_BYTES // 4))
        message_s, byte_s = [], []
        for plan, ways in (("all-edge", network[:1]), ("all-cloud", network)):
            wire_s = sum(2 * way.delay_ms / 1e3 for way in ways)
            idle_s, busy_s = _overhead_s(tiers, small, plan), _overhead_s(tiers, large, plan)
            message_s.append((idle_s - wire_s) / (1 + 2 * len(ways)))
            sent_s = sum(_PROBE_BYTES * 8e-6 * (1 / way.up_mbit + 1 / way.down_mbit) for way in ways)
            byte_s.append(max(0.0, busy_s - idle_s - sent_s) / (2 * len(ways) * _PROBE_BYTES))
    return Overheads(statistics.mean(message_s), statistics.mean(byte_s))


def _overhead_s(line: Line, inputs: Mapping[str, Array], plan: str) -> float:
    """Median seconds of a request that nothing computed in."""
    reports = [line.run(inputs, plan).report for _ in range(_PROBE_RUNS + 1)][1:]
    return statistics.median(r.latency_ms - sum(tier.run_ms for tier in r.tiers) for r in reports) / 1e3
