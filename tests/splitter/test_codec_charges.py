"""Lossy codecs: what cuts and programs charge is never too much, and the choice is the best there is."""

import itertools
import random
from dataclasses import replace

import numpy as np
import pytest
from tests.splitter.oracles import random_state

from flagsplit.splitter.charges import transfer_charges
from flagsplit.splitter.codecs import CODEC_COSTS
from flagsplit.splitter.devices import Catalogue
from flagsplit.splitter.evaluate import Usage
from flagsplit.splitter.heuristics import Heuristic
from flagsplit.splitter.limits import violations_of
from flagsplit.splitter.mincut import CutNetwork
from flagsplit.splitter.problem import Problem, make_problem
from flagsplit.splitter.rates import Rates, energy_rates, objective_rates, price_rates, stage_rates
from flagsplit.splitter.sla import parse_sla
from flagsplit.splitter.solvers import goal_of, solve
from flagsplit.splitter.testing import placements, random_problem


def _problem(rng: random.Random, catalogue: Catalogue, most: int = 60, **sla: object) -> Problem:
    base = random_problem(rng, catalogue, most_placements=most)
    values = tuple(
        replace(value, codec_bytes={name: value.size_bytes // rng.choice([2, 4, 8]) + 8 for name in CODEC_COSTS})
        if rng.random() < 0.8
        else value
        for value in base.graph.values
    )
    graph = replace(base.graph, values=values)
    data = base.sla.model_dump(mode="json", exclude_none=True)
    data |= {"accuracy": {"every_cut": {"min_snr_db": rng.choice([20, 45, 60])}}} | sla
    return make_problem(graph, base.tiers, base.links, parse_sla(data), base.supports)


def _slow(problem: Problem, rates: Rates, row: tuple[int, ...], codecs: np.ndarray) -> float:
    """A measure with given codecs, value by value: bytes over links, one encoding, one decoding by each receiver."""
    total = float(Usage(problem, np.array([row])).round_trips[0] @ rates.message)
    total += sum(float(rates.unary[block, tier]) for block, tier in enumerate(row))
    for t, value in enumerate(problem.graph.values):
        made = 0 if value.producer < 0 else row[value.producer]
        needed = {row[c] for c in value.consumers} | ({0} if value.is_output else set())
        encoded = set()
        for direction, tiers in enumerate(({k for k in needed if k > made}, {k for k in needed if k < made})):
            if not tiers:
                continue
            c = int(codecs[direction, t])
            links = range(made, max(tiers)) if direction == 0 else range(min(tiers), made)
            per_byte = rates.up_byte if direction == 0 else rates.down_byte
            total += sum(float(per_byte[i]) for i in links) * float(problem.values.coded_bytes[c, t])
            total += sum(float(rates.decode[c, k]) for k in tiers) * value.size_bytes
            encoded.add(c)
        total += sum(float(rates.encode[c, made]) for c in encoded) * value.size_bytes
    return total


def _random_codecs(rng: random.Random, problem: Problem) -> np.ndarray:
    values = len(problem.graph.values)
    codecs = np.zeros((2, values), dtype=np.int64)
    for d, t in itertools.product(range(2), range(values)):
        able = [c for c in range(len(problem.codecs)) if np.isfinite(problem.values.coded_bytes[c, t])]
        codecs[d, t] = 0 if d and problem.graph.values[t].is_output else rng.choice(able)
    return codecs


def _measures(rng: random.Random, problem: Problem) -> list[Rates]:
    state = random_state(rng, problem.nominal)
    return [
        objective_rates(problem, state),
        energy_rates(problem),
        price_rates(problem),
        *stage_rates(problem, state).values(),
    ]


@pytest.mark.slow
def test_charges_are_never_too_much(catalogue: Catalogue) -> None:
    for seed in range(30):
        rng = random.Random(seed)
        problem = _problem(rng, catalogue)
        for rates in _measures(rng, problem):
            up, down = transfer_charges(problem, rates)
            for row in rng.sample(list(placements(problem)), 4) if len(list(placements(problem))) > 4 else ():
                codecs = _random_codecs(rng, problem)
                usage = Usage(problem, np.array([row]), codecs[np.newaxis])
                real = _slow(problem, rates, row, codecs)
                assert float(usage.measure(rates)[0]) == pytest.approx(real, rel=1e-9, abs=1e-15), seed
                run = float(rates.unary[np.arange(len(row)), list(row)].sum())
                run += float(usage.round_trips[0] @ rates.message)
                charged = run + float((up * usage.crossing[0, 0]).sum() + (down * usage.crossing[0, 1]).sum())
                assert charged <= real * (1 + 1e-12), seed


@pytest.mark.slow
def test_the_choice_is_the_best_by_direction(catalogue: Catalogue) -> None:
    for seed in range(30):
        rng = random.Random(seed)
        problem = _problem(rng, catalogue)
        rates = objective_rates(problem, random_state(rng, problem.nominal))
        row = rng.choice(list(placements(problem)))
        chosen = float(Usage.for_measure(problem, np.array([row]), rates).measure(rates)[0])
        for _ in range(30):
            codecs = _random_codecs(rng, problem)
            both_ways = Usage(problem, np.array([row])).crossing[0].any(axis=1).all(axis=0)
            codecs[1, both_ways & (codecs[0] == codecs[1])] = 0  # encoding once for both is the one thing not weighed
            assert chosen <= _slow(problem, rates, row, codecs) * (1 + 1e-9), seed


@pytest.mark.slow
def test_solve_equals_exhaustive_search_and_heuristics_keep_limits(catalogue: Catalogue) -> None:
    limited = 0
    for seed in range(40):
        rng = random.Random(seed)
        problem = _problem(rng, catalogue)
        rows = np.array(list(placements(problem)))
        objective = objective_rates(problem, problem.nominal)
        values = Usage.for_objective(problem, rows).measure(objective)
        if rng.random() < 0.6:
            energy = Usage.for_objective(problem, rows).measure(energy_rates(problem).times(1e3))
            sla = problem.sla.model_dump(mode="json", exclude_none=True)
            sla["bounds"] = {"energy_mj": max(float(np.median(energy)), 1e-6)}
            problem = problem.with_sla(parse_sla(sla))
        kept = [float(v) for v, row in zip(values, rows, strict=True) if not violations_of(problem, row)]
        solution = solve(problem)
        assert not violations_of(problem, solution.placement)
        assert solution.objective == pytest.approx(min(kept), rel=1e-6), seed
        assert solution.bound <= min(kept) * (1 + 1e-9)
        state = random_state(rng, problem.nominal)
        guess = Heuristic(problem, goal_of(problem, state)).best(polish=False)
        if guess is not None:
            assert not violations_of(problem, guess.placement), seed
        limited += len(kept) < len(rows)
    assert limited >= 5


@pytest.mark.slow
def test_cuts_bound_from_below(catalogue: Catalogue) -> None:
    for seed in range(40, 70):
        rng = random.Random(seed)
        problem = _problem(rng, catalogue)
        network = CutNetwork(problem, problem.constraints.allowed)
        rows = np.array(list(placements(problem)))
        for rates in _measures(rng, problem):
            best = float(Usage.for_measure(problem, rows, rates).measure(rates).min())
            cut = network.least(rates)
            assert cut.bound <= best * (1 + 1e-12) + 1e-18, seed
            assert cut.objective >= best * (1 - 1e-9), seed
