"""Many requests that need another plan at the same moment: the world is looked at once, and again when it changed."""

from collections import Counter
from collections.abc import Callable

import pytest
from tests.runtime import planned
from tests.runtime.lone import TIERS, Lone

from flagsplit.errors import ProtocolError
from flagsplit.runtime import relay
from flagsplit.runtime.events import Decided, Send
from flagsplit.runtime.session_machine import SessionOptions
from flagsplit.runtime.world import WorldModel
from flagsplit.splitter.pool import Pool
from flagsplit.transport.channel import Down, Received
from flagsplit.transport.messages import MAX_HEADER_BYTES, Hop, HopTiming, Open, Pong, TensorHeader, encode

ALIVE = (True, True, True)
MANY = 8


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often a state is put together, and a plan chosen for one."""
    counts: Counter[str] = Counter()
    for owner, name in ((WorldModel, "_state"), (Pool, "choose"), (Pool, "latencies_s"), (relay, "encode")):
        monkeypatch.setattr(owner, name, _counted(counts, name, getattr(owner, name)))
    return counts


def _counted(counts: Counter[str], name: str, inner: Callable[..., object]) -> Callable[..., object]:
    def counted(*args: object, **named: object) -> object:
        counts[name] += 1
        return inner(*args, **named)

    return counted


def _under_way() -> Lone:
    """Many requests at the edge."""
    lone = Lone(SessionOptions(window=MANY))
    for tier in TIERS[1:]:
        lone.up(tier)
    for rid in range(MANY):
        lone.to_edge(rid)
    return lone


def test_a_tier_that_goes_costs_one_choice_for_all_requests(calls: Counter[str]) -> None:
    lone = _under_way()
    calls.clear()
    said = lone.tell(Down("edge", "gone"), after_s=0.1)
    opened = [one.message for one in said if isinstance(one, Send) and isinstance(one.message, Open)]
    assert [(each.rid, each.plan, each.attempt) for each in opened] == [(rid, "by-cloud", 2) for rid in range(MANY)]
    assert [one.decision.to_plan for one in said if isinstance(one, Decided)] == ["by-cloud"]
    assert calls["_state"] == calls["choose"] == 1
    assert calls["latencies_s"] <= 2, "by the choice, and for how long to wait"
    assert calls["encode"] == 1, "announcements that differ in numbers only are as long"


def test_the_next_tier_that_goes_costs_another(calls: Counter[str]) -> None:
    lone = _under_way()
    lone.tell(Down("edge", "gone"))
    calls.clear()
    said = lone.tell(Down("cloud", "gone"))
    assert [one.decision.to_plan for one in said if isinstance(one, Decided)] == ["alone"]
    assert calls["_state"] == calls["choose"] == 1


def test_what_is_observed_between_two_requests_of_one_moment_counts() -> None:
    lone = _under_way()
    lone.tell(Received("cloud", Pong(0, int(lone.now * 1e6), wait_us=30_000_000)))
    lone.tell(Down("edge", "gone"))
    said = [one for one in lone.said if isinstance(one, Decided)]
    assert [one.decision.to_plan for one in said] == ["trip", "alone"], "not where requests wait for half a minute"


OBSERVATIONS: dict[str, Callable[[WorldModel], object]] = {
    "acknowledged": lambda world: world.link("phone", "edge").acked(300_000, 0, 0.0, 2.0),
    "acknowledged in part": lambda world: world.link("phone", "edge").acked(200_000, 100_000, 0.0, 2.0),
    "answered a ping": lambda world: world.link("phone", "edge").ponged(0.5, 2.0),
    "missed a ping": lambda world: world.link("phone", "edge").missed(2.0),
    "connected anew": lambda world: world.link("phone", "edge").reset(2.0),
    "told by another": lambda world: world.observe_gauge("edge", "cloud", 5e6, 0.3, 0.1, 2.0),
    "ran": lambda world: world.observe_runs(planned.usual().plan("all-edge"), {"edge": 9.0}, 2.0),
    "waited": lambda world: world.observe_wait("cloud", 3.0, 2.0),
    "time went back": lambda world: world.link("phone", "edge").sent(1, 0.25),
}


@pytest.mark.parametrize("observe", OBSERVATIONS.values(), ids=OBSERVATIONS)
def test_the_state_is_put_together_anew_after_every_observation(
    observe: Callable[[WorldModel], object], calls: Counter[str]
) -> None:
    world = WorldModel(planned.TIERS, planned.NOMINAL)
    world.link("phone", "edge").sent(300_000, 0.5)
    world.link("phone", "edge").pinged(0.5)
    before = world.state(2.0, ALIVE)
    assert world.state(2.0, list(ALIVE)) is before
    assert world.state(2.0, (True, False, True)) is not before
    assert world.state(2.0, ALIVE) is before
    calls.clear()
    observe(world)
    assert world.state(2.0, ALIVE) == world._state(2.0, ALIVE, 0.0)
    assert calls["_state"] == 2


def test_the_state_is_put_together_anew_as_time_passes(calls: Counter[str]) -> None:
    world = WorldModel(planned.TIERS, planned.NOMINAL)
    for now in (1.0, 2.0, 1.0):
        world.state(now, ALIVE)
    assert calls["_state"] == 3


def test_what_is_sent_meanwhile_says_nothing_yet(calls: Counter[str]) -> None:
    world = WorldModel(planned.TIERS, planned.NOMINAL)
    before = world.state(2.0, ALIVE)
    world.link("phone", "edge").sent(300_000, 2.0)
    world.link("phone", "edge").pinged(2.0)
    assert world.state(2.0, ALIVE) is before
    assert before == world._state(2.0, ALIVE, 0.0)
    assert calls["_state"] == 2


def test_an_announcement_that_nearly_fills_its_header_is_measured_each_time(calls: Counter[str]) -> None:
    machine = Lone().machine
    hops = (Hop("phone"), Hop("edge"))

    def opened(names: int, number: int) -> Open:
        tensors = tuple(TensorHeader(f"{at:0250}", "uint8", (1,), 1) for at in range(names))
        trace = (HopTiming("phone", "", number, number, number, number),)
        return Open("s" * 32, number, number, number, "p", 1, hops, tensors, number, trace)

    some, more = (len(encode(opened(names, 0))[0]) for names in (200, 201))
    longest = 200 + (MAX_HEADER_BYTES - some) // (more - some)
    for names, encodings in ((10, 1), (longest - 8, 1), (longest, 2)):
        calls.clear()
        machine._check_header(opened(names, 0))
        machine._check_header(opened(names, 1))
        assert calls["encode"] == encodings
    with pytest.raises(ProtocolError, match="cannot be announced"):
        machine._check_header(opened(longest + 1, 0))
