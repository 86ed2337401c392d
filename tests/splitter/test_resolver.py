"""Solving again: the same optimum as a fresh solve, in any state, with the arcs built once."""

import random
import subprocess
import sys
from dataclasses import replace

import pytest

from flagsplit.errors import PolicyError, UnavailableError
from flagsplit.splitter.devices import Catalogue
from flagsplit.splitter.grid import Grid
from flagsplit.splitter.links import parse_link
from flagsplit.splitter.problem import Bypass, Problem, make_problem
from flagsplit.splitter.resolver import Resolver
from flagsplit.splitter.sla import parse_sla
from flagsplit.splitter.solvers import solve
from flagsplit.splitter.testing import cnn, line, two_tower, unet


def _problem(catalogue: Catalogue, graph: object, sla: str = "{}", bypass: bool = False) -> Problem:
    tiers, links = line("generic-phone-cpu", "generic-edge-cpu", "t4", links=["wifi", "wan"], catalogue=catalogue)
    bypasses = [Bypass(0, 2, parse_link("30mbit/20ms"))] if bypass else []
    return make_problem(graph, tiers, links, parse_sla(sla), bypasses=bypasses)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("bypass", [False, True], ids=["line", "bypass"])
@pytest.mark.parametrize("graph", [cnn(), unet(), two_tower()], ids=lambda graph: graph.name)
def test_equals_a_fresh_solve(catalogue: Catalogue, graph: object, bypass: bool) -> None:
    problem = _problem(catalogue, graph, bypass=bypass)
    resolver, rng = Resolver(problem), random.Random(3)
    grid = Grid.for_links(3 if bypass else 2)
    for _ in range(25):
        state = grid.between(problem.nominal, rng)
        found = resolver.resolve(state, good_enough=0.0)
        best = solve(problem, state).objective
        assert found.objective == pytest.approx(best, rel=1e-6)
        assert found.bound <= best * (1 + 1e-9)
        assert found.plan.latency_s(state) == pytest.approx(found.objective, rel=1e-9)
        assert not found.broken


def test_dead_tiers_run_nothing(catalogue: Catalogue) -> None:
    problem = _problem(catalogue, two_tower())
    resolver = Resolver(problem)
    state = replace(problem.nominal, alive=(True, False, True))
    plan = resolver.resolve(state).plan
    assert 1 not in plan.used_tiers
    assert plan.placement == solve(problem.restricted_to((0, 2))).placement
    with pytest.raises(UnavailableError, match="phone is where requests start"):
        resolver.resolve(replace(problem.nominal, alive=(False, True, True)))


def test_networks_are_built_once(catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = _problem(catalogue, cnn())
    resolver = Resolver(problem)
    monkeypatch.setattr("flagsplit.splitter.resolver.CutNetwork", None)
    assert resolver.resolve(problem.nominal).plan.placement == solve(problem).placement


def test_broken_limits_are_said(catalogue: Catalogue) -> None:
    free = Resolver(_problem(catalogue, cnn())).resolve(_problem(catalogue, cnn()).nominal)
    bound_ms = free.objective * 1e3 * 0.5
    tight = Resolver(_problem(catalogue, cnn(), f'{{"bounds": {{"latency_ms": {bound_ms}}}}}'))
    assert [violation.limit for violation in tight.resolve(tight.problem.nominal).broken] == ["latency_ms"]


def test_throughput_is_refused(catalogue: Catalogue) -> None:
    with pytest.raises(PolicyError, match=r"objective\.goal"):
        Resolver(_problem(catalogue, cnn(), '{"objective": {"goal": "throughput"}}'))


def test_comes_without_pandas_and_torch() -> None:
    code = (
        "import sys\n"
        "from flagsplit.splitter.resolver import Resolver\n"
        "from flagsplit.splitter.problem import make_problem\n"
        "from flagsplit.splitter.testing import cnn, line\n"
        "tiers, links = line('generic-phone-cpu', 't4', links=['wifi'])\n"
        "problem = make_problem(cnn(), tiers, links)\n"
        "Resolver(problem).resolve(problem.nominal)\n"
        "print([m for m in ('pandas', 'torch', 'onnx', 'onnxruntime') if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
