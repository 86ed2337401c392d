"""From a canonical graph to a bundle: where planner, targets and bundle are wired together.

    plan → compile each tier's segments → write

How a model becomes a canonical graph is in `flagsplit.apps.pipeline`; `flagsplit.apps.rebuild` takes one out of a
bundle.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from flagsplit import __version__, flagir
from flagsplit.apps.deployment import Deployment
from flagsplit.apps.extra_plans import add_plans
from flagsplit.apps.graph_tensors import tensor_of
from flagsplit.apps.groundwork import BuildOptions, Groundwork, pose, prepare
from flagsplit.apps.layered import is_divisible, rules_for
from flagsplit.apps.open_shapes import shape_notes
from flagsplit.apps.plan_graphs import PlanGraphs, cut_plans, tier_by_node
from flagsplit.apps.plan_views import LayerView
from flagsplit.apps.program_members import ProgramBuild, program_members
from flagsplit.apps.program_plans import add_program_plans, beside_chips
from flagsplit.apps.recipe import COSTS_NAME, costs_to_json, kept_samples, recipe_of, sla_data
from flagsplit.apps.tier_artifacts import Compiled, compile_options, compile_tier
from flagsplit.apps.tier_parts import TierParts, tier_parts
from flagsplit.errors import PolicyError
from flagsplit.flagir import BlockGraph, Step
from flagsplit.flagir.programs import Program
from flagsplit.runtime.archive import Member, write_archive
from flagsplit.runtime.bundle import GRAPH_NAME, PLANS_NAME, WEIGHTS_MEMBER, PlanSet
from flagsplit.runtime.itinerary import PlannedStep, itinerary
from flagsplit.runtime.manifest import FORMAT, Facts, Model
from flagsplit.runtime.manifest import Tier as ManifestTier
from flagsplit.splitter.calibration import Calibration
from flagsplit.splitter.pipeline import PlanningResult, plan_problem
from flagsplit.splitter.plan import Plan
from flagsplit.splitter.problem import Problem
from flagsplit.splitter.profiles import Profile
from flagsplit.splitter.sla import SLA
from flagsplit.targets.interface import CompileOptions
from flagsplit.transport.messages import MAX_HOPS

TRACE_NAME = "build-trace.json"
_MAX_METADATA_BYTES = 1 << 20

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


@dataclass(frozen=True)
class Canonical:
    """A canonical graph without plans on it, and where it comes from.

    Attributes:
        graph: whose large tensors are mapped from `weights`.
        weights: the file of the weights.
        origin: name and digest of the model as it was given.
        nodes_read: of the model as it was given.
        program: the program that was linked to this model, if it was one; its weights are mapped from `weights` too.
    """

    graph: ir.Model
    weights: Path
    origin: Model
    nodes_read: int
    program: Program | None = None


@dataclass(frozen=True)
class _Pooled:
    """What was posed and planned; of a decoder-only program also its layers; and the plans that were asked for."""

    problem: Problem
    planning: PlanningResult
    layers: PlanningResult | None
    extra: tuple[str, ...] = ()


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
    planning = _without_endless_routes(pooled.planning, graphs, model)
    given = compile_options(model, canonical.weights, deployment, ground, options)
    compiled = _compile(graphs, planning, ground, deployment, options, given)
    for plan in planning.pool.plans:
        flagir.write_placement(model, plan.name, plan.tiers, tier_by_node(ground.graph, plan))
    clock.step("write", 0.8)
    members: dict[str, Member] = {
        GRAPH_NAME: flagir.to_bytes(model),
        WEIGHTS_MEMBER: canonical.weights,
        PLANS_NAME: _plan_set(planning, graphs).to_json(),
        TRACE_NAME: _trace(canonical.nodes_read, model, ground.graph, planning),
        **kept_samples(options, given.samples),
    }
    if options.costs is not None or ground.profiled.costs is not None:
        members[COSTS_NAME] = costs_to_json(pooled.problem.costs)
    if canonical.program is not None:
        part = ProgramBuild(canonical.program, options.expected_tokens, pooled.layers)
        members |= program_members(model, graphs, planning.pool.plans, part)
    tiers = [
        ManifestTier(
            name=tier.name,
            device=tier.device.name,
            artifacts=[made.entry(tier.name, parts, members) for made in artifacts],
        )
        for tier, (parts, artifacts) in zip(deployment.tiers, compiled, strict=True)
    ]
    facts = Facts(
        format=FORMAT,
        model=canonical.origin,
        tiers=tiers,
        inputs=[tensor_of(value) for value in model.graph.inputs],
        outputs=[tensor_of(value) for value in model.graph.outputs],
        nominal_dims=ground.dims,
        dim_ranges=ground.ranges,
        dim_sizes={name: list(sizes) for name, sizes in options.listed.items()},
        weights_bytes=flagir.weights_bytes(model),
        sizes={},  # of the members, which are known when they are written
        metadata=_metadata(model),
        built_with=f"flagsplit {__version__}",
        sla=sla_data(sla),
        recipe=recipe_of(deployment, options, given, canonical.nodes_read, pooled.extra),
    )
    digest = write_archive(
        output,
        members,
        lambda sizes: facts.model_copy(update={"sizes": sizes}),
        lambda done, total: clock.share("write", 0.8 + 0.2 * done / max(total, 1)),
    )
    clock.step("done", 1.0)
    return BuildResult(
        output,
        digest,
        output.stat().st_size,
        facts.weights_bytes,
        clock.seconds,
        planning,
        ground.profiled.calibrations,
        (*deployment.notes, *shape_notes(deployment, ground, options)),
        pooled.layers,
    )


def _pool(
    program: Program | None, ground: Groundwork, deployment: Deployment, sla: SLA, options: BuildOptions
) -> _Pooled:
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
        return _Pooled(problem, planning, layers)
    pooled = {plan.name for plan in planning.pool.plans}
    planning = add_plans(planning, options.extra_plans)
    return _Pooled(
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
    return len(itinerary(_planned(graphs.steps[plan.name]), inputs, [answers.get(n, n) for n in outputs], passed))


def _plan_set(planning: PlanningResult, graphs: PlanGraphs) -> PlanSet:
    names = [plan.name for plan in planning.pool.plans]
    return PlanSet(
        pool=planning.pool,
        steps={name: _planned(graphs.steps[name]) for name in names},
        nominal=planning.problem.nominal,
        reasons=planning.reasons,
        answers={name: graphs.answers[name] for name in names if name in graphs.answers},
    )


def _planned(steps: Sequence[Step]) -> tuple[PlannedStep, ...]:
    return tuple(PlannedStep(s.tier, s.segment.id, s.segment.inputs, s.segment.outputs) for s in steps)


def _metadata(model: ir.Model) -> dict[str, str]:
    """The model's own notes, such as the characters that a recognizer knows; those over a megabyte are left out."""
    return {key: text for key, text in sorted(model.metadata_props.items()) if len(text) <= _MAX_METADATA_BYTES}


def _trace(nodes_read: int, model: ir.Model, graph: BlockGraph, planning: PlanningResult) -> bytes:
    """What the build did, in Chrome's trace format. Times are ordinals: the same input must give the same bytes."""
    steps: list[tuple[str, dict[str, Any]]] = [
        ("read", {"nodes": nodes_read}),
        ("canonicalize", {"nodes": len(model.graph), "initializers": len(model.graph.initializers)}),
        ("blocks", {"blocks": len(graph.blocks), "values": len(graph.values), "dims": dict(graph.dims)}),
        ("plan", {"solver": planning.solution.solver, "plans": [plan.name for plan in planning.pool.plans]}),
        ("choose", {"plan": planning.chosen.plan.name, "reasons": list(planning.reasons)}),
    ]
    events = [
        {"name": name, "ph": "X", "ts": at, "dur": 1, "pid": 1, "tid": 1, "args": args}
        for at, (name, args) in enumerate(steps)
    ]
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}, indent=1, sort_keys=True).encode() + b"\n"
