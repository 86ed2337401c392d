"""The two ways to look at what is planned: a model's blocks, or the layers of a decoder whose loop may be divided.

Both pose a problem, solve it, and say what the plan is compared with; `flagsplit.apps.planning` asks one of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from flagsplit.apps.deployment import Deployment
from flagsplit.apps.groundwork import BuildOptions, Groundwork, pose
from flagsplit.apps.layered import compared_with, is_divisible, layer_rivals, pose_layers
from flagsplit.apps.linked import answer_of
from flagsplit.apps.program_plans import plan_beside_chip
from flagsplit.flagir.programs import Program
from flagsplit.splitter.baselines import Baseline, all_baselines
from flagsplit.splitter.input_forms import InputForm
from flagsplit.splitter.layer_flips import layer_flips
from flagsplit.splitter.layer_plans import plan_layers
from flagsplit.splitter.pareto import Frontier, pareto_frontier
from flagsplit.splitter.pipeline import PlanningResult, plan_problem
from flagsplit.splitter.plan import Plan
from flagsplit.splitter.problem import Problem
from flagsplit.splitter.rivals import Rival, rivals
from flagsplit.splitter.sla import SLA
from flagsplit.splitter.solvers import Solution, solve
from flagsplit.splitter.thresholds import Flip, Thresholds

_THRESHOLD_SECONDS = 5.0


class View(Protocol):
    """One way to look at what is planned."""

    def pose(self, sla: SLA) -> Problem:
        """The problem under a policy."""

    def solve(self, problem: Problem) -> Solution:
        """Its best placement."""

    def plan(self, problem: Problem) -> PlanningResult:
        """Its pool, choice and reasons."""

    def compare(
        self, problem: Problem, planning: PlanningResult, forms: Sequence[InputForm]
    ) -> tuple[tuple[Baseline, ...], tuple[Rival, ...]]:
        """What to compare the plan with, and what comes next to it."""

    def flips(self, problem: Problem, chosen: Plan) -> tuple[Flip, ...]:
        """Where another plan becomes best."""

    def frontier(self, problem: Problem) -> Frontier | None:
        """The plans that no other beats in everything, if that is known here."""


def view_of(ground: Groundwork, deployment: Deployment, options: BuildOptions, program: Program | None) -> View:
    """The view for a model, or for the program that was linked to it."""
    if program is not None and is_divisible(program):
        return LayerView(ground, deployment, options, program)
    return BlockView(ground, deployment, options, program)


@dataclass(frozen=True)
class BlockView:
    """A model's blocks; those of a program, if it was one."""

    ground: Groundwork
    deployment: Deployment
    options: BuildOptions
    program: Program | None = None

    def pose(self, sla: SLA) -> Problem:
        """As of a build."""
        return pose(self.ground, self.deployment, sla, self.options)

    def solve(self, problem: Problem) -> Solution:
        """By the solver that fits."""
        return solve(problem)

    def plan(self, problem: Problem) -> PlanningResult:
        """As of a build."""
        return plan_problem(problem)

    def compare(
        self, problem: Problem, planning: PlanningResult, forms: Sequence[InputForm]
    ) -> tuple[tuple[Baseline, ...], tuple[Rival, ...]]:
        """Single tiers, inputs in other forms, and the splits of two papers."""
        compared = all_baselines(problem, forms)
        if self.program is not None:
            compared = self._beside_chip(problem, compared)
        return compared, rivals(problem, planning.pool, planning.chosen.plan, compared)

    def _beside_chip(self, problem: Problem, compared: tuple[Baseline, ...]) -> tuple[Baseline, ...]:
        """With the plan that a bundle has although the first tier's chip takes no loops."""
        plan = plan_beside_chip(problem, self.ground, self.deployment, self.options)
        if plan is None:
            return compared
        note = f"on the CPU of {plan.tiers[0]}, for its chip takes no loops"
        return tuple(
            Baseline(plan, None, note) if each.plan.name == plan.name and not each.allowed else each
            for each in compared
        )

    def flips(self, problem: Problem, chosen: Plan) -> tuple[Flip, ...]:
        """By cuts along every knob."""
        return Thresholds(problem, chosen.placement, _THRESHOLD_SECONDS).flips()

    def frontier(self, problem: Problem) -> Frontier:
        """By cuts and programs."""
        return pareto_frontier(problem)


@dataclass(frozen=True)
class LayerView:
    """The layers of a decoder without encoder."""

    ground: Groundwork
    deployment: Deployment
    options: BuildOptions
    program: Program

    def pose(self, sla: SLA) -> Problem:
        """Over its layers, for the tokens that are expected."""
        answer = answer_of(self.program, self.ground.dims, self.options.expected_tokens)
        return pose_layers(self.program, answer, self.ground.graph, self.deployment, sla)

    def solve(self, problem: Problem) -> Solution:
        """By looking at all placements."""
        return plan_layers(problem).solution

    def plan(self, problem: Problem) -> PlanningResult:
        """By looking at all placements, in every state."""
        return plan_layers(problem)

    def compare(
        self, problem: Problem, planning: PlanningResult, forms: Sequence[InputForm]
    ) -> tuple[tuple[Baseline, ...], tuple[Rival, ...]]:
        """Single tiers and all other divisions; tokens have no other form."""
        del forms
        chosen = planning.chosen.plan
        compared = compared_with(problem, planning.baselines, chosen)
        return compared, layer_rivals(problem, chosen, compared)

    def flips(self, problem: Problem, chosen: Plan) -> tuple[Flip, ...]:
        """Where lines cross."""
        return layer_flips(problem, chosen)

    def frontier(self, problem: Problem) -> None:
        """Not known: the table of all divisions has their figures."""
