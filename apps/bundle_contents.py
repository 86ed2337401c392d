"""What a bundle consists of: its members, and what its manifest says of it.

Who plans and compiles is `flagsplit.apps.assembly`, how a file is written `flagsplit.runtime.archive`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from flagsplit import __version__, flagir
from flagsplit.apps.deployment import Deployment
from flagsplit.apps.graph_tensors import tensor_of
from flagsplit.apps.groundwork import BuildOptions, Groundwork
from flagsplit.apps.plan_graphs import PlanGraphs
from flagsplit.apps.program_members import ProgramBuild, program_members
from flagsplit.apps.recipe import COSTS_NAME, costs_to_json, kept_samples, recipe_of, sla_data
from flagsplit.apps.tier_artifacts import Compiled
from flagsplit.apps.tier_parts import TierParts
from flagsplit.flagir import BlockGraph, Step
from flagsplit.flagir.programs import Program
from flagsplit.runtime.archive import Member
from flagsplit.runtime.bundle import GRAPH_NAME, PLANS_NAME, WEIGHTS_MEMBER, PlanSet
from flagsplit.runtime.itinerary import PlannedStep
from flagsplit.runtime.manifest import FORMAT, Facts, Model, Tier
from flagsplit.splitter.pipeline import PlanningResult
from flagsplit.splitter.problem import Problem
from flagsplit.splitter.sla import SLA
from flagsplit.targets.interface import CompileOptions

TRACE_NAME = "build-trace.json"
_MAX_METADATA_BYTES = 1 << 20


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
class Pooled:
    """All plans.

    Attributes:
        problem: what was posed.
        planning: what came of it.
        layers: of a decoder-only program, the plans that divide its layers.
        extra: names of the plans that were asked for besides.
    """

    problem: Problem
    planning: PlanningResult
    layers: PlanningResult | None
    extra: tuple[str, ...] = ()


@dataclass(frozen=True)
class Contents:
    """All that goes into a bundle, before it is written.

    Attributes:
        canonical: the graph, with the plans on it, and where it comes from.
        deployment: tiers and targets.
        options: of the build.
        ground: what was known before planning.
        pooled: the plans.
        graphs: their steps.
        given: what held for the compilation of all tiers.
        compiled: by tier, what it runs, and what its targets made of that.
    """

    canonical: Canonical
    deployment: Deployment
    options: BuildOptions
    ground: Groundwork
    pooled: Pooled
    graphs: PlanGraphs
    given: CompileOptions
    compiled: Sequence[tuple[TierParts, Sequence[Compiled]]]

    def members(self) -> dict[str, Member]:
        """The files but for those of tiers, by name."""
        canonical, planning, options = self.canonical, self.pooled.planning, self.options
        found: dict[str, Member] = {
            GRAPH_NAME: flagir.to_bytes(canonical.graph),
            WEIGHTS_MEMBER: canonical.weights,
            PLANS_NAME: _plan_set(planning, self.graphs).to_json(),
            TRACE_NAME: _trace(canonical.nodes_read, canonical.graph, self.ground.graph, planning),
            **kept_samples(options, self.given.samples),
        }
        if options.costs is not None or self.ground.profiled.costs is not None:
            found[COSTS_NAME] = costs_to_json(self.pooled.problem.costs)
        if canonical.program is not None:
            build = ProgramBuild(canonical.program, options.expected_tokens, self.pooled.layers)
            found |= program_members(canonical.graph, self.graphs, planning.pool.plans, build)
        return found

    def tiers(self, members: dict[str, Member]) -> list[Tier]:
        """What the manifest says of tiers; their files are added to the members."""
        return [
            Tier(
                name=tier.name,
                device=tier.device.name,
                artifacts=[made.entry(tier.name, parts, members) for made in artifacts],
            )
            for tier, (parts, artifacts) in zip(self.deployment.tiers, self.compiled, strict=True)
        ]

    def facts(self, sla: SLA, tiers: list[Tier], sizes: dict[str, int]) -> Facts:
        """What the manifest says.

        Args:
            sla: the policy that it was planned for.
            tiers: see `tiers`.
            sizes: of all members, bytes.
        """
        model, ground, options = self.canonical.graph, self.ground, self.options
        return Facts(
            format=FORMAT,
            model=self.canonical.origin,
            tiers=tiers,
            inputs=[tensor_of(value) for value in model.graph.inputs],
            outputs=[tensor_of(value) for value in model.graph.outputs],
            nominal_dims=ground.dims,
            dim_ranges=ground.ranges,
            dim_sizes={name: list(each) for name, each in options.listed.items()},
            weights_bytes=flagir.weights_bytes(model),
            sizes=sizes,
            metadata=_metadata(model),
            built_with=f"flagsplit {__version__}",
            sla=sla_data(sla),
            recipe=recipe_of(self.deployment, options, self.given, self.canonical.nodes_read, self.pooled.extra),
        )


def _plan_set(planning: PlanningResult, graphs: PlanGraphs) -> PlanSet:
    names = [plan.name for plan in planning.pool.plans]
    return PlanSet(
        pool=planning.pool,
        steps={name: planned_steps(graphs.steps[name]) for name in names},
        nominal=planning.problem.nominal,
        reasons=planning.reasons,
        answers={name: graphs.answers[name] for name in names if name in graphs.answers},
    )


def planned_steps(steps: Sequence[Step]) -> tuple[PlannedStep, ...]:
    """Steps as the runtime knows them."""
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
