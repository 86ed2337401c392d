"""How much a pool leaves on the table between the corners of its grid, dead tiers included, and what it imports."""

import random
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from tests.splitter.oracles import random_state

from flagsplit.errors import PolicyError, UnavailableError
from flagsplit.flagir.blockgraph import BlockGraph
from flagsplit.splitter.devices import Catalogue
from flagsplit.splitter.grid import Grid
from flagsplit.splitter.mincut import CutNetwork
from flagsplit.splitter.pool import Pool
from flagsplit.splitter.pool_builder import build_pool
from flagsplit.splitter.problem import Problem, make_problem
from flagsplit.splitter.rates import objective_rates
from flagsplit.splitter.sla import parse_sla
from flagsplit.splitter.solvers import solve
from flagsplit.splitter.state import State
from flagsplit.splitter.testing import cnn, fpn, line, random_problem, transformer, two_tower, unet


def _problem(catalogue: Catalogue, graph: BlockGraph, sla: dict[str, Any] | None = None, **supports: Any) -> Problem:
    tiers, links = line("generic-phone-cpu", "generic-edge-cpu", "t4", links=["wifi", "wan"], catalogue=catalogue)
    return make_problem(graph, tiers, links, parse_sla(sla or {}), supports)


def _alive(rng: random.Random) -> tuple[bool, ...]:
    return rng.choice([(True, True, True)] * 3 + [(True, False, True), (True, True, False), (True, False, False)])


def _fresh(networks: dict[Any, CutNetwork], problem: Problem, state: State) -> float:
    """The best that cuts find on the tiers that are alive; its bound."""
    if state.alive not in networks:
        part = problem.restricted_to([k for k, lives in enumerate(state.alive) if lives])
        networks[state.alive] = CutNetwork(part, part.constraints.allowed)
    return networks[state.alive].least(objective_rates(problem, state)).objective


@pytest.mark.slow
@pytest.mark.parametrize("graph", [cnn(), unet(), two_tower(), fpn(), transformer()], ids=lambda graph: graph.name)
def test_regret_and_what_the_certificate_claims(catalogue: Catalogue, graph: BlockGraph) -> None:
    problem = _problem(catalogue, graph)
    pool, rng, networks = build_pool(problem), random.Random(17), dict[Any, CutNetwork]()
    certificate, grid = pool.certificate, Grid.for_links(2)
    assert certificate.exact
    assert certificate.regret_bound is not None
    for _ in range(200):
        state = replace(grid.between(problem.nominal, rng), alive=_alive(rng))
        best = _fresh(networks, problem, state)
        chosen = pool.choose(state).latency_s
        assert chosen <= best * 1.001
        assert chosen <= best * (1 + certificate.regret_bound + 1e-7)
    assert 0 <= certificate.certified_cells <= certificate.cells


@pytest.mark.slow
def test_throughput_is_chosen_by_the_slowest_stage(catalogue: Catalogue) -> None:
    problem = _problem(catalogue, two_tower(), {"objective": {"goal": "throughput"}})
    pool = build_pool(problem)
    assert pool.goal == "throughput"
    assert Pool.from_json(pool.to_json()) == pool
    rng = random.Random(2)
    for _ in range(50):
        state = random_state(rng, problem.nominal)
        chosen = pool.choose(state)
        slowest = [plan.bottleneck_s(state) for plan in pool.plans]
        assert chosen.plan.bottleneck_s(state) == pytest.approx(min(slowest))
        assert pool.scores(state).tolist() == pytest.approx(slowest)
    assert pool.choose(problem.nominal).plan.bottleneck_s(problem.nominal) == pytest.approx(solve(problem).objective)


@pytest.mark.slow
def test_what_is_absent_has_a_reason(catalogue: Catalogue) -> None:
    sla = {"keep_on": {"inputs": "phone"}, "memory_mb": {"phone": 30.0}}
    pool = build_pool(_problem(catalogue, unet(), sla))
    assert set(pool.absent) == {"all-phone", "all-edge", "all-cloud"}
    assert pool.absent["all-phone"].startswith("memory_mb of phone would be")
    assert "keep_on 'inputs' wants phone" in pool.absent["all-cloud"]
    assert not {plan.name for plan in pool.plans} & pool.absent.keys()


@pytest.mark.slow
def test_a_mode_holds_in_a_pool_while_it_keeps_the_bound(catalogue: Catalogue) -> None:
    sla = {"mode": "prefer_in_cloud", "bounds": {"latency_ms": 200.0}}
    problem = _problem(catalogue, cnn(), sla)
    pool = build_pool(problem)
    assert pool.preferred == "all-cloud"
    assert pool.choose(problem.nominal).plan.name == "all-cloud"
    slow_link = problem.nominal.scaled([1.0, 0.01])
    assert pool.choose(slow_link).plan.name != "all-cloud"
    assert pool.choose(replace(problem.nominal, alive=(True, True, False))).plan.name != "all-cloud"
    # Where nothing keeps the bound, the fastest is the least bad, whatever the mode.
    lost = replace(slow_link.scaled([0.001, 0.01]), slowdown=(50.0, 50.0, 1.0))
    assert pool.choose(lost).latency_s == pytest.approx(pool.latencies_s(lost).min())


@pytest.mark.slow
def test_tiers_that_must_be_used_leave_no_survivor(catalogue: Catalogue) -> None:
    problem = _problem(catalogue, cnn(), {"use_tiers": ["cloud"]})
    pool = build_pool(problem)
    assert all(2 in plan.placement for plan in pool.plans)
    with pytest.raises(UnavailableError, match="without cloud"):
        pool.choose(replace(problem.nominal, alive=(True, True, False)))
    with pytest.raises(PolicyError, match="no plan keeps the SLA"):
        solve(problem.restricted_to((0, 1)))


@pytest.mark.slow
def test_networks_forget_what_they_solved(catalogue: Catalogue) -> None:
    """A, then B, then A again on one network is what three fresh ones say."""
    for seed in range(25):
        rng = random.Random(seed)
        problem = random_problem(rng, catalogue)
        a, b = (objective_rates(problem, random_state(rng, problem.nominal)) for _ in range(2))
        one = CutNetwork(problem, problem.constraints.allowed)
        for rates in (a, b, a):
            assert one.least(rates) == CutNetwork(problem, problem.constraints.allowed).least(rates), seed
            chain = list(range(len(problem.graph.blocks)))
            assert one.solve(rates, chain) == CutNetwork(problem, problem.constraints.allowed).solve(rates, chain)


_LOOK_UP = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"ortools", "pandas", "pydantic", "torch", "scipy", "onnx"}:
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
from flagsplit.splitter.pool import Pool
pool = Pool.from_json(sys.stdin.read())
from flagsplit.splitter.state import State
state = State((1.0,) * 3, (1e-7,) * 2, (1e-7,) * 2, (0.01,) * 2, (0.01,) * 2, (True,) * 3)
print(pool.choose(state).plan.name)
"""

_RE_SOLVE = """
import sys
from flagsplit.splitter.mincut import CutNetwork
from flagsplit.splitter.rates import objective_rates
from flagsplit.splitter.problem import make_problem
from flagsplit.splitter.testing import line, unet
tiers, links = line("generic-phone-cpu", "t4", links=["wifi"])
problem = make_problem(unet(), tiers, links)
network = CutNetwork(problem, problem.constraints.allowed)
print(network.least(objective_rates(problem, problem.nominal)).exact)
print([name for name in ("pandas", "torch", "onnxruntime") if name in sys.modules])
"""


@pytest.mark.slow
def test_looking_up_needs_no_solver(catalogue: Catalogue) -> None:
    pool = build_pool(_problem(catalogue, two_tower()))
    done = subprocess.run([sys.executable, "-c", _LOOK_UP], input=pool.to_json(), capture_output=True, text=True)
    assert not done.stderr
    assert done.stdout.strip() in {plan.name for plan in pool.plans}


@pytest.mark.slow
def test_solving_again_needs_no_pandas() -> None:
    done = subprocess.run([sys.executable, "-c", _RE_SOLVE], capture_output=True, text=True)
    assert not done.stderr
    assert done.stdout.split("\n")[:2] == ["True", "[]"]
