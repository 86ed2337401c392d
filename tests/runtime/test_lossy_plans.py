"""Plans with codecs and plans that go round tiers, on the virtual clock: an answer is always that of one plan alone."""

import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from tests.runtime.lossy_worlds import LossyNumbers, LossyPlan
from tests.runtime.worlds import Graph, random_graph, same

from flagsplit.errors import BundleError
from flagsplit.runtime.bundle import PlanSet
from flagsplit.runtime.events import Deliver
from flagsplit.runtime.itinerary import itinerary
from flagsplit.runtime.liveness import LivenessOptions
from flagsplit.runtime.session_machine import SessionOptions
from flagsplit.runtime.testing import Cluster
from flagsplit.runtime.worker_options import WorkerOptions
from flagsplit.splitter.state import State
from flagsplit.targets.interface import Array
from flagsplit.transport.messages import MAX_HOPS, RESUME, Chunk, Message, Open

TIERS = ("phone", "edge", "cloud")
# x → v0 → v1 → v2 → v3, and v3 reads v0 again; v0 and v1 are answers too.
GRAPH = Graph((("x",), ("v0",), ("v1",), ("v2", "v0")), ("v0", "v1", "v3"))
X: Array = np.arange(0, 50_000, 997)
CODED = frozenset(("x", "v0", "v1", "v2"))
PLANS = {
    "trip": LossyPlan((0, 1, 2, 0), CODED),
    "other-codecs": LossyPlan((0, 2, 2, 0), frozenset(("v0",))),
    "edge": LossyPlan((1, 1, 1, 1), frozenset(("x",))),
    "alone": LossyPlan((0, 0, 0, 0)),
}
SESSION = SessionOptions(attempt_s=4.0, liveness=LivenessOptions(heartbeat_s=0.5, missed=3))


def cluster(numbers: LossyNumbers, seed: int = 0, worker: WorkerOptions | None = None) -> Cluster:
    found = Cluster(numbers.facts, numbers, seed=seed, session=SESSION, worker=worker)
    found.run(2.0)
    return found


def answered(found: Cluster, numbers: LossyNumbers, rid: int, x: Array = X) -> str:
    """The plan that answered, and with its own numbers."""
    answer = found.answers[rid]
    assert isinstance(answer, Deliver), "\n".join(found.story)
    assert same(answer.outputs, numbers.reference(answer.report.plan, x)), answer.report.plan
    return answer.report.plan


def test_each_plan_answers_with_its_own_numbers() -> None:
    numbers = LossyNumbers(GRAPH, TIERS, PLANS)
    found = cluster(numbers)
    for name in PLANS:
        rid = found.submit({"x": X}, plan=name)
        found.run(5.0)
        assert answered(found, numbers, rid) == name
    answers = [numbers.reference(name, X)["v3"].tobytes() for name in PLANS]
    assert len(set(answers)) == len(PLANS)


@pytest.mark.parametrize("victim", ["edge", "cloud"])
@pytest.mark.parametrize("kind", [Open, Chunk])
def test_a_plan_takes_over_with_what_it_knows(victim: str, kind: type[Message]) -> None:
    """A tier dies at any message of a lossy plan: what the loss has reached does not get into another plan's answer."""
    took_over = set()
    for nth in range(8):
        numbers = LossyNumbers(GRAPH, TIERS, PLANS)
        # Chunks of so little are what a peer without the feature "inline" gets.
        found = cluster(numbers, nth, WorkerOptions(features=(RESUME,)) if kind is Chunk else None)
        found.watch = killer(found, victim, kind, nth)
        rid = found.submit({"x": X})
        found.run(40.0)
        took_over.add(answered(found, numbers, rid))
    assert len(took_over) > 1
    assert "trip" in took_over, "and where nothing failed any more, it stayed"


def killer(found: Cluster, victim: str, kind: type[Message], nth: int) -> Callable[[str, str, Message], None]:
    seen = 0

    def watch(source: str, target: str, message: Message) -> None:
        nonlocal seen
        if isinstance(message, kind) and victim in (source, target):
            seen += 1
            if seen == nth + 1:
                found.kill(victim)

    return watch


def test_what_is_exact_is_not_computed_again() -> None:
    """The stem is the same in every plan that has it at home; only what came after the loss starts afresh."""
    numbers = LossyNumbers(GRAPH, TIERS, {"trip": PLANS["trip"], "alone": PLANS["alone"]})
    runs: list[tuple[str, str]] = []

    def compute(tier: str, segment: str, inputs: dict[str, Array]) -> dict[str, Array]:
        runs.append((tier, segment))
        return numbers(tier, segment, inputs)

    found = Cluster(numbers.facts, compute, session=SESSION)  # type: ignore[arg-type]
    found.run(2.0)
    found.kill("cloud")
    rid = found.submit({"x": X}, plan="trip")
    found.run(20.0)
    assert answered(found, numbers, rid) == "alone"
    assert [segment for tier, segment in runs if tier == "phone"][-1] == "v0+v1+v2+v3"


@pytest.mark.slow
@pytest.mark.parametrize("block", range(8))
def test_any_history(block: int) -> None:
    plans_seen = 0
    for seed in range(block * 10, block * 10 + 10):
        rng = random.Random(seed)
        tiers = ("phone", "edge", "cloud", "far")[: rng.choice([2, 3, 3, 4])]
        numbers = random_numbers(rng, tiers)
        found = Cluster(numbers.facts, numbers, seed=seed, session=SESSION)
        asked: dict[int, Array] = {}
        for at in range(6):
            x = np.random.default_rng(seed * 100 + at).integers(0, 50_000, rng.choice([1, 40, 3000]))
            found.run(rng.uniform(0.0, 1.0))
            asked[found.submit({"x": x}, 200.0)] = x
            trouble(rng, found, tiers)
        found.run(150.0)
        plans_seen += len({answered(found, numbers, rid, x) for rid, x in asked.items()})
    assert plans_seen > 10, "more than one plan in a history"


def random_numbers(rng: random.Random, tiers: tuple[str, ...]) -> LossyNumbers:
    graph = random_graph(rng, rng.randint(3, 8))
    ops = len(graph.reads)
    values = ["x", *(f"v{op}" for op in range(ops))]
    plans: dict[str, LossyPlan] = {}
    while len(plans) < 3:
        placement = tuple(rng.randrange(len(tiers)) for _ in range(ops))
        coded = frozenset(value for value in values if rng.random() < 0.6)
        used = {0, *placement}
        route = tuple(sorted(used | {k for k in range(len(tiers)) if rng.random() < 0.5}))
        plan = LossyPlan(placement, coded, route if rng.random() < 0.6 else ())
        made = LossyNumbers(graph, tiers, {"p": plan})
        names = made.facts.answers_of("p").values()
        hops = itinerary(made.facts.steps["p"], {"x"}, tuple(names), range(len(tiers)))
        if len(hops) <= MAX_HOPS:
            plans[f"p{len(plans)}"] = plan
    return LossyNumbers(graph, tiers, {**plans, "alone": LossyPlan((0,) * ops)})


def trouble(rng: random.Random, found: Cluster, tiers: tuple[str, ...]) -> None:
    """A worker dies, now or soon, and comes back some time later."""
    tier, when = rng.choice(tiers[1:]), found.clock.now_s() + rng.choice([0.0, 0.02, 0.05, 0.1, 0.3])
    found.at(when, lambda: found.kill(tier))
    found.at(when + rng.choice([0.1, 1.0, 5.0]), lambda: found.start(tier))


# --- by-passes


def test_a_plan_goes_round_a_tier() -> None:
    plans = {
        "round": LossyPlan((0, 2, 2, 0), frozenset(("v0",)), (0, 2)),
        "line": LossyPlan((0, 2, 2, 0), frozenset(("v0",))),
        "alone": LossyPlan((0, 0, 0, 0)),
    }
    numbers = LossyNumbers(GRAPH, TIERS, plans)
    found = cluster(numbers)
    carried: list[tuple[str, str]] = []
    found.watch = lambda source, target, message: (
        carried.append((source, target)) if isinstance(message, Open) else None
    )
    ways = {}
    for name in ("round", "line"):
        rid = found.submit({"x": X}, plan=name)
        found.run(5.0)
        assert answered(found, numbers, rid) == name
        answer = found.answers[rid]
        assert isinstance(answer, Deliver)
        ways[name] = [(link.source, link.target) for link in answer.report.links]
        assert carried == ways[name]
        carried.clear()
    assert ways["round"] == [("phone", "cloud"), ("cloud", "phone")]
    assert ways["line"] == [("phone", "edge"), ("edge", "cloud"), ("cloud", "edge"), ("edge", "phone")]


def test_a_plan_that_goes_round_a_tier_does_not_need_it() -> None:
    plans = {"round": LossyPlan((0, 2, 2, 0), frozenset(), (0, 2)), "alone": LossyPlan((0, 0, 0, 0))}
    numbers = LossyNumbers(GRAPH, TIERS, plans)
    found = cluster(numbers)
    found.kill("edge")
    rid = found.submit({"x": X})
    found.run(20.0)
    answer = found.answers[rid]
    assert isinstance(answer, Deliver)
    assert (answered(found, numbers, rid), answer.report.attempts) == ("round", 1)


def with_bypass(numbers: LossyNumbers) -> PlanSet:
    """The plans of a line of three tiers with a link from the first to the last, which comes after the line's own."""
    facts, links = numbers.facts, (1.0, 2.0, 3.0)
    features = replace(facts.pool.plans[0].features, up_bytes=links, down_bytes=links)
    features = replace(features, up_messages=links, down_messages=links)
    plans = tuple(replace(plan, features=features) for plan in facts.pool.plans)
    nominal = State((1.0,) * 3, links, links, links, links, (True,) * 3)
    return PlanSet(replace(facts.pool, plans=plans), facts.steps, nominal, ("because",), facts.answers)


def test_plans_with_bypasses_are_read_as_they_were_written() -> None:
    plans = {"round": LossyPlan((0, 2, 2, 0), frozenset(("v0",)), (0, 2)), "alone": LossyPlan((0, 0, 0, 0))}
    written = with_bypass(LossyNumbers(GRAPH, TIERS, plans))
    again = PlanSet.from_json(written.to_json())
    assert again == written
    assert again.pool.plan("round").route == (0, 2)
    assert again.pool.choose(again.nominal).latency_s == written.pool.choose(written.nominal).latency_s


def test_a_state_that_does_not_fit_the_plans() -> None:
    written = with_bypass(LossyNumbers(GRAPH, TIERS, {"alone": LossyPlan((0, 0, 0, 0))}))
    links = written.nominal.up_s_per_byte[:2]
    shorter = replace(written, nominal=State((1.0,) * 3, links, links, links, links, (True,) * 3))
    with pytest.raises(BundleError, match=r"nominal\.\w+: expected 3 items, got 2"):
        PlanSet.from_json(shorter.to_json())
