"""Credit against a model of a connection: never beyond the limit, never stuck, exact whatever the interleaving."""

import random
from collections import deque
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flagsplit.errors import ConfigError, ProtocolError
from flagsplit.transport.channel import Acked, ChannelOptions, SendQueue
from flagsplit.transport.credit import Allowance, Grant
from flagsplit.transport.flow import Flow
from flagsplit.transport.messages import CREDIT, VERSION, Credit, Hello, Lane, Probe, Welcome, encode

ACK_DELAY_S = 0.01


@dataclass
class Line:
    """A sender and a receiver with two lanes between them, of which each keeps its own order."""

    window_bytes: int
    to_send: deque[int]
    now_s: float = 0.0
    data: deque[int] = field(default_factory=deque)
    credits: deque[Credit] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.largest_bytes = max(self.to_send, default=0)
        self.total_bytes = sum(self.to_send)
        self.widest_bytes = self.window_bytes
        self.allowance, self.grant = Allowance(), Grant(self.window_bytes, ACK_DELAY_S)
        self.allowance.limit_bytes = self.window_bytes
        self.grant.start(self.window_bytes)

    def send(self) -> bool:
        if not self.to_send or not self.allowance.admits(self.to_send[0]):
            return False
        self.allowance.spend(self.to_send[0])
        self.data.append(self.to_send.popleft())
        return True

    def take(self) -> bool:
        if not self.data:
            return False
        self.grant.take(self.data.popleft(), self.now_s)
        return True

    def say(self) -> bool:
        due_s = self.grant.due_s()
        if due_s is None or due_s > self.now_s:
            return False
        credit = self.grant.credit(self.now_s)
        self.grant.told(credit)
        self.credits.append(credit)
        return True

    def hear(self) -> bool:
        if not self.credits:
            return False
        self.allowance.credit(self.credits.popleft())
        return True

    def check(self) -> None:
        """What must hold at any time; in particular that nothing the receiver could have to keep is unbounded."""
        out_bytes = self.allowance.sent_bytes - self.grant.received_bytes
        assert out_bytes == sum(self.data)
        assert out_bytes <= max(self.widest_bytes, self.largest_bytes)
        assert self.allowance.acked_bytes <= self.grant.received_bytes
        assert self.allowance.limit_bytes is not None
        assert self.grant.limit_bytes is not None
        assert self.allowance.limit_bytes <= self.grant.limit_bytes

    def settle(self) -> None:
        """Let both sides do what they can, and time pass where they cannot, until nothing is left to do."""
        for _ in range(20 * (len(self.to_send) + len(self.data) + len(self.credits) + 2)):
            if not any([self.send(), self.take(), self.say(), self.hear()]):
                due_s = self.grant.due_s()
                if due_s is None:
                    return
                self.now_s = max(self.now_s, due_s)
            self.check()


SIZES = st.lists(st.integers(1, 60), max_size=40)
STEPS = st.lists(st.sampled_from(["send", "take", "say", "hear", "wait", "pause", "go on", "resize"]), max_size=150)


@pytest.mark.slow
@settings(deadline=None)
@given(st.integers(1, 100), SIZES, STEPS, st.randoms(use_true_random=False))
def test_never_too_much_and_never_stuck(
    window_bytes: int, sizes: list[int], steps: list[str], rng: random.Random
) -> None:
    line = Line(window_bytes, deque(sizes))
    for step in steps:
        match step:
            case "wait":
                line.now_s += ACK_DELAY_S * rng.random()
            case "pause":
                line.grant.paused = True
            case "go on":
                line.grant.paused = False
            case "resize":
                line.grant.window_bytes = rng.randint(1, 100)
                line.widest_bytes = max(line.widest_bytes, line.grant.window_bytes)
            case _:
                getattr(line, step)()
        line.check()
    line.grant.paused = False
    line.settle()
    assert not line.to_send, "a consumer that consumes must let everything through"
    assert line.allowance.acked_bytes == line.grant.received_bytes == line.total_bytes


@settings(deadline=None)
@given(st.integers(1, 100), SIZES, st.randoms(use_true_random=False))
def test_a_paused_receiver_gets_what_it_granted_and_acknowledges_it(
    window_bytes: int, sizes: list[int], rng: random.Random
) -> None:
    line = Line(window_bytes, deque(sizes))
    for _ in range(rng.randint(0, 60)):
        getattr(line, rng.choice(["send", "take", "say", "hear"]))()
    line.grant.paused = True
    granted_bytes = line.grant.limit_bytes
    assert granted_bytes is not None
    line.settle()
    assert line.grant.limit_bytes == granted_bytes
    assert line.grant.received_bytes == line.allowance.sent_bytes == line.allowance.acked_bytes
    assert line.grant.received_bytes <= granted_bytes + max(0, line.largest_bytes - 1)


@settings(deadline=None)
@given(st.integers(1, 100), st.lists(st.integers(1, 60), min_size=1, max_size=60))
def test_a_sender_that_ignores_its_limit_is_found_out(window_bytes: int, sizes: list[int]) -> None:
    grant = Grant(window_bytes, ACK_DELAY_S)
    grant.start(window_bytes)
    received_bytes = 0
    for size_bytes in sizes:
        if received_bytes and received_bytes + size_bytes > window_bytes:
            with pytest.raises(ProtocolError, match="before more credit"):
                grant.take(size_bytes, 0.0)
            return
        grant.take(size_bytes, 0.0)
        received_bytes += size_bytes
    assert grant.received_bytes == received_bytes


def test_credit_is_due_after_a_quarter_of_the_window_or_the_delay() -> None:
    grant = Grant(100, ACK_DELAY_S)
    grant.take(1, 0.0)
    assert grant.due_s() is None, "nothing is due before the peer knows of credit"
    grant.start(100)
    assert grant.due_s() == ACK_DELAY_S
    grant.take(23, 0.004)
    assert grant.due_s() == ACK_DELAY_S
    grant.take(1, 0.008)
    assert grant.due_s() == 0.008
    credit = grant.credit(0.009)
    assert credit == Credit(25, 125, 1000)
    grant.told(credit)
    assert grant.due_s() is None


def test_a_trickle_is_acknowledged_once_per_delay() -> None:
    grant = Grant(1 << 20, ACK_DELAY_S)
    grant.start(1 << 20)
    said = []
    for millisecond in range(100):
        now_s = millisecond / 1000
        due_s = grant.due_s()
        if due_s is not None and due_s <= now_s:
            said.append(now_s)
            grant.told(grant.credit(now_s))
        grant.take(1, now_s)
    assert len(said) == 9


def test_what_cannot_be_told_is_told_later() -> None:
    grant = Grant(100, ACK_DELAY_S)
    grant.start(100)
    grant.take(50, 1.0)
    assert grant.due_s() == 1.0
    grant.postpone(1.0)
    assert grant.due_s() == 1.0 + ACK_DELAY_S
    assert grant.credit(1.01).limit_bytes == 150


def test_held_credit_comes_when_its_time_has_come() -> None:
    grant = Grant(100, ACK_DELAY_S)
    grant.start(100)
    grant.take(50, 1.0)
    grant.hold(3.0)
    credit = grant.credit(1.0)
    assert credit == Credit(50, 100, 0)
    grant.told(credit)
    assert grant.due_s() == 3.0
    assert grant.credit(3.0).limit_bytes == 150


@pytest.mark.parametrize(
    ("credit", "match"),
    [
        (Credit(31, 200), "expected 10..30"),
        (Credit(9, 200), "expected 10..30"),
        (Credit(20, 99), "never taken back"),
    ],
)
def test_credit_that_contradicts_is_refused(credit: Credit, match: str) -> None:
    allowance = Allowance()
    allowance.limit_bytes = 100
    allowance.spend(30)
    allowance.credit(Credit(10, 100))
    with pytest.raises(ProtocolError, match=match):
        allowance.credit(credit)
    assert (allowance.acked_bytes, allowance.limit_bytes) == (10, 100)


def hello(features: tuple[str, ...] = (), credit_bytes: int = 0) -> Hello:
    return Hello(VERSION, VERSION, "0" * 32, "session", "sha256:0", 1000, {}, features, credit_bytes)


def welcome(features: tuple[str, ...] = (), credit_bytes: int = 0) -> Welcome:
    return Welcome(VERSION, "0" * 32, 0, "sha256:0", "edge", 1 << 20, 1 << 20, features, credit_bytes)


def test_hello_and_welcome_are_stamped_where_they_say_nothing() -> None:
    flow = Flow(ChannelOptions(window_bytes=5000))
    assert flow.stamped(hello(("probe",))) == hello(("probe", CREDIT), 5000)
    assert flow.stamped(welcome()) == welcome((CREDIT,), 5000)
    assert flow.stamped(hello((CREDIT,), 7)) == hello((CREDIT,), 7)
    probe = Probe(1, 0, b"x")
    assert flow.stamped(probe) is probe
    flow.resize(6000)
    assert flow.stamped(welcome()).credit_bytes == 6000
    flow.pause(True)
    assert flow.stamped(welcome()).credit_bytes == 1, "0 would stand for no limit"
    off = Flow(ChannelOptions(window_bytes=0))
    assert off.stamped(hello()) == hello()
    off.resize(1000)
    assert off.stamped(hello()) == hello(), "what is off stays off"


@pytest.mark.parametrize(
    ("ours", "theirs", "limit_bytes", "granted_bytes"),
    [
        (hello((CREDIT,), 10), welcome((CREDIT,), 20), 20, 10),
        (hello((CREDIT,), 10), welcome((CREDIT,), 0), None, 10),
        (hello((CREDIT,), 10), welcome((), 20), None, None),
        (hello((), 0), welcome((CREDIT,), 20), None, None),
    ],
)
def test_limits_hold_when_both_named_the_feature(
    ours: Hello, theirs: Welcome, limit_bytes: int | None, granted_bytes: int | None
) -> None:
    flow = Flow(ChannelOptions())
    flow.sent(ours)
    assert (flow.allowance.limit_bytes, flow.grant.limit_bytes) == (None, None)
    flow.came(theirs, [b""], 0.0)
    assert (flow.allowance.limit_bytes, flow.grant.limit_bytes) == (limit_bytes, granted_bytes)
    flow.came(replaced := welcome((CREDIT,), 1 << 30), encode(replaced), 0.0)
    assert flow.allowance.limit_bytes == limit_bytes, "only the first one counts"


def test_a_credit_nobody_agreed_on_is_refused() -> None:
    flow = Flow(ChannelOptions())
    with pytest.raises(ProtocolError, match="feature"):
        flow.acked("edge", Credit(0, 1))
    with pytest.raises(ConfigError, match="pause"):
        flow.resize(0)


def test_acked_counts_what_is_queued() -> None:
    flow = Flow(ChannelOptions())
    flow.sent(hello((CREDIT,), 10))
    flow.came(welcome((CREDIT,), 10), [b""], 0.0)
    written: list[object] = []

    def write(frames: object) -> bool:
        written.append(frames)
        return True

    for _ in range(4):
        probe = Probe(1, 0, b"1234")
        assert flow.queues[Lane.DATA].offer(probe, encode(probe), write)
    assert len(written) == 2
    assert flow.acked("edge", Credit(4, 10, 2500)) == Acked("edge", 4, 12, 0.0025)
    assert flow.acked("edge", Credit(8, 100)) == Acked("edge", 8, 8, 0.0)
    flow.queues[Lane.DATA].flush(write)
    assert len(written) == 4
    assert flow.acked("edge", Credit(16, 100)) == Acked("edge", 16, 0, 0.0)


def test_a_queue_is_bounded_whatever_credit_says() -> None:
    allowance = Allowance()
    allowance.limit_bytes = 4
    queue = SendQueue(2000, allowance)
    probe = Probe(1, 0, b"1234")
    taken = 0
    while queue.offer(probe, encode(probe), lambda frames: True):
        taken += 1
        assert taken < 100
    assert queue.size_bytes <= 2000
    assert queue.payload_bytes == 4 * len(queue) == 4 * (taken - 1)
    assert not queue.is_sendable
