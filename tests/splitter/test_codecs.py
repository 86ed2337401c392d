"""Codecs: what they cost, against a request walked tensor by tensor; the best of them, against exhaustive search."""

import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from flagsplit.errors import PolicyError
from flagsplit.flagir.codecs import NO_CODEC, codec_names
from flagsplit.splitter.codecs import CODEC_COSTS, allowed_codecs
from flagsplit.splitter.devices import Catalogue
from flagsplit.splitter.evaluate import Usage, choose_codecs
from flagsplit.splitter.plan_maker import make_plan
from flagsplit.splitter.problem import Problem, make_problem
from flagsplit.splitter.rates import objective_rates
from flagsplit.splitter.sla import SLA, Accuracy, parse_sla
from flagsplit.splitter.solvers import solve
from flagsplit.splitter.state import State
from flagsplit.splitter.testing import GraphBuilder, line, placements, random_graph, simulate
from flagsplit.splitter.testing import Walk as PlainWalk

UP, DOWN = 0, 1
Chosen = Mapping[tuple[int, int], str]
"""The codec of a value, by index, in a direction; those that are missing travel as they are."""

_DEVICES = ("generic-phone-cpu", "raspberry-pi-5", "generic-edge-cpu", "t4")
_LINKS = ("1mbit/1ms", "20mbit:100mbit/10ms@lte", "200mbit/1ms", "5gbit/10us")
_FREE = SLA.model_validate({"accuracy": {"every_cut": {"min_snr_db": 0}}})


def _sizes(rng: random.Random, size: int) -> dict[str, int]:
    """Sizes by codec, parameters included, now and then larger than the value; some values are of another type."""
    if rng.random() < 0.2:
        return {}
    rows = rng.choice([1, 1, 64])
    return {
        "fp16": size // 2,
        "u8_per_channel": size // 4 + 5 * rows,
        "u8": size // 4 + 5,
        "u4_per_channel": size // 8 + 5 * rows + 32,
    }


def random_problem(rng: random.Random, catalogue: Catalogue, tiers: int, most_blocks: int) -> Problem:
    graph = random_graph(rng, rng.randint(2, most_blocks))
    values = tuple(replace(value, codec_bytes=_sizes(rng, value.size_bytes)) for value in graph.values)
    joined = [rng.choice(_LINKS) for _ in range(tiers - 1)]
    devices, links = line(*(rng.choice(_DEVICES) for _ in range(tiers)), links=joined, catalogue=catalogue)
    policy = {
        "objective": {"latency": 1.0, "price": rng.choice([0.0, 1.0]), "energy": rng.choice([0.0, 0.1])},
        "energy_scope": rng.choice(["first", "all"]),
        "accuracy": {"every_cut": rng.choice([{"min_snr_db": 30}, {"min_snr_db": 0}, {"codecs": ["fp16", "u8"]}])},
    }
    bad: dict[str, list[str | None]] = {tier.name: [None] * len(graph.blocks) for tier in devices}
    for i in range(len(graph.blocks)):
        for tier in rng.sample(devices, rng.randint(0, tiers - 1)):
            bad[tier.name][i] = "no such operator" if rng.random() < 0.6 else None
    return make_problem(replace(graph, values=values), devices, links, SLA.model_validate(policy), bad)


def random_state(rng: random.Random, nominal: State) -> State:
    tiers = len(nominal.slowdown)
    state = replace(nominal, slowdown=tuple(rng.choice([0.5, 1.0, 6.0]) for _ in range(tiers)))
    return state.scaled([rng.choice([0.1, 1.0, 30.0]) for _ in range(tiers - 1)], rng.choice([0.0, 1.0, 10.0]))


class Walk:
    """One request with codecs: `simulate` for blocks and messages, each tensor on its way for the rest."""

    def __init__(
        self, problem: Problem, placement: Sequence[int], chosen: Chosen, state: State, plain: PlainWalk | None = None
    ) -> None:
        plain, links = plain or simulate(problem, placement, state), len(problem.links)
        self.problem, self.state = problem, state
        self.up_bytes, self.down_bytes = [0.0] * links, [0.0] * links
        self.messages_s = sum(
            plain.up_messages[i] * state.up_s_per_message[i] + plain.down_messages[i] * state.down_s_per_message[i]
            for i in range(links)
        )
        self.tier_seconds = list(plain.tier_seconds)
        for at in range(len(problem.graph.values)):
            for direction, codec, made, readers in travels(problem, placement, at, chosen):
                size = problem.graph.values[at].size_bytes if codec == NO_CODEC else 0
                size = size or problem.graph.values[at].codec_bytes.get(codec, 0)
                for link in range(made, max(readers)) if direction == UP else range(min(readers), made):
                    (self.up_bytes if direction == UP else self.down_bytes)[link] += size
            for tier, seconds in codec_work(problem, placement, at, chosen):
                self.tier_seconds[tier] += seconds

    def objective(self) -> float:
        costs, weights, state = self.problem.costs, self.problem.sla.objective, self.state
        latency = self.messages_s + sum(s * slow for s, slow in zip(self.tier_seconds, state.slowdown, strict=True))
        latency += sum(b * s for b, s in zip(self.up_bytes, state.up_s_per_byte, strict=True))
        latency += sum(b * s for b, s in zip(self.down_bytes, state.down_s_per_byte, strict=True))
        joules = [s * float(w) for s, w in zip(self.tier_seconds, costs.power_w, strict=True)]
        for link, tier in itertools.product(range(len(self.up_bytes)), range(len(joules))):
            joules[tier] += self.up_bytes[link] * float(costs.radio_up_j_per_byte[link, tier])
            joules[tier] += self.down_bytes[link] * float(costs.radio_down_j_per_byte[link, tier])
        dollars = sum(s * float(p) for s, p in zip(self.tier_seconds, costs.usd_per_s, strict=True))
        energy = joules[0] if self.problem.sla.energy_scope == "first" else sum(joules)
        return weights.latency * latency + weights.price * 1000 * dollars + weights.energy * energy


def travels(
    problem: Problem, placement: Sequence[int], at: int, chosen: Chosen
) -> list[tuple[int, str, int, list[int]]]:
    """Direction, codec, tier that makes it and tiers that need it, for each way that a value goes."""
    value = problem.graph.values[at]
    made = 0 if value.producer < 0 else placement[value.producer]
    needs = {placement[block] for block in value.consumers} | ({0} if value.is_output else set())
    ways = ((UP, sorted(k for k in needs if k > made)), (DOWN, sorted(k for k in needs if k < made)))
    return [(way, chosen.get((at, way), NO_CODEC), made, readers) for way, readers in ways if readers]


def codec_work(problem: Problem, placement: Sequence[int], at: int, chosen: Chosen) -> list[tuple[int, float]]:
    """Seconds by tier: one encode for each codec that a value leaves by, one decode wherever it arrives coded."""
    size, work, encoded = problem.graph.values[at].size_bytes, [], set()
    for _, codec, made, readers in travels(problem, placement, at, chosen):
        if codec == NO_CODEC:
            continue
        cost = CODEC_COSTS[codec]
        seconds = [size / tier.device.memory_bandwidth.value for tier in problem.tiers]
        if codec not in encoded:
            work.append((made, cost.encode_passes * seconds[made]))
        encoded.add(codec)
        work += [(tier, cost.decode_passes * seconds[tier]) for tier in readers]
    return work


def best_choice(problem: Problem, placement: Sequence[int], state: State) -> tuple[float, Chosen]:
    """The least objective of a placement over all choices; values do not meddle with each other, directions may."""
    allowed = allowed_codecs(problem.sla.accuracy, problem.graph.values)
    plain = simulate(problem, placement, state)
    chosen: dict[tuple[int, int], str] = {}

    def objective(tried: Chosen) -> float:
        return Walk(problem, placement, tried, state, plain).objective()

    for at, value in enumerate(problem.graph.values):
        options = [
            [NO_CODEC, *(() if way == DOWN and value.is_output else sorted(allowed[at]))]
            for way, _, _, _ in travels(problem, placement, at, {})
        ]
        ways = [way for way, _, _, _ in travels(problem, placement, at, {})]
        tries: list[Chosen] = [
            {(at, way): codec for way, codec in zip(ways, t, strict=True)} for t in itertools.product(*options)
        ]
        if len(tries) > 1:
            best: Chosen = min(tries, key=objective)
            chosen.update(best)
    return objective(chosen), chosen


def as_chosen(problem: Problem, codecs: NDArray[np.int64]) -> dict[tuple[int, int], str]:
    return {(at, way): problem.codecs[codecs[way, at]] for way in (UP, DOWN) for at in range(codecs.shape[1])}


def test_the_names_are_those_of_the_graph() -> None:
    assert (NO_CODEC, *CODEC_COSTS) == codec_names()


@pytest.mark.slow
@pytest.mark.parametrize("tiers", [2, 3, 4])
def test_usage_equals_a_walk(catalogue: Catalogue, tiers: int) -> None:
    for seed in range(60):
        rng = random.Random(seed)
        problem = random_problem(rng, catalogue, tiers, 6)
        if len(problem.codecs) == 1:
            continue
        state = random_state(rng, problem.nominal)
        rates = objective_rates(problem, state)
        some = [[rng.randrange(tiers) for _ in problem.graph.blocks] for _ in range(8)]
        allowed = np.isfinite(problem.values.coded_bytes)
        codecs = np.array([[[rng.choice(np.flatnonzero(row)) for row in allowed.T] for _ in range(2)] for _ in some])
        codecs[:, DOWN, problem.values.is_output] = 0
        usage = Usage(problem, np.array(some), codecs)
        measure = usage.measure(rates)
        for i, placement in enumerate(some):
            walk = Walk(problem, placement, as_chosen(problem, codecs[i]), state)
            assert usage.up_bytes[i].tolist() == pytest.approx(walk.up_bytes), seed
            assert usage.down_bytes[i].tolist() == pytest.approx(walk.down_bytes), seed
            assert usage.tier_seconds[i] == pytest.approx(walk.tier_seconds, rel=1e-9), seed
            assert measure[i] == pytest.approx(walk.objective(), rel=1e-9), seed
            plan = make_plan(problem, placement, "p", codecs=codecs[i])
            assert plan.features.up_bytes == pytest.approx(walk.up_bytes)
            ways = {(cut.value, int(cut.to_tier < cut.from_tier)): cut.codec for cut in plan.cuts}
            names = [value.name for value in problem.graph.values]
            for at, name in enumerate(names):
                for way, codec, _, _ in travels(problem, placement, at, as_chosen(problem, codecs[i])):
                    assert ways.pop((name, way)) == codec
            assert not ways


@pytest.mark.slow
@pytest.mark.parametrize("tiers", [2, 3, 4])
def test_the_codecs_that_are_chosen(catalogue: Catalogue, tiers: int) -> None:
    """The best, one direction at a time; where a value goes both ways, sharing its encoding may be better still."""
    coded = 0
    for seed in range(40):
        rng = random.Random(1000 + seed)
        problem = random_problem(rng, catalogue, tiers, 6)
        if len(problem.codecs) == 1:
            continue
        state = random_state(rng, problem.nominal)
        rates = objective_rates(problem, state)
        some = [[rng.randrange(tiers) for _ in problem.graph.blocks] for _ in range(5)]
        codecs = choose_codecs(problem, np.array(some), rates)
        assert codecs is not None
        measure = Usage(problem, np.array(some), codecs).measure(rates)
        for i, placement in enumerate(some):
            best, chosen = best_choice(problem, placement, state)
            both = any(len(travels(problem, placement, at, {})) > 1 for at in range(len(problem.graph.values)))
            assert measure[i] >= best * (1 - 1e-9), seed
            if not both:
                assert measure[i] == pytest.approx(best, rel=1e-9), seed
            coded += any(codec != NO_CODEC for codec in chosen.values())
    assert coded > 20


@pytest.mark.slow
@pytest.mark.parametrize("first_seed", range(0, 120, 30))
def test_two_tiers_equal_exhaustive_search(catalogue: Catalogue, first_seed: int) -> None:
    coded = 0
    for seed in range(first_seed, first_seed + 30):
        rng = random.Random(2000 + seed)
        problem = random_problem(rng, catalogue, 2, 6)
        state = random_state(rng, problem.nominal)
        every = [(*best_choice(problem, placement, state), placement) for placement in placements(problem)]
        best, chosen, _ = min(every, key=lambda found: found[0])
        solution = solve(problem, state)
        assert solution.objective == pytest.approx(best, rel=1e-7), seed
        assert solution.proven, seed
        assert best_choice(problem, solution.placement, state)[0] == pytest.approx(solution.objective, rel=1e-7), seed
        coded += any(codec != NO_CODEC for codec in chosen.values())
    assert coded >= 8


@pytest.mark.slow
@pytest.mark.parametrize("first_seed", range(0, 100, 25))
def test_three_tiers_are_within_the_gap(catalogue: Catalogue, first_seed: int) -> None:
    coded = 0
    for seed in range(first_seed, first_seed + 25):
        rng = random.Random(3000 + seed)
        problem = random_problem(rng, catalogue, 3, 5)
        state = random_state(rng, problem.nominal)
        every = [(*best_choice(problem, placement, state), placement) for placement in placements(problem)]
        best, chosen, _ = min(every, key=lambda found: found[0])
        solution = solve(problem, state)
        assert solution.bound <= best * (1 + 1e-7), seed
        assert best * (1 - 1e-7) <= solution.objective <= best / (1 - solution.gap) * (1 + 1e-6), seed
        coded += any(codec != NO_CODEC for codec in chosen.values())
    assert coded >= 5


def test_what_an_sla_allows() -> None:
    graph = GraphBuilder("g", x=4000)
    value = graph.add("a", ["x"], 4000)
    built = graph.build(graph.add("b", [value], 8))
    values = [replace(v, codec_bytes={"fp16": 2000, "u8": 1005} if v.size_bytes > 8 else {}) for v in built.values]

    def allowed(accuracy: Mapping[str, object]) -> list[set[str]]:
        return [set(each) for each in allowed_codecs(Accuracy.model_validate(accuracy), values)]

    assert allowed({}) == [set()] * 3
    assert allowed({"every_cut": {"min_snr_db": 60}}) == [{"fp16"}, {"fp16"}, set()]
    assert allowed({"every_cut": {"min_snr_db": 20}}) == [{"fp16", "u8"}, {"fp16", "u8"}, set()]
    assert allowed({"cuts": {"a_*": {"codecs": ["u8"]}}, "every_cut": {"codecs": ["fp16"]}}) == [
        {"fp16"},
        {"u8"},
        set(),
    ]
    with pytest.raises(PolicyError, match=r"accuracy\.cuts: 'zz\*' matches no value"):
        allowed({"cuts": {"zz*": {"codecs": ["u8"]}}})
    with pytest.raises(PolicyError, match=r"accuracy\.every_cut\.codecs: expected none, fp16, .*, got 'mp3'"):
        allowed({"every_cut": {"codecs": ["mp3"]}})
    with pytest.raises(PolicyError, match="expected codecs, min_snr_db or both"):
        parse_sla({"accuracy": {"every_cut": {}}})


def test_an_answer_goes_home_as_it_is(catalogue: Catalogue) -> None:
    graph = GraphBuilder("g", x=4_000_000)
    value = graph.add("a", ["x"], 4_000_000, 1e6)
    built = graph.build(value)
    built = replace(built, values=tuple(replace(v, codec_bytes={"u8": 1_000_005}) for v in built.values))
    tiers, links = line("raspberry-pi-5", "t4", links=["8mbit/1ms"], catalogue=catalogue)
    plan = make_plan(make_problem(built, tiers, links, _FREE), [1], "all-cloud")
    assert [(cut.value, cut.codec) for cut in plan.cuts] == [("x", "u8"), ("a_out", "none")]
    assert plan.features.up_bytes == (1_000_005.0,)
    assert plan.features.down_bytes == (4_000_000.0,)
