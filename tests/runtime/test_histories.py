"""Random histories of a session and its workers: whatever fails, each request is answered once and rightly."""

import random
from collections.abc import Callable

import numpy as np
import pytest
from tests.runtime.worlds import Numbers, make_facts, random_graph, same

from flagsplit.errors import UnavailableError
from flagsplit.runtime.events import Deliver, Fail
from flagsplit.runtime.itinerary import itinerary
from flagsplit.runtime.liveness import LivenessOptions
from flagsplit.runtime.session_machine import SessionOptions
from flagsplit.runtime.testing import Cluster, Times
from flagsplit.runtime.worker_machine import WorkerOptions
from flagsplit.targets.interface import Array
from flagsplit.transport.messages import MAX_HOPS

_TROUBLE_S = 20.0
_FAULTS = ("kill", "kill", "leave", "drain", "lose", "lose", "stop", "slow", "cut")
_DEADLINE_S = 60.0
_LIVENESS = LivenessOptions(heartbeat_s=1.0, missed=3)
_SESSION = SessionOptions(window=4, attempt_s=4.0, max_attempts=64, liveness=_LIVENESS)


class History:
    """One seeded story: a world, requests, and trouble for the first 20 seconds."""

    def __init__(self, seed: int, *, alone: bool) -> None:
        self.rng = random.Random(seed)
        rng = self.rng
        tiers = ("phone", "edge", "cloud", "far")[: rng.choice([2, 3, 3, 4])]
        self.graph = random_graph(rng, rng.randint(3, 8))
        ops, last = len(self.graph.reads), len(tiers) - 1
        placements = {f"p{i}": self._placement(ops, last) for i in range(rng.randint(1, 3))}
        placements["last"] = [last] * ops
        if alone:
            placements["alone"] = [0] * ops
        worker = WorkerOptions(
            max_flights=rng.choice([1 if alone else 3, 3, 4096]),
            max_held_bytes=rng.choice([8_000_000, 2 << 30]),
            reach_s=1.0,
            linger_s=rng.choice([0.0, 2.0, 10.0]),
            liveness=_LIVENESS,
        )
        slowest_s = rng.choice([0.02, 0.2, 0.8])
        self.cluster = Cluster(
            make_facts(self.graph, tiers, placements),
            Numbers(self.graph),
            seed=seed,
            session=_SESSION,
            worker=worker,
            times=Times(delay_s=(0.0, rng.choice([0.001, 0.05, 0.6])), run_s=(0.001, slowest_s)),
        )
        self.workers = tiers[1:]
        self.asked: dict[int, dict[str, Array]] = {}
        self.abandoned: set[int] = set()

    def _placement(self, ops: int, last: int) -> list[int]:
        """Any placement whose route a message can name."""
        while True:
            tiers = [self.rng.randint(0, last) for _ in range(ops)]
            hops = itinerary(self.graph.steps(tiers, last + 1), {"x"}, self.graph.outputs, range(last + 1))
            if len(hops) <= MAX_HOPS:
                return tiers

    def ask(self) -> None:
        size = 50_000 if self.rng.random() < 0.05 else self.rng.choice([0, 1, 7, 300])
        x = np.random.default_rng(self.rng.randrange(1 << 32)).integers(0, 1000, size)
        rid = self.cluster.submit({"x": x}, _DEADLINE_S)
        self.asked[rid] = self.graph.answer(x)
        if self.rng.random() < 0.03:
            self.abandoned.add(rid)
            self.cluster.at(self.cluster.clock.now_s() + self.rng.uniform(0, 1), lambda: self.cluster.abandon(rid))

    def trouble(self, *, heals: bool) -> None:
        """Schedule faults; all of them are over at the end, unless the workers are to stay away."""
        rng, cluster = self.rng, self.cluster
        for _ in range(rng.randint(2, 10)):
            when, tier = rng.uniform(0, _TROUBLE_S), rng.choice(self.workers)
            wait_s = rng.choice([0.0, 0.1, 1.0, 3.0, 8.0])
            action, undo = self._fault(rng.choice(_FAULTS), tier)
            cluster.at(when, action)
            cluster.at(when + wait_s, undo)
        for tier in self.workers:
            cluster.at(_TROUBLE_S + 8.1, lambda tier=tier: self._heal(tier) if heals else cluster.kill(tier))  # type: ignore[misc]

    def _fault(self, kind: str, tier: str) -> tuple[Callable[[], None], Callable[[], None]]:
        cluster = self.cluster
        other = self.rng.choice([name for name in ("phone", *self.workers) if name != tier])
        if kind == "stop":
            return lambda: cluster.stop(tier), lambda: cluster.resume(tier)
        if kind == "slow":
            return lambda: cluster.slow(tier, 20.0), lambda: cluster.slow(tier, 1.0)
        if kind == "cut":
            return lambda: cluster.partition(tier, other), lambda: cluster.heal(tier, other)
        if kind == "lose":
            return lambda: cluster.lose(tier, other), lambda: cluster.lose(tier, other)
        if kind == "drain":
            return lambda: cluster.drain(tier), lambda: cluster.start(tier)
        return (lambda: cluster.kill(tier)) if kind == "kill" else (lambda: cluster.leave(tier)), lambda: cluster.start(
            tier
        )

    def _heal(self, tier: str) -> None:
        self.cluster.resume(tier)
        if self.cluster.is_alive(tier) and self.cluster.worker(tier).stats().draining:
            self.cluster.kill(tier)  # it would end by itself, and nobody would start another
        self.cluster.start(tier)
        self.cluster.slow(tier, 1.0)

    def play(self, *, heals: bool) -> None:
        self.trouble(heals=heals)
        for _ in range(self.rng.randint(4, 14)):
            self.cluster.at(self.rng.uniform(0, _TROUBLE_S), self.ask)
        self.cluster.run(_TROUBLE_S + 9.0)
        for _ in range(250):  # engines that were slow may still end runs that nobody waits for
            if self._is_settled():
                break
            self.cluster.run(5.0)

    def _is_settled(self) -> bool:
        here = [self.cluster.worker(tier) for tier in filter(self.cluster.is_alive, self.workers)]
        answered = self.asked.keys() - self.abandoned <= self.cluster.answers.keys()
        return answered and all(worker.is_idle() and not worker.waiting_runs for worker in here)

    def check(self) -> dict[int, Fail]:
        """Everything that holds in any history; gives the requests that failed."""
        failed = {}
        assert self.asked.keys() - self.abandoned <= self.cluster.answers.keys() <= self.asked.keys()
        for rid, wanted in self.asked.items():
            answer = self.cluster.answers.get(rid)
            if isinstance(answer, Deliver):
                assert same(answer.outputs, wanted)
                assert 1 <= answer.report.attempts <= _SESSION.max_attempts
            elif rid not in self.abandoned:
                assert answer is not None
                assert isinstance(answer.error, UnavailableError)
                failed[rid] = answer
        assert self.cluster.highest_attempt <= _SESSION.max_attempts
        assert not self.cluster.session.machine.flights
        assert not self.cluster.session.machine.waiting_runs
        for tier in filter(self.cluster.is_alive, self.workers):
            assert self.cluster.worker(tier).is_idle()
            assert not self.cluster.worker(tier).waiting_runs
        return failed


@pytest.mark.parametrize("block", range(9))
def test_with_a_plan_for_the_first_tier_alone_nothing_ever_fails(block: int) -> None:
    for seed in range(block * 25, block * 25 + 25):
        history = History(seed, alone=True)
        history.play(heals=seed % 2 == 0)
        assert not history.check(), f"seed {seed}\n" + "\n".join(history.cluster.story)


@pytest.mark.parametrize("block", range(5))
def test_without_one_nothing_fails_if_the_workers_come_back(block: int) -> None:
    for seed in range(1000 + block * 25, 1000 + block * 25 + 25):
        history = History(seed, alone=False)
        history.play(heals=True)
        assert not history.check(), f"seed {seed}\n" + "\n".join(history.cluster.story)


@pytest.mark.parametrize("block", range(2))
def test_without_one_and_without_workers_requests_fail_at_their_deadline(block: int) -> None:
    for seed in range(2000 + block * 25, 2000 + block * 25 + 25):
        history = History(seed, alone=False)
        history.play(heals=False)
        history.check()
