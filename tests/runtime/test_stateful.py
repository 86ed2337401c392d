"""Anything that can happen, in any order: thousands of histories that Hypothesis makes up and shrinks.

A history is a list of rules: requests, crashes, partitions, other bundles, and messages that the network loses, doubles
or reorders although a channel promises not to. After each rule everything must fit the model of `modelled.py`; at the
end, all is healed and nothing may be left. A history that fails comes with its steps and the cluster's story.
"""

import sys
from typing import Any, ClassVar

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, Phase, note, seed, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from tests.runtime.modelled import HOME, PATIENCE_S, Fault, Modelled

from flagsplit.runtime.events import Adopt, Deliver
from flagsplit.transport.channel import Acked, Received, inbound_name
from flagsplit.transport.messages import Chunk, Failed, LinkGauge, Message, Open, Pong

_BLOCKS, _HISTORIES, _STEPS = 16, 126, 14
_WAITS_S = st.sampled_from([0.0, 0.01, 0.05, 0.2, 0.5, 1.0, 4.0])
_SIZES = st.sampled_from([0, 1, 7, 300, 300, 9_000, 40_000])
_SOME_SIZES = st.lists(_SIZES, min_size=1, max_size=4)
_DEADLINES_S = st.sampled_from([PATIENCE_S, PATIENCE_S, PATIENCE_S, PATIENCE_S, 0.0, 0.3, 2.0, 8.0])
_PLANS = st.sampled_from(["", "", "p0", "p1", "last", "alone", "unheard of"])
_FAULTY = st.sampled_from(["Open", "Open", "Chunk", "Chunk", "Have", "Failed", "Done", "Cancel", "Ping", "Pong"])
_COPIES = st.sampled_from([(), (), (0.0, 0.0), (0.0, 0.6), (0.0, 7.0), (0.6,), (7.0,)])
_BYTES = st.sampled_from([0, 1, 1000, 2**53 - 1])
_PLACES = st.integers(0, 2)


class Anything(RuleBasedStateMachine):
    """One history. `played` counts those of a block."""

    workers: ClassVar[int] = 2
    alone: ClassVar[bool] = True
    played: ClassVar[int] = 0

    @initialize(number=st.integers(0, 2**16), sizes=_SOME_SIZES, wait_s=_WAITS_S)
    def begin(self, number: int, sizes: list[int], wait_s: float) -> None:
        self.model = Modelled(number, self.workers, alone=self.alone)
        self.model.cluster.run(wait_s)
        for size in sizes:
            self.model.ask(size, PATIENCE_S, "")
        self.cluster = self.model.cluster
        self.said: list[tuple[str, Message]] = []
        self.cluster.watch = self._remember

    def _remember(self, source: str, target: str, message: Message) -> None:
        if target == HOME and isinstance(message, Open | Chunk | Failed):
            self.said.append((source, message))

    def _tier(self, place: int) -> str:
        return self.model.workers[place % len(self.model.workers)]

    def _pair(self, place: int, other: int) -> tuple[str, str]:
        """A worker and another tier."""
        one = self._tier(place)
        others = [tier for tier in self.model.tiers if tier != one]
        return one, others[other % len(others)]

    @rule(wait_s=_WAITS_S)
    def let_time_pass(self, wait_s: float) -> None:
        self.cluster.run(wait_s)

    @rule(sizes=_SOME_SIZES, deadline_s=_DEADLINES_S, plan=_PLANS, wait_s=_WAITS_S)
    def ask(self, sizes: list[int], deadline_s: float, plan: str, wait_s: float) -> None:
        for size in sizes:
            self.model.ask(size, deadline_s, plan)
        self.cluster.run(wait_s)

    @precondition(lambda self: self.model.asked)
    @rule(last=st.integers(0, 5))
    def abandon(self, last: int) -> None:
        self.model.abandon(max(1, len(self.model.asked) - last))

    @rule(place=_PLACES, how=st.sampled_from(["kill", "leave", "drain", "stop"]), wait_s=_WAITS_S)
    def take_away(self, place: int, how: str, wait_s: float) -> None:
        getattr(self.cluster, how)(self._tier(place))
        self.cluster.run(wait_s)

    @rule(place=_PLACES, wait_s=_WAITS_S)
    def bring_back(self, place: int, wait_s: float) -> None:
        self.cluster.start(self._tier(place))
        self.cluster.resume(self._tier(place))
        self.cluster.run(wait_s)

    @rule(place=_PLACES, other=_PLACES, how=st.sampled_from(["lose", "partition", "heal"]), wait_s=_WAITS_S)
    def reconnect(self, place: int, other: int, how: str, wait_s: float) -> None:
        getattr(self.cluster, how)(*self._pair(place, other))
        self.cluster.run(wait_s)

    @rule(place=_PLACES, factor=st.sampled_from([1.0, 5.0, 20.0]))
    def slow(self, place: int, factor: float) -> None:
        self.cluster.slow(self._tier(place), factor)

    @rule(policy=st.integers(0, 3))
    def adopt(self, policy: int) -> None:
        self.cluster.tell(HOME, Adopt(self.model.policies[policy]))

    @rule(kind=_FAULTY, copies=_COPIES, count=st.integers(1, 3))
    def break_a_promise(self, kind: str, copies: tuple[float, ...], count: int) -> None:
        """The next messages of a kind get lost, or come twice, or out of order."""
        self.model.faults += [Fault(kind, copies)] * count

    @precondition(lambda self: self.said)
    @rule(last=st.integers(0, 30), place=st.none() | _PLACES)
    def echo(self, last: int, place: int | None) -> None:
        """A worker says to the session again what it, or another, said before."""
        source, message = self.said[max(0, len(self.said) - 1 - last)]
        self.cluster.send(source if place is None else self._tier(place), message)

    @rule(place=_PLACES, acked=_BYTES, unacked=_BYTES, delay_s=st.sampled_from([0.0, 0.5, 1e6]))
    def acknowledge(self, place: int, acked: int, unacked: int, delay_s: float) -> None:
        self.cluster.tell(HOME, Acked(self._tier(place), acked, unacked, delay_s))
        home = inbound_name(self.cluster.session.instance)
        self.cluster.tell(self._tier(place), Acked(home, unacked, acked, delay_s))

    @rule(place=_PLACES, sent=_BYTES, wait=_BYTES, rate=_BYTES)
    def pong(self, place: int, sent: int, wait: int, rate: int) -> None:
        """A worker, or the session, answers a ping that nobody sent, with odd numbers."""
        links = (LinkGauge(self._tier(place + 1), rate, wait, 1000), LinkGauge("nowhere", 0, 0, 0))
        odd = Pong(1, sent, 1 << 31, wait, wait, rate, links)
        self.cluster.tell(HOME, Received(self._tier(place), odd))
        self.cluster.tell(self._tier(place), Received(inbound_name(self.cluster.session.instance), odd))

    @invariant()
    def fits_the_model(self) -> None:
        if hasattr(self, "model"):
            self.model.check()

    def teardown(self) -> None:
        if not hasattr(self, "model"):
            return
        try:
            if sys.exc_info()[0] is None:
                type(self).played += 1
                self.model.settle()
                self.model.ask(300, 10.0, "last")
                self.model.settle()
                assert isinstance(self.cluster.answers[len(self.model.asked)], Deliver), "it works as before"
        finally:
            note("\n".join(self.cluster.story))


@pytest.mark.slow
@pytest.mark.parametrize("block", range(_BLOCKS))
def test_whatever_happens_each_request_is_answered_once_and_rightly_and_nothing_is_left(block: int) -> None:
    kind: Any = type(
        f"Block{block}", (Anything,), {"workers": (2, 1, 2, 3)[block % 4], "alone": block % 8 < 5, "played": 0}
    )
    run_state_machine_as_test(
        seed(block)(kind),
        settings=settings(
            max_examples=_HISTORIES,
            stateful_step_count=_STEPS,
            deadline=None,
            database=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert kind.played >= _HISTORIES
