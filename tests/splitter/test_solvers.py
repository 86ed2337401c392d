"""What `solve` decides against exhaustive search: tiers that must be used, preferences, modes, throughput."""

import random
from collections.abc import Callable
from typing import Any

import pytest
from tests.splitter.oracles import feasible, figures, goal_value, keeps, random_state, weighted

from flagsplit.errors import PolicyError
from flagsplit.splitter.devices import Catalogue
from flagsplit.splitter.problem import Problem, make_problem
from flagsplit.splitter.sla import parse_sla
from flagsplit.splitter.solvers import solve
from flagsplit.splitter.testing import cnn, line, random_problem, two_tower, unet, with_random_limits


def _sla(problem: Problem, **update: Any) -> Problem:
    data = problem.sla.model_dump(mode="json", exclude_none=True)
    for key, value in update.items():
        data[key] = {**data[key], **value} if isinstance(value, dict) else value
    return problem.with_sla(parse_sla(data))


def _limited(seed: int, catalogue: Catalogue, most: int = 250) -> tuple[random.Random, Problem]:
    rng = random.Random(seed)
    problem = random_problem(rng, catalogue, most_placements=most)
    return rng, with_random_limits(rng, problem) if rng.random() < 0.5 else problem


def _best(problem: Problem, value: Callable[..., float] = goal_value) -> float | None:
    return min((value(problem, placement) for placement in feasible(problem)), default=None)


@pytest.mark.slow
@pytest.mark.parametrize("first_seed", range(3000, 3040, 20))
def test_tiers_that_must_be_used(catalogue: Catalogue, first_seed: int) -> None:
    solved = refused = 0
    for seed in range(first_seed, first_seed + 20):
        rng, problem = _limited(seed, catalogue)
        names = problem.tier_names
        problem = _sla(problem, use_tiers=rng.sample(names, rng.randint(1, len(names))))
        best = _best(problem)
        if best is None:
            with pytest.raises(PolicyError, match="no plan keeps the SLA"):
                solve(problem, diagnose=False)
            refused += 1
            continue
        solution = solve(problem)
        assert keeps(problem, solution.placement), seed
        assert solution.objective == pytest.approx(best, rel=1e-6, abs=1e-12), seed
        solved += 1
    assert min(solved, refused) >= 2


@pytest.mark.slow
@pytest.mark.parametrize("first_seed", range(4000, 4040, 20))
def test_throughput_and_its_ties(catalogue: Catalogue, first_seed: int) -> None:
    for seed in range(first_seed, first_seed + 20):
        _, problem = _limited(seed, catalogue)
        problem = _sla(problem, objective={"goal": "throughput"})
        able = feasible(problem)
        if not able:
            with pytest.raises(PolicyError, match="no plan keeps the SLA"):
                solve(problem, diagnose=False)
            continue
        best = min(goal_value(problem, placement) for placement in able)
        solution = solve(problem)
        assert keeps(problem, solution.placement), seed
        assert solution.proven, seed
        assert solution.objective == pytest.approx(goal_value(problem, solution.placement), rel=1e-9)
        assert solution.objective == pytest.approx(best, rel=2e-6), seed
        # Of those that are as good, none has a better weighted sum.
        ties = [weighted(problem, p) for p in able if goal_value(problem, p) <= best * (1 + 1e-9)]
        assert weighted(problem, solution.placement) <= min(ties) * (1 + 1e-6) + 1e-12, seed


@pytest.mark.slow
@pytest.mark.parametrize("goal", ["latency", "throughput"])
def test_preferences_cost_no_more_than_they_may(catalogue: Catalogue, goal: str) -> None:
    moved = 0
    for seed in range(5000, 5030):
        rng, problem = _limited(seed, catalogue)
        problem = _sla(problem, objective={"goal": goal})
        within = rng.choice([0.0, 0.1, 0.5, 3.0])
        liked = rng.sample(problem.tier_names, rng.randint(1, len(problem.tier_names)))
        fond = _sla(problem, prefer_tiers=liked, prefer_within=within)
        able = feasible(problem)
        if not able:
            continue
        best = min(goal_value(problem, placement) for placement in able)
        solution = solve(fond)
        assert keeps(problem, solution.placement), seed
        assert solution.objective == pytest.approx(goal_value(problem, solution.placement), rel=1e-9)
        assert solution.objective <= best * (1 + within) * (1 + 3e-6), seed
        good = [p for p in able if goal_value(problem, p) <= best * (1 + within) * (1 - 3e-6)]
        least = min((_elsewhere(problem, p, liked) for p in good), default=float("inf"))
        assert _elsewhere(problem, solution.placement, liked) <= least * (1 + 2e-6) + 1e-9, seed
        moved += bool(solution.note)
        assert not solution.note or "objective is" in solution.note
    assert moved >= 2


def _elsewhere(problem: Problem, placement: tuple[int, ...], liked: list[str]) -> float:
    """Busy seconds on the tiers that are not preferred."""
    stages = figures(problem, placement).stages
    return sum(stages[name] for name in problem.tier_names if name not in liked)


def _three(catalogue: Catalogue, sla: dict[str, Any], link: str = "1gbit/1ms", **supports: Any) -> Problem:
    tiers, links = line("generic-phone-cpu", "generic-edge-cpu", "t4", links=[link, "wan"], catalogue=catalogue)
    return make_problem(cnn(2, 2), tiers, links, parse_sla(sla), supports)


@pytest.mark.parametrize(("mode", "tier"), [("on_device", 0), ("in_cloud", 2)])
def test_modes(catalogue: Catalogue, mode: str, tier: int) -> None:
    whole = (tier,) * 5
    for kind in ("prefer", "only"):
        problem = _three(catalogue, {"mode": f"{kind}_{mode}"})
        solution = solve(problem)
        assert solution.placement == whole
        assert solution.objective == pytest.approx(weighted(problem, whole))
    assert solve(_three(catalogue, {"mode": f"prefer_{mode}"})).solver == "mode"
    assert "mode" in solve(_three(catalogue, {"mode": f"prefer_{mode}"})).certificate
    assert set(solve(_three(catalogue, {"mode": f"prefer_{mode}", "pins": {"fc": "edge"}})).placement) - {tier}
    with pytest.raises(PolicyError, match=rf"block 'fc' has no tier left: .*mode only_{mode}") as caught:
        _three(catalogue, {"mode": f"only_{mode}", "pins": {"fc": "edge"}})
    assert "\n" not in str(caught.value)


def test_a_mode_gives_way_to_limits(catalogue: Catalogue) -> None:
    fast = _three(catalogue, {"mode": "prefer_on_device", "bounds": {"latency_ms": 1e5}})
    assert solve(fast).placement == (0,) * 5
    latency_ms = figures(fast, (0,) * 5).latency_s * 1e3
    late = _three(catalogue, {"mode": "prefer_on_device", "bounds": {"latency_ms": latency_ms * 0.9}})
    assert set(solve(late).placement) != {0}
    used = _three(catalogue, {"mode": "prefer_on_device", "use_tiers": ["edge"]})
    assert 1 in solve(used).placement


def test_vendors_and_targets(catalogue: Catalogue) -> None:
    assert solve(_three(catalogue, {})).placement == (1,) * 5
    assert 1 not in solve(_three(catalogue, {"forbid_tiers": ["edge"]})).placement
    # Phone and edge are of one vendor, and all three of one target.
    assert solve(_three(catalogue, {"forbid_vendors": ["GENERIC"]})).placement == (2,) * 5
    with pytest.raises(PolicyError, match="not phone: forbid_targets has 'ort'; not edge: forbid_targets has 'ort'"):
        _three(catalogue, {"forbid_targets": ["ort"]})
    fond = solve(_three(catalogue, {"prefer_vendors": ["nvidia"], "prefer_within": 100.0}))
    assert fond.placement == (2,) * 5
    assert "% worse than without" in fond.note
    assert solve(_three(catalogue, {"prefer_targets": ["ORT"]})).placement == (1,) * 5
    with pytest.raises(PolicyError, match="none of them is in the line"):
        solve(_three(catalogue, {"prefer_vendors": ["Acme"]}))
    with pytest.raises(PolicyError, match="prefer_tiers: there is no tier 'fog'"):
        _three(catalogue, {"prefer_tiers": ["fog"]})


def test_a_tier_that_is_free_is_found(catalogue: Catalogue) -> None:
    """A measure that some placement makes 0 is least there, whichever tier comes first."""
    tiers, links = line("t4", "t4", "pixel8", links=["1gbit/1ms", "1gbit/1ms"], catalogue=catalogue)
    devices = [tier.device.model_copy(update={"invocation": _nothing(tier.device.invocation)}) for tier in tiers]
    tiers = [type(tier)(tier.name, device) for tier, device in zip(tiers, devices, strict=True)]
    sla = {"objective": {"latency": 0, "price": 1}, "forbid_tiers": ["phone"]}
    problem = make_problem(unet(), tiers, links, parse_sla(sla))
    solution = solve(problem)
    assert solution.objective == 0.0
    assert set(solution.placement) == {2}


def _nothing(figure: Any) -> Any:
    return figure.model_copy(update={"value": 0.0})


@pytest.mark.slow
def test_time_that_runs_out_leaves_an_honest_bound(catalogue: Catalogue) -> None:
    checked = 0
    for seed in range(6000, 6020):
        rng = random.Random(seed)
        problem = with_random_limits(rng, random_problem(rng, catalogue, most_placements=250))
        best = _best(problem)
        for seconds in (0.0, 0.003):
            try:
                solution = solve(problem, milp_seconds=seconds, diagnose=False)
            except PolicyError:
                continue
            assert best is not None
            assert keeps(problem, solution.placement), seed
            assert solution.bound <= best * (1 + 1e-9) + 1e-12, seed
            assert best <= solution.objective * (1 + 1e-9) + 1e-12, seed
            checked += 1
    assert checked >= 12


@pytest.mark.slow
def test_states_change_the_goal_and_not_the_limits(catalogue: Catalogue) -> None:
    for seed in range(7000, 7030):
        rng, problem = _limited(seed, catalogue)
        able, state = feasible(problem), random_state(rng, problem.nominal)
        if able:
            best = min(goal_value(problem, placement, state) for placement in able)
            solution = solve(problem, state)
            assert keeps(problem, solution.placement), seed
            assert solution.objective == pytest.approx(best, rel=1e-6, abs=1e-12), seed


def test_ties_are_decided_the_same_way(catalogue: Catalogue) -> None:
    tiers, links = line("t4", "t4", "t4", links=["1gbit/0ms", "1gbit/0ms"], catalogue=catalogue)
    problem = make_problem(two_tower(), tiers, links)
    assert len({solve(problem).placement for _ in range(3)}) == 1
