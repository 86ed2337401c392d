"""A worker without room for a session is asked again, less and less often, and used when it has room."""

import numpy as np
import pytest
from tests.runtime.lone import Lone
from tests.runtime.worlds import Graph, Numbers, make_facts

from flagsplit.runtime.events import Connect, Deliver, Disconnect, Instruction, Send, Tick, TierChanged
from flagsplit.runtime.session_peers import WorkerPeer
from flagsplit.runtime.testing import Cluster
from flagsplit.runtime.worker_machine import WorkerOptions
from flagsplit.transport.channel import Down, Received, Up
from flagsplit.transport.messages import Hello, PeerAddress, Reject

_BUSY = Reject("busy", "1 peers are connected, the limit")


def _dials(said: list[Instruction]) -> list[str]:
    return [one.peer for one in said if isinstance(one, Connect)]


def _refused_once() -> Lone:
    lone = Lone()
    lone.tell(Up("edge"))
    said = lone.tell(Received("edge", _BUSY))
    assert [type(one) for one in said if not isinstance(one, TierChanged)] == [Disconnect]
    (change,) = (one for one in said if isinstance(one, TierChanged))
    assert (change.state, "no room" in change.reason) == ("down", True)
    return lone


def _next_dial(lone: Lone) -> float:
    """Seconds until the edge is dialed again."""
    started = lone.now
    for _ in range(1000):
        said = lone.tell(Tick(), after_s=max(0.0, lone.machine.next_tick() - lone.now))
        if "edge" in _dials(said):
            return lone.now - started
    raise AssertionError("the edge was never asked again")


def test_waits_grow_up_to_a_limit_and_start_anew_after_a_welcome() -> None:
    lone = _refused_once()
    waits = [_next_dial(lone)]
    for _ in range(9):
        lone.tell(Up("edge"))
        lone.tell(Received("edge", _BUSY))
        waits.append(_next_dial(lone))
    spread = waits[0] / 0.5
    assert 0.75 <= spread <= 1.25
    assert waits == pytest.approx([spread * min(0.5 * 2**times, 30.0) for times in range(10)])
    lone.up("edge")
    assert not _dials(lone.tell(Tick(), after_s=0.5))
    lone.tell(Down("edge", "reset"))
    lone.tell(Up("edge"))
    lone.tell(Received("edge", _BUSY))
    assert _next_dial(lone) == pytest.approx(waits[0])


def test_the_end_of_the_connection_comes_late_and_changes_nothing() -> None:
    lone = _refused_once()
    lone.tell(Down("edge", "the connection was lost"))
    assert _next_dial(lone) < 1.0


def test_another_refusal_is_final() -> None:
    lone = Lone()
    lone.tell(Up("edge"))
    (change,) = (one for one in lone.tell(Received("edge", Reject("bundle", "no"))) if isinstance(one, TierChanged))
    assert change.state == "refused"
    assert not any(_dials(lone.tell(Tick(), after_s=1.0)) for _ in range(100))


def test_a_word_that_answers_nothing_is_not_heeded() -> None:
    lone = Lone()
    lone.up("edge")
    lone.tell(Received("edge", _BUSY))
    said = [one for _ in range(20) for one in lone.tell(Tick(), after_s=0.1)]
    assert not _dials(said)
    assert not any(isinstance(one, Send) and isinstance(one.message, Hello) for one in said)


def test_a_tier_is_used_when_it_has_room() -> None:
    """Two sessions and a worker with one place: the second gets it when the first leaves."""
    graph = Graph((("x",), ("v0",)), ("v1",))
    facts = make_facts(graph, ("phone", "cloud"), {"cloud": (1, 1), "alone": (0, 0)})
    cluster = Cluster(facts, Numbers(graph), worker=WorkerOptions(max_peers=1))
    cluster.run(1.0)
    cluster.join("guest")
    cluster.run(20.0)
    assert _plan(cluster, graph) == "alone"
    cluster.leave("phone")
    cluster.run(40.0)
    assert _plan(cluster, graph) == "cloud"
    assert cluster.worker("cloud").stats().sessions == 1


def _plan(cluster: Cluster, graph: Graph) -> str:
    """By which plan the guest is answered, and rightly."""
    x = np.arange(5)
    rid = cluster.submit({"x": x}, name="guest")
    cluster.run(5.0)
    answer = cluster.answers[rid]
    assert isinstance(answer, Deliver)
    assert np.array_equal(answer.outputs["v1"], graph.answer(x)["v1"])
    return answer.report.plan


def test_sessions_that_were_refused_together_come_back_one_by_one() -> None:
    peers = [WorkerPeer("edge", PeerAddress("tcp://edge:1")) for _ in range(6)]
    for peer, digit in zip(peers, "0369cf", strict=True):
        peer.had_no_room(0.0, digit * 32)
    assert len({round(peer.ask_again, 3) for peer in peers}) == 6
