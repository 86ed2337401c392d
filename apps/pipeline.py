"""From a model file to a bundle: the one place where graph, planner, targets and bundle are wired together.

    read → canonicalize → plan → compile each tier's segments → write

Weights stream from file to file; nothing appears under the output's name until all of it is right.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from flagsplit import __version__, flagir
from flagsplit.apps.deployment import Deployment, describe_deployment
from flagsplit.apps.extra_plans import add_plans
from flagsplit.apps.graph_tensors import tensor_of
from flagsplit.apps.groundwork import BuildOptions, Groundwork, pose, prepare
from flagsplit.apps.layered import is_divisible, rules_for
from flagsplit.apps.linked import Linked, expect_trips, link_program, program_of
from flagsplit.apps.open_shapes import shape_notes
from flagsplit.apps.outputs import check_output, scratch_beside
from flagsplit.apps.plan_graphs import PlanGraphs, cut_plans, tier_by_node
from flagsplit.apps.plan_views import LayerView
from flagsplit.apps.profiled import load_profiles
from flagsplit.apps.program_members import ProgramBuild, program_members, shared_models
from flagsplit.apps.program_plans import add_program_plans, beside_chips
from flagsplit.apps.recipe import COSTS_NAME, costs_to_json, kept_samples, recipe_of, sla_data
from flagsplit.apps.tier_artifacts import compile_options, compile_tier
from flagsplit.apps.tier_parts import tier_parts
from flagsplit.errors import ConfigError, PolicyError
from flagsplit.flagir import BlockGraph, Step
from flagsplit.flagir.frontends.any_model import Source
from flagsplit.flagir.passes.float_products import float_products
from flagsplit.flagir.programs import Program
from flagsplit.flagir.store import save_all
from flagsplit.runtime.archive import Member, write_archive
from flagsplit.runtime.bundle import GRAPH_NAME, PLANS_NAME, WEIGHTS_MEMBER, PlanSet
from flagsplit.runtime.itinerary import PlannedStep, itinerary
from flagsplit.runtime.manifest import FORMAT, Facts, Model
from flagsplit.runtime.manifest import Tier as ManifestTier
from flagsplit.splitter.calibration import Calibration
from flagsplit.splitter.pipeline import PlanningResult, plan_problem
from flagsplit.splitter.plan import Plan
from flagsplit.splitter.profiles import Profile
from flagsplit.splitter.sla import SLA
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


def build(
    model: Path | Source,
    tiers: Sequence[str],
    output: Path,
    *,
    devices: Mapping[str, str] | None = None,
    links: Mapping[str, str] | None = None,
    sla: SLA | None = None,
    options: BuildOptions | None = None,
    progress: Progress = lambda _what, _share: None,
) -> BuildResult:
    """Build a bundle.

    Args:
        model: an ONNX file.
        tiers: names of the tiers, from the one that asks to the farthest.
        output: the bundle to write.
        devices: device of each tier, by tier name; see `flagsplit devices`.
        links: link of each tier to the one before it, by tier name, such as `100mbit/5ms`.
        sla: the policy; the default minimizes latency.
        options: further choices.
        progress: told what is being done.

    Raises:
        ModelError: the model cannot be read or brought into FlagIR.
        PolicyError: tiers, devices, links or SLA are wrong, or no plan can keep the SLA.
        ConfigError: the output cannot be written, or two options contradict each other.
    """
    options = options or BuildOptions()
    deployment = describe_deployment(
        tiers, devices or {}, links or {}, options.catalogues, options.regions, options.targets
    )
    profiles = load_profiles(options.profiles, deployment, options.numerics)
    check_output(output)
    source = model if isinstance(model, Source) else Source(model)
    if output.exists() and source.path is not None and source.path.exists() and output.samefile(source.path):
        raise ConfigError(f"{output} is the model itself; give the bundle another name with -o")
    clock = Clock(progress)
    with scratch_beside(output) as folder:
        program = program_of(source)
        if program is not None:
            clock.step("link", 0.0)
            linked = link_program(program, options)
            canonical = _store_linked(linked, folder, clock)
            built = assemble(canonical, output, deployment, sla or SLA(), linked.options, clock, profiles)
            return replace(built, notes=(*linked.notes, *built.notes))
        canonical = _read(source, folder, clock, options)
        return assemble(canonical, output, deployment, sla or SLA(), options, clock, profiles)


def _read(source: Source, folder: Path, clock: "Clock", options: BuildOptions) -> Canonical:
    """Import a model and store its weights in a folder."""
    clock.step("read", 0.0)
    model = source.read()
    nodes_read = len(model.graph)
    clock.step("canonicalize", 0.05)
    flagir.canonicalize(model)
    if options.float_products:
        float_products(model)
    expect_trips(model, options.expected_tokens)
    flagir.check(model)
    clock.step("store weights", 0.3)
    flagir.save(model, folder)
    origin = Model(name=source.name, sha256=_sha256(source.path or folder / flagir.MODEL_NAME))
    return Canonical(model, folder / flagir.WEIGHTS_NAME, origin, nodes_read)


def _store_linked(linked: Linked, folder: Path, clock: "Clock") -> Canonical:
    """Store the weights of a program in a folder, once for the linked model and the program's own graphs."""
    model = linked.model
    nodes_read = len(model.graph)
    flagir.check(model)
    clock.step("store weights", 0.3)
    # A copy: the caller's program must not map weights from a folder that goes away.
    program = replace(linked.program, graphs={name: graph.clone() for name, graph in linked.program.graphs.items()})
    save_all(shared_models(model, program), folder)
    origin = Model(name=program.facts.name, sha256=_sha256(folder / flagir.MODEL_NAME))
    return Canonical(model, folder / flagir.WEIGHTS_NAME, origin, nodes_read, program)


def assemble(
    canonical: Canonical,
    output: Path,
    deployment: Deployment,
    sla: SLA,
    options: BuildOptions,
    clock: "Clock",
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
    graph, program = ground.graph, canonical.program
    layers = _plan_layers(program, ground, deployment, sla, options)
    if layers is not None:
        whole = beside_chips(ground, deployment)
        problem = pose(whole, deployment, rules_for(graph, sla, layers.problem.graph), options)
    else:
        problem = pose(ground, deployment, sla, options)
    planning = plan_problem(problem)
    if program is not None and layers is None:
        planning = add_program_plans(planning, ground, deployment, options)
    extra: tuple[str, ...] = ()
    if options.extra_plans is not None:
        pooled = {plan.name for plan in planning.pool.plans}
        planning = add_plans(planning, options.extra_plans)
        extra = tuple(plan.name for plan in planning.pool.plans if plan.name not in pooled)
    clock.step("compile", 0.7)
    graphs = cut_plans(model, graph, planning.pool.plans)
    planning = _without_endless_routes(planning, graphs, model)
    plans, memory = planning.pool.plans, planning.problem.memory_bytes
    parts = [
        tier_parts(graphs, graph, plans, tier, float(memory[tier]), options.residency)
        for tier in range(len(deployment.tiers))
    ]
    given = compile_options(model, canonical.weights, deployment, ground, options)
    compiled = [
        compile_tier(graphs.model, part, tier, chosen, ground, options, given)
        for part, tier, chosen in zip(parts, deployment.tiers, deployment.targets, strict=True)
    ]
    for plan in planning.pool.plans:
        flagir.write_placement(model, plan.name, plan.tiers, tier_by_node(graph, plan))
    clock.step("write", 0.8)
    members: dict[str, Member] = {
        GRAPH_NAME: flagir.to_bytes(model),
        WEIGHTS_MEMBER: canonical.weights,
        PLANS_NAME: _plan_set(planning, graphs).to_json(),
        TRACE_NAME: _trace(canonical.nodes_read, model, graph, planning),
    }
    if options.costs is not None or ground.profiled.costs is not None:
        members[COSTS_NAME] = costs_to_json(problem.costs)
    members |= kept_samples(options, given.samples)
    if program is not None:
        part = ProgramBuild(program, options.expected_tokens, layers)
        members |= program_members(model, graphs, planning.pool.plans, part)
    tiers = [
        ManifestTier(
            name=tier.name,
            device=tier.device.name,
            artifacts=[made.entry(tier.name, part, members) for made in each],
        )
        for tier, part, each in zip(deployment.tiers, parts, compiled, strict=True)
    ]
    weights = flagir.weights_bytes(model)

    def facts_of(sizes: dict[str, int]) -> Facts:
        return Facts(
            format=FORMAT,
            model=canonical.origin,
            tiers=tiers,
            inputs=[tensor_of(value) for value in model.graph.inputs],
            outputs=[tensor_of(value) for value in model.graph.outputs],
            nominal_dims=ground.dims,
            dim_ranges=ground.ranges,
            dim_sizes={name: list(sizes) for name, sizes in options.listed.items()},
            weights_bytes=weights,
            sizes=sizes,
            metadata=_metadata(model),
            built_with=f"flagsplit {__version__}",
            sla=sla_data(sla),
            recipe=recipe_of(deployment, options, given, canonical.nodes_read, extra),
        )

    bundle_digest = write_archive(
        output, members, facts_of, lambda done, total: clock.share("write", 0.8 + 0.2 * done / max(total, 1))
    )
    clock.step("done", 1.0)
    size_bytes = output.stat().st_size
    return BuildResult(
        output,
        bundle_digest,
        size_bytes,
        weights,
        clock.seconds,
        planning,
        ground.profiled.calibrations,
        (*deployment.notes, *shape_notes(deployment, ground, options)),
        layers,
    )


def _plan_layers(
    program: Program | None, ground: Groundwork, deployment: Deployment, sla: SLA, options: BuildOptions
) -> PlanningResult | None:
    """Of a decoder-only program, the plans that divide its layers."""
    if program is None or not is_divisible(program):
        return None
    view = LayerView(ground, deployment, options, program)
    return view.plan(view.pose(sla))


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


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
