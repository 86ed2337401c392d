"""Solving again while a deployment runs: the networks stay, only their capacities change with the state.

For states that the pool was not built for, or to see what a new pool would gain. One flow a call, no pandas, no solver
but OR-Tools' max-flow. Caps and bounds are looked at, not optimized under: an answer that breaks one says so, and the
pool or `flagsplit.splitter.solvers.solve` is what to fall back on.
"""

from dataclasses import dataclass

import numpy as np

from flagsplit.errors import PolicyError, UnavailableError
from flagsplit.splitter.evaluate import choose_codecs
from flagsplit.splitter.limits import Violation, violations_of
from flagsplit.splitter.mincut import CutNetwork, CutResult
from flagsplit.splitter.plan import Plan
from flagsplit.splitter.plan_maker import make_plan, tier_set_name
from flagsplit.splitter.problem import Problem
from flagsplit.splitter.rates import objective_rates
from flagsplit.splitter.routes import Route, routes_of
from flagsplit.splitter.state import State


@dataclass(frozen=True)
class Resolved:
    """The answer for one state.

    Attributes:
        plan: the plan.
        objective: its weighted sum in that state.
        bound: no plan on the tiers that are alive is below this.
        broken: the SLA's caps and bounds that it breaks at the nominal state.
    """

    plan: Plan
    objective: float
    bound: float
    broken: tuple[Violation, ...]


class Resolver:
    """Plans for one problem in state after state. Not for use from several threads at once.

    Args:
        problem: what to place where; its goal must be "latency".

    Raises:
        PolicyError: the goal is "throughput", which takes more than a cut.
    """

    def __init__(self, problem: Problem) -> None:
        if problem.sla.objective.goal != "latency":
            raise PolicyError("objective.goal: throughput is not solved again at run time; choose from the pool")
        self.problem = problem
        self._networks: dict[tuple[bool, ...], list[tuple[Route, CutNetwork]]] = {}
        self._alive(problem.nominal.alive)

    def resolve(self, state: State, good_enough: float = 5e-3) -> Resolved:
        """The best plan in a state.

        Args:
            state: theta now, with the tiers that are alive.
            good_enough: relative gap that is not worth more flows.

        Raises:
            UnavailableError: the tiers that are alive cannot run the graph.
        """
        found: list[tuple[CutResult, Route]] = []
        for route, network in self._alive(state.alive):
            rates = objective_rates(route.problem, route.state(state))
            found.append((network.least(rates, good_enough), route))
        cut, route = min(found, key=lambda each: each[0].objective)
        placement = route.on_whole_line(cut.placement)
        row = np.array([cut.placement], dtype=np.int64)
        codecs = choose_codecs(route.problem, row, objective_rates(route.problem, route.state(state)))
        whole = len(route.tiers) == len(self.problem.tiers)
        plan = make_plan(
            self.problem,
            placement,
            tier_set_name(self.problem.tier_names, placement),
            route=None if whole else route,
            codecs=None if codecs is None else codecs[0],
        )
        bound = min(each.bound for each, _ in found)
        return Resolved(plan, cut.objective, bound, tuple(violations_of(route.problem, cut.placement)))

    def _alive(self, alive: tuple[bool, ...]) -> list[tuple[Route, CutNetwork]]:
        """The networks of every route, blocks on tiers that are alive only; made when first asked for."""
        if alive not in self._networks:
            tiers = [k for k, lives in enumerate(alive) if lives]
            if 0 not in tiers:
                raise UnavailableError(f"{self.problem.tier_names[0]} is where requests start; nothing runs without it")
            try:
                part = self.problem.restricted_to(tiers)
            except PolicyError as error:
                raise UnavailableError(f"no plan runs on {len(tiers)} of the tiers: {error}") from None
            networks = [(r, CutNetwork(r.problem, r.problem.constraints.allowed)) for r in routes_of(part)]
            self._networks[alive] = networks
        return self._networks[alive]
