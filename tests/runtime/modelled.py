"""A cluster beside a model of it, for tests that do anything to it in any order.

The model is a record of what was asked: the input, when an answer is due, whether it was given up. `check` compares
what the machines hold with it and `settle` heals everything and lets them come to rest. Which steps are taken, and in
which order, is for `test_stateful.py` to say.
"""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from tests.runtime.worlds import Graph, Numbers, make_facts, random_graph, same

from flagsplit.errors import UnavailableError
from flagsplit.runtime.events import Adopted, Deliver, Fail, Instruction, Released
from flagsplit.runtime.liveness import LivenessOptions
from flagsplit.runtime.session_machine import SessionFacts, SessionOptions
from flagsplit.runtime.testing import Cluster, Times
from flagsplit.runtime.worker_machine import WorkerMachine, WorkerOptions
from flagsplit.runtime.worker_shares import ENTRY_BYTES, cost_bytes
from flagsplit.targets.interface import Array
from flagsplit.transport.messages import Cancel, Done, Message

HOME, PATIENCE_S = "phone", 600.0
LIVENESS = LivenessOptions(heartbeat_s=1.0, missed=3)
SESSION = SessionOptions(window=3, attempt_s=2.0, max_attempts=64, adopt_s=3.0, liveness=LIVENESS)
# A worker looks at deadlines when it looks after its peers, once a heartbeat.
_TICK_S = LIVENESS.heartbeat_s + 0.1


@dataclass
class Asked:
    """What the model knows of a request."""

    x: Array
    deadline: float
    epoch: int
    abandoned: bool = False
    checked: bool = False


@dataclass(frozen=True)
class Fault:
    """What becomes of the next messages of a kind: seconds by which each copy is late."""

    kind: str
    copies: tuple[float, ...]


class Modelled:
    """A session of two bundles, its workers, and what each of its requests must come to.

    Args:
        seed: of the world and of all chance in it.
        workers: how many there are.
        alone: whether every bundle has a plan for the first tier alone; else only the second has.
    """

    def __init__(self, seed: int, workers: int, *, alone: bool) -> None:
        rng = random.Random(seed)
        self.alone = alone
        self.tiers = (HOME, "edge", "cloud", "far")[: workers + 1]
        self.workers = self.tiers[1:]
        self.graphs: dict[str, Graph] = {}
        first = self._bundle(rng, "d" * 64, alone=alone)
        second = self._bundle(rng, "e" * 64, alone=True)
        self.policies = [*_policies(first), *_policies(second)]
        self.options = WorkerOptions(
            max_flights=rng.choice([2, 4096]),
            max_held_bytes=rng.choice([6_000_000, 2 << 30]),
            reach_s=1.0,
            linger_s=rng.choice([0.0, 1.0, 10.0]),
            drain_s=5.0,
            liveness=LIVENESS,
        )
        times = Times(delay_s=(0.0, rng.choice([0.001, 0.05, 0.4])), run_s=(0.001, rng.choice([0.02, 0.4])))
        self.cluster = Cluster(
            first, Numbers(self.graphs[first.bundle]), seed=seed, session=SESSION, worker=self.options, times=times
        )
        self.session = self.cluster.session.machine
        self.cluster.add_bundle(second, Numbers(self.graphs[second.bundle]), at_start=rng.random() < 0.6)
        self.asked: dict[int, Asked] = {}
        self.epochs = {0: first.bundle}
        self.answered_at: dict[int, float] = {}
        self.faults: list[Fault] = []
        self.cluster.overhear, self.cluster.fate = self._overhear, self._fate

    def _bundle(self, rng: random.Random, bundle: str, *, alone: bool) -> SessionFacts:
        graph = self.graphs[bundle] = random_graph(rng, rng.randint(2, 5))
        ops, last = len(graph.reads), len(self.tiers) - 1
        placements = {f"p{i}": [rng.randint(0, last) for _ in range(ops)] for i in range(2)}
        placements["last"] = [last] * ops
        if alone:
            placements["alone"] = [0] * ops
        return replace(make_facts(graph, self.tiers, placements), bundle=bundle)

    def _overhear(self, tier: str, said: Instruction) -> None:
        match said:
            case Adopted(epoch, bundle):
                assert epoch == max(self.epochs) + 1
                self.epochs[epoch] = bundle
            case Released(bundle):
                assert all(flight.bundle != bundle for flight in self.session.flights.values())
            case Deliver(rid) | Fail(rid):
                self.answered_at[rid] = self.now

    def _fate(self, source: str, target: str, message: Message) -> Sequence[float]:
        kind = type(message).__name__
        fault = next((fault for fault in self.faults if fault.kind == kind), None)
        if fault is None:
            return (0.0,)
        self.faults.remove(fault)
        if not fault.copies and isinstance(message, Done | Cancel):
            # Said only once, so nothing but the end of the connection may lose it.
            self.cluster.at(self.now, lambda: self.cluster.lose(source, target))
        return fault.copies

    @property
    def now(self) -> float:
        return self.cluster.clock.now_s()

    def ask(self, size: int, deadline_s: float, plan: str) -> None:
        """Submit a request for an input of a size."""
        x = np.random.default_rng(len(self.asked)).integers(0, 1000, size)
        # The answer may come before `submit` returns.
        self.asked[len(self.asked) + 1] = Asked(x, self.now + deadline_s, max(self.epochs))
        assert self.cluster.submit({"x": x}, deadline_s, plan) == len(self.asked)

    def abandon(self, rid: int) -> None:
        """Give up a request, answered or not."""
        self.asked[rid].abandoned |= rid not in self.cluster.answers
        self.cluster.abandon(rid)

    def living(self) -> list[WorkerMachine]:
        """The workers whose processes run."""
        return [self.cluster.worker(tier) for tier in filter(self.cluster.is_alive, self.workers)]

    def check(self) -> None:
        """What holds at any moment."""
        assert self.cluster.highest_attempt <= SESSION.max_attempts
        for rid, answer in self.cluster.answers.items():
            if not self.asked[rid].checked:
                self.asked[rid].checked = True
                self._check_answer(rid, answer)
        self._check_session()
        for worker in self.living():
            check_worker(worker, self.limit_bytes)

    def _check_answer(self, rid: int, answer: Deliver | Fail) -> None:
        asked = self.asked[rid]
        if isinstance(answer, Deliver):
            assert answer.report.epoch >= asked.epoch, f"request {rid} went back to an earlier epoch"
            wanted = self.graphs[self.epochs[answer.report.epoch]].answer(asked.x)
            assert same(answer.outputs, wanted), f"request {rid} was answered wrongly"
            assert 1 <= answer.report.attempts <= SESSION.max_attempts
        elif not asked.abandoned:
            late = isinstance(answer.error, UnavailableError) and self.answered_at[rid] >= asked.deadline
            assert late, f"request {rid} failed at {self.answered_at[rid]:.3f}: {answer.error}"

    @property
    def limit_bytes(self) -> int:
        """What one request may hold at a worker: each value there is, here and on its way in."""
        values = 1 + max(len(graph.reads) for graph in self.graphs.values())
        return 2 * values * (ENTRY_BYTES + max((asked.x.nbytes for asked in self.asked.values()), default=0))

    def _check_session(self) -> None:
        session = self.session
        gone = {rid for rid, asked in self.asked.items() if asked.abandoned}
        open_ = self.asked.keys() - self.cluster.answers.keys() - gone
        waiting = {submit.rid for submit in session._queue}
        running = {rid for _, rid in session.flights}
        assert running == set(session._requests)
        assert not running & waiting
        assert running | waiting == open_
        assert len(running) == min(SESSION.window, len(open_))
        assert sum(epoch.requests for epoch in session._epochs) == len(running)
        assert {flight.bundle for flight in session.flights.values()} <= session.segments.keys()
        for rid in open_:
            assert self.now <= self.asked[rid].deadline + 1e-3, f"request {rid} was not told that it is late"

    def calm(self) -> None:
        """End all trouble, and start what is not there."""
        self.faults.clear()
        for place, one in enumerate(self.tiers):
            for other in self.tiers[place + 1 :]:
                self.cluster.heal(one, other)
        for tier in self.workers:
            self.cluster.resume(tier)
            self.cluster.start(tier)
            self.cluster.slow(tier, 1.0)

    def settle(self) -> None:
        """Come to rest without trouble; nothing may be left of anything."""
        for _ in range(int(PATIENCE_S) // 3 + 40):
            self.calm()
            self.cluster.run(3.0)
            self.check()
            if self._is_at_rest():
                break
        assert not self._open(), f"never answered: {self._open()}"
        assert [epoch.number for epoch in self.session._epochs] == [max(self.epochs)]
        assert set(self.session.segments) == {self.epochs[max(self.epochs)]}
        assert not self.session.waiting_runs
        for worker in self.living():
            assert not worker.flights, f"{worker.tier} holds {list(worker.flights)}"
            assert not worker.waiting_runs
            assert not worker.shares.held_bytes
            assert not worker.shares.clients
            assert not worker.shares.paused
            assert not worker._away
            assert not any(beyond.waiting for beyond in worker.peers.beyond.values())

    def _open(self) -> set[int]:
        return {rid for rid, asked in self.asked.items() if not asked.abandoned} - self.cluster.answers.keys()

    def _is_at_rest(self) -> bool:
        busy = self._open() or self.session._epochs.coming or self.session.waiting_runs or self.session.flights
        lost = any(self.cluster.tiers[tier].state == "down" for tier in self.workers if tier in self.cluster.tiers)
        return not busy and not lost and not any(w.flights or w.waiting_runs or w.shares.paused for w in self.living())


def check_worker(worker: WorkerMachine, limit_bytes: int) -> None:
    """A worker's books say what its requests hold, and nothing is left of requests that are over."""
    held: Counter[str] = Counter()
    for flight in worker.flights.values():
        held[flight.sid] += cost_bytes(flight)
        assert cost_bytes(flight) <= limit_bytes
        assert flight.attempt <= SESSION.max_attempts
    assert worker.shares.held_bytes == held.total()
    assert {sid: size for sid, (_, size) in worker.shares.clients.items()} == held
    assert Counter(sid for sid, _ in worker.flights) == {sid: n for sid, (n, _) in worker.shares.clients.items()}
    assert worker._away.keys() <= worker.flights.keys()
    assert all(run.key in worker.flights for run in worker._runs.values() if not run.skipped)


def _policies(facts: SessionFacts) -> list[SessionFacts]:
    """All plans, and all but the first: what another policy would make of the same bundle."""
    plans = facts.pool.plans[1:]
    fewer = replace(facts.pool, plans=plans, bias=tuple(float(i) for i in range(len(plans))))
    return [facts, replace(facts, pool=fewer, steps={plan.name: facts.steps[plan.name] for plan in plans})]
