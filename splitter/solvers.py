"""One function that solves a placement problem, and how it decides.

Least latency, price, energy: the minimum cut is exact as long as no cap or bound gets in its way, and its value bounds
every other plan. Where one does, and for throughput, `flagsplit.splitter.heuristics` gives a first plan and
`flagsplit.splitter.milp` finishes it or proves that there is none; the error then says what would have to give. What
the SLA prefers is decided among the plans that are good enough. By-passes are lines of their own, and the best wins.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from flagsplit.errors import PolicyError
from flagsplit.splitter import milp
from flagsplit.splitter.chain_dp import best_on_chain, is_chain
from flagsplit.splitter.constraints import preferred_tiers
from flagsplit.splitter.heuristics import Heuristic
from flagsplit.splitter.infeasible import limits_of, why_infeasible
from flagsplit.splitter.limits import violations_of
from flagsplit.splitter.milp_form import measured
from flagsplit.splitter.mincut import CutNetwork
from flagsplit.splitter.problem import Problem
from flagsplit.splitter.rates import Rates, busy_rates, objective_rates, stage_rates
from flagsplit.splitter.routes import Route, routes_of
from flagsplit.splitter.state import State

_PROVEN = 1e-6
_FEW_BLOCKS = 150


@dataclass(frozen=True)
class Solution:
    """The answer to a placement problem.

    Attributes:
        placement: tier index of each block.
        objective: the SLA's weighted objective, in seconds where the latency weight is 1; for the goal "throughput"
            the seconds of the slowest stage.
        bound: proven lower bound on the objective of any plan that keeps the SLA.
        solver: who proved the bound: "min-cut", "chain-dp", "milp-cp-sat" or "milp-highs"; "heuristic" if none reached
            it in time; "mode" if the SLA's mode decided.
        seconds: wall time it took.
        route: indices of the tiers that a request passes; those left out are by-passed.
        note: what to know beside, such as what a preference cost.
    """

    placement: tuple[int, ...]
    objective: float
    bound: float
    solver: str
    seconds: float
    route: tuple[int, ...] = ()
    note: str = ""

    @property
    def gap(self) -> float:
        """Relative distance between objective and bound; 0 is proven optimal."""
        return max(0.0, (self.objective - self.bound) / self.objective) if self.objective > 0 else 0.0

    @property
    def proven(self) -> bool:
        """Whether the placement is optimal up to rounding."""
        return self.gap <= _PROVEN

    @property
    def certificate(self) -> str:
        """In words: what is proven, and by whom."""
        if self.solver == "mode":
            return "decided by the SLA's mode"
        what = "optimal" if self.proven else f"at most {100 * self.gap:.2g} % from the optimum"
        return f"proven {what} by {self.solver} in {self.seconds:.2f} s"


class _NoPlanError(PolicyError):
    """Nothing on one line keeps the SLA."""


def solve(
    problem: Problem, state: State | None = None, milp_seconds: float = 10.0, *, diagnose: bool = True
) -> Solution:
    """The best placement under the problem's SLA.

    Args:
        problem: what to place where.
        state: theta that the objective is taken in, nominal by default; bounds always hold at the nominal state.
        milp_seconds: time limit for the exact search where cuts do not decide.
        diagnose: whether to spend more time on finding out what would have to give if nothing keeps the SLA.

    Raises:
        PolicyError: no placement keeps the caps and bounds; the message says what would have to give.
    """
    started = time.perf_counter()
    state = state or problem.nominal
    found = _by_mode(problem, state) or _best_route(problem, state, milp_seconds, diagnose)
    return replace(found, seconds=time.perf_counter() - started)


def _by_mode(problem: Problem, state: State) -> Solution | None:
    """The whole request where the mode wants it, if everything else allows."""
    wanted = {"prefer_on_device": 0, "prefer_in_cloud": len(problem.tiers) - 1}.get(problem.sla.mode or "")
    if wanted is None or not problem.constraints.allowed[:, wanted].all():
        return None
    for route in sorted(routes_of(problem), key=lambda r: len(r.tiers)):
        placement = (wanted,) * len(problem.graph.blocks)
        if wanted in route.tiers and not violations_of(route.problem, route.from_whole_line(placement)):
            value = _goal_value(route, state, placement)
            return Solution(placement, value, value, "mode", 0.0, route.tiers, f"mode {problem.sla.mode}")
    return None


def _goal_value(route: Route, state: State, placement: Sequence[int]) -> float:
    goal = goal_of(route.problem, route.state(state))
    return measured(route.problem, goal, route.from_whole_line(placement))


def goal_of(problem: Problem, state: State) -> Rates | tuple[Rates, ...]:
    """What the SLA minimizes in that state: a measure, or the largest of the stages for throughput."""
    if problem.sla.objective.goal == "throughput":
        return tuple(stage_rates(problem, state).values())
    return objective_rates(problem, state)


def _best_route(problem: Problem, state: State, seconds: float, diagnose: bool) -> Solution:
    routes = routes_of(problem)
    found: list[Solution] = []
    failed: list[str] = []
    for route in routes:
        try:
            solution = _on_line(route.problem, route.state(state), seconds / len(routes), diagnose)
        except _NoPlanError as error:
            failed.append(str(error))
            continue
        found.append(replace(solution, placement=route.on_whole_line(solution.placement), route=route.tiers))
    if not found:
        raise PolicyError(failed[0])
    best = min(found, key=lambda solution: solution.objective)
    return replace(best, bound=min(solution.bound for solution in found))


def _on_line(problem: Problem, state: State, seconds: float, diagnose: bool) -> Solution:
    goal = goal_of(problem, state)
    chain = _chain(problem, goal)
    if chain is not None and not problem.sla.has_preferences:
        return chain
    network = CutNetwork(problem, problem.constraints.allowed)
    solution = chain or _cut(problem, goal, network) or _limited(problem, goal, network, seconds, diagnose)
    if isinstance(goal, tuple):
        solution = _then_objective(problem, goal, state, solution, seconds)
    return _preferred(problem, goal, solution, seconds) if problem.sla.has_preferences else solution


def _chain(problem: Problem, goal: Rates | tuple[Rates, ...]) -> Solution | None:
    """The shortest path, where the graph is a chain and the path is the whole answer."""
    if not isinstance(goal, Rates) or not is_chain(problem):
        return None
    found = best_on_chain(problem, goal)
    if found is None or (problem.is_limited and violations_of(problem, found.placement)):
        return None
    return Solution(found.placement, found.objective, found.bound, "chain-dp", 0.0)


def _cut(problem: Problem, goal: Rates | tuple[Rates, ...], network: CutNetwork) -> Solution | None:
    """The cut, where it is the whole answer."""
    if not isinstance(goal, Rates):
        return None
    cut = network.least(goal)
    if not cut.exact or violations_of(problem, cut.placement):
        return None
    return Solution(cut.placement, cut.objective, cut.bound, "min-cut", 0.0)


def _limited(
    problem: Problem, goal: Rates | tuple[Rates, ...], network: CutNetwork, seconds: float, diagnose: bool
) -> Solution:
    limits = limits_of(problem)
    heuristic = Heuristic(problem, goal, network)
    start = heuristic.best(polish=len(problem.graph.blocks) > _FEW_BLOCKS)
    bound = network.least(goal).bound if isinstance(goal, Rates) else heuristic.bound
    if start is not None and bound >= start.objective * (1 - _PROVEN):
        return Solution(start.placement, start.objective, min(bound, start.objective), "min-cut", 0.0)
    found = milp.minimize(problem, goal, limits, seconds, start.placement if start else None)
    if found.infeasible:
        raise _NoPlanError(why_infeasible(problem, limits, seconds) if diagnose else "no plan keeps the SLA")
    if found.placement is None:
        raise _NoPlanError(
            f"no plan that keeps {', '.join(milp.named_limits(limits))} was found in {seconds:g} s, nor proof that "
            f"there is none: allow more time or relax one"
        )
    bound = min(max(bound, found.bound if math.isfinite(found.bound) else -math.inf), found.value)
    solver = found.solver if found.proven else "heuristic" if found.bound < bound else found.solver
    return Solution(found.placement, found.value, bound, solver, 0.0)


def _then_objective(
    problem: Problem, stages: tuple[Rates, ...], state: State, solution: Solution, seconds: float
) -> Solution:
    """Among the plans whose slowest stage is no slower, the one with the best weighted sum."""
    limits = limits_of(problem)
    most = max(solution.objective, 1e-12) * (1 + _PROVEN)
    named = {f"stage {i}": (rates, most) for i, rates in enumerate(stages)}
    tighter = milp.Limits({**limits.measures, **named}, limits.memory_mb)
    found = milp.minimize(problem, objective_rates(problem, state), tighter, seconds, solution.placement)
    placement = found.placement or solution.placement
    return replace(solution, placement=placement, objective=measured(problem, stages, placement))


def _preferred(problem: Problem, goal: Rates | tuple[Rates, ...], solution: Solution, seconds: float) -> Solution:
    """Among the plans that are good enough, the one that works least on tiers that the SLA does not prefer."""
    others = np.ones(len(problem.tiers))
    others[list(preferred_tiers(problem.tiers, problem.sla))] = 0.0
    most = max(solution.objective, 1e-12) * (1 + problem.sla.prefer_within) * (1 + 1e-9)
    goals = (goal,) if isinstance(goal, Rates) else goal
    limits = limits_of(problem)
    named = {f"objective {i}": (rates, most) for i, rates in enumerate(goals)}
    tighter = milp.Limits({**limits.measures, **named}, limits.memory_mb)
    found = milp.minimize(problem, busy_rates(problem, others), tighter, seconds, solution.placement)
    if found.placement is None or found.placement == solution.placement:
        return solution
    value = measured(problem, goal, found.placement)
    cost = 100 * (value / solution.objective - 1) if solution.objective > 0 else 0.0
    note = f"preferences moved work; the objective is {cost:.2g} % worse than without them"
    return replace(solution, placement=found.placement, objective=value, note=note)
