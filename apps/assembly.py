"""From a canonical graph to a bundle: where planner, targets and bundle are wired together.

    plan → compile each tier's segments → write

How a model becomes a canonical graph is in `flagsplit.apps.pipeline`; `flagsplit.apps.rebuild` takes one out of a
bundle.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx_ir as ir

from flagsplit import flagir
from flagsplit.apps.bundle_contents import Canonical, Contents, Pooled, planned_steps
from flagsplit.apps.deployment import Deployment
from flagsplit.apps.extra_plans import add_plans
from flagsplit.apps.groundwork import BuildOptions, Groundwork, pose, prepare
from flagsplit.apps.layered import is_divisible, rules_for
from flagsplit.apps.open_shapes import shape_notes
from flagsplit.apps.plan_graphs import PlanGraphs, cut_plans, tier_by_node
from flagsplit.apps.plan_views import LayerView
from flagsplit.apps.program_plans import add_program_plans, beside_chips
from flagsplit.apps.tier_artifacts import Compiled, compile_options, compile_tier
from flagsplit.apps.tier_parts import TierParts, tier_parts
from flagsplit.errors import PolicyError
from flagsplit.flagir.programs import Program
from flagsplit.runtime.archive import write_archive
from flagsplit.runtime.itinerary import itinerary
from flagsplit.splitter.calibration import Calibration
from flagsplit.splitter.pipeline import PlanningResult, plan_problem
from flagsplit.splitter.plan import Plan
from flagsplit.splitter.profiles import Profile
from flagsplit.splitter.sla import SLA
from flagsplit.targets.interface import CompileOptions
from flagsplit.transport.messages import MAX_HOPS

Progress = Callable[[str, float], None]
"""Called with what is being done and how much of the build is done, 0 to 1."""


@dataclass(frozen=True)
class BuildResult:
    """What a build made.

    Attributes:
        path: the bundle.
        digest: of the bundle.
        size_bytes: of the file.
        weights_bytes: of all weights in it.
        seconds: by step of the build.
        planning: plans, choice, reasons.
        calibrations: by name of each tier with a profile, which of its blocks were measured.
        notes: what was assumed.
        layers: of a decoder-only program, the plans that divide its layers.
    """

    path: Path
    digest: str
    size_bytes: int
    weights_bytes: int
    seconds: Mapping[str, float]
    planning: PlanningResult
    calibrations: Mapping[str, Calibration] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    layers: PlanningResult | None = None


class Clock:
    """Times the steps of a build and passes them on as progress."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._name = ""
        self._started = time.monotonic()
        self.seconds: dict[str, float] = {}

    def step(self, name: str, share: float) -> None:
        """The step before is over, this one begins; so much is done."""
        now = time.monotonic()
        if self._name:
            self.seconds[self._name] = now - self._started
        self._name, self._started = name, now
        self._progress(name, share)

    def share(self, name: str, share: float) -> None:
        """So much of the build is done."""
        self._progress(name, share)


def assemble(
    canonical: Canonical,
    output: Path,
    deployment: Deployment,
    sla: SLA,
    options: BuildOptions,
    clock: Clock,
    profiles: Mapping[str, Profile] | None = None,
) -> BuildResult:
    """Plan, compile and write a bundle from a canonical graph, which gets the plans put on it.

    Raises:
        PolicyError: no plan can keep the SLA.
        ConfigError: the output cannot be written.
    """
    model = canonical.graph
    clock.step("plan", 0.5)
    ground = prepare(model, deployment, options, profiles or {})
    pooled = _pool(canonical.program, ground, deployment, sla, options)
    clock.step("compile", 0.7)
    graphs = cut_plans(model, ground.graph, pooled.planning.pool.plans)
    pooled = replace(pooled, planning=_without_endless_routes(pooled.planning, graphs, model))
    given = compile_options(model, canonical.weights, deployment, ground, options)
    compiled = _compile(graphs, pooled.planning, ground, deployment, options, given)
    for plan in pooled.planning.pool.plans:
        flagir.write_placement(model, plan.name, plan.tiers, tier_by_node(ground.graph, plan))
    clock.step("write", 0.8)
    contents = Contents(canonical, deployment, options, ground, pooled, graphs, given, compiled)
    members = contents.members()
    tiers = contents.tiers(members)
    digest = write_archive(
        output,
        members,
        lambda sizes: contents.facts(sla, tiers, sizes),
        lambda done, total: clock.share("write", 0.8 + 0.2 * done / max(total, 1)),
    )
    clock.step("done", 1.0)
    return BuildResult(
        output,
        digest,
        output.stat().st_size,
        flagir.weights_bytes(model),
        clock.seconds,
        pooled.planning,
        ground.profiled.calibrations,
        (*deployment.notes, *shape_notes(deployment, ground, options)),
        pooled.layers,
    )


def _pool(
    program: Program | None, ground: Groundwork, deployment: Deployment, sla: SLA, options: BuildOptions
) -> Pooled:
    """All plans: those of the model, of its program, and those that were asked for besides."""
    layers = _plan_layers(program, ground, deployment, sla, options)
    if layers is not None:
        rules = rules_for(ground.graph, sla, layers.problem.graph)
        problem = pose(beside_chips(ground, deployment), deployment, rules, options)
    else:
        problem = pose(ground, deployment, sla, options)
    planning = plan_problem(problem)
    if program is not None and layers is None:
        planning = add_program_plans(planning, ground, deployment, options)
    if options.extra_plans is None:
        return Pooled(problem, planning, layers)
    pooled = {plan.name for plan in planning.pool.plans}
    planning = add_plans(planning, options.extra_plans)
    return Pooled(
        problem, planning, layers, tuple(plan.name for plan in planning.pool.plans if plan.name not in pooled)
    )


def _plan_layers(
    program: Program | None, ground: Groundwork, deployment: Deployment, sla: SLA, options: BuildOptions
) -> PlanningResult | None:
    """Of a decoder-only program, the plans that divide its layers."""
    if program is None or not is_divisible(program):
        return None
    view = LayerView(ground, deployment, options, program)
    return view.plan(view.pose(sla))


def _compile(
    graphs: PlanGraphs,
    planning: PlanningResult,
    ground: Groundwork,
    deployment: Deployment,
    options: BuildOptions,
    given: CompileOptions,
) -> list[tuple[TierParts, list[Compiled]]]:
    """What each tier runs, and what its targets made of that."""
    plans, memory = planning.pool.plans, planning.problem.memory_bytes
    found = []
    for index, (tier, chosen) in enumerate(zip(deployment.tiers, deployment.targets, strict=True)):
        parts = tier_parts(graphs, ground.graph, plans, index, float(memory[index]), options.residency)
        found.append((parts, compile_tier(graphs.model, parts, tier, chosen, ground, options, given)))
    return found


def _without_endless_routes(planning: PlanningResult, graphs: PlanGraphs, model: ir.Model) -> PlanningResult:
    """Leave out plans that change tiers more often than one request can say."""
    pool = planning.pool
    hops = {plan.name: _hop_count(plan, graphs, model) for plan in pool.plans}
    chosen = pool.plans[0].name
    if hops[chosen] > MAX_HOPS:
        raise PolicyError(
            f"the best plan passes from tier to tier {hops[chosen] - 1} times in one request, "
            f"at most {MAX_HOPS - 1} can be sent; loosen the SLA's pins"
        )
    kept = [index for index, plan in enumerate(pool.plans) if hops[plan.name] <= MAX_HOPS]
    plans, bias = tuple(pool.plans[index] for index in kept), tuple(pool.bias[index] for index in kept)
    return replace(planning, pool=replace(pool, plans=plans, bias=bias))


def _hop_count(plan: Plan, graphs: PlanGraphs, model: ir.Model) -> int:
    inputs, outputs = ([value.name or "" for value in values] for values in (model.graph.inputs, model.graph.outputs))
    answers = graphs.answers.get(plan.name, {})
    passed = plan.route or range(len(plan.tiers))
    return len(itinerary(planned_steps(graphs.steps[plan.name]), inputs, [answers.get(n, n) for n in outputs], passed))
