"""The graph of a plan: the model as the plan places it, with the codecs of its cuts.

A bundle's segments come from here, and so does the one model that a split run must match bit for bit.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from flagsplit import flagir
from flagsplit.apps.wire_names import check_ends, has_long_names, name_that_travels, shorten_names
from flagsplit.errors import BundleError
from flagsplit.flagir import BlockGraph, Step
from flagsplit.flagir.codecs import (
    NO_CODEC,
    BoundaryCut,
    add_checks,
    apply_codecs,
    join_variant,
    name_what_is_lossy,
)
from flagsplit.flagir.placement import clear_placements
from flagsplit.flagir.reference import reference
from flagsplit.runtime.bundle import GRAPH_NAME, Bundle, load_graph
from flagsplit.splitter.plan import Plan
from flagsplit.targets.interface import Executable, LoadOptions

_RENAMED = ".after_"


@dataclass(frozen=True)
class PlanGraphs:
    """All plans, cut.

    Attributes:
        model: every segment can be taken out of it: the model, and whatever plans with codecs have besides; with names
            that can be sent.
        steps: by plan, its segments in execution order.
        answers: by plan, the names under which it makes graph outputs, where they are others.
    """

    model: ir.Model
    steps: Mapping[str, tuple[Step, ...]]
    answers: Mapping[str, Mapping[str, str]]


def cuts_of(plan: Plan) -> list[BoundaryCut]:
    """What crosses links under a plan, and how."""
    return [BoundaryCut(cut.value, cut.from_tier, cut.to_tier, cut.codec) for cut in plan.cuts]


def is_lossy(plan: Plan) -> bool:
    """Whether some tensor travels encoded."""
    return any(cut.codec != NO_CODEC for cut in plan.cuts)


def original_name(node: str) -> str:
    """The name in the model of a node that a codec's loss may have given another one."""
    return node.rpartition(_RENAMED)[0] or node


def tier_by_node(graph: BlockGraph, plan: Plan) -> dict[str, int]:
    """The tier's position for each node of the model."""
    return {node: plan.placement[block.index] for block in graph.blocks for node in block.nodes}


def cut_plans(model: ir.Model, graph: BlockGraph, plans: Sequence[Plan]) -> PlanGraphs:
    """Cut a model as each of the plans wants it.

    Args:
        model: a canonical model without plans; it stays as it is.
        graph: its blocks.
        plans: with different names, all over these blocks.

    Raises:
        ModelError: a cut names a value that does not travel that way or that its codec does not take, or an input or
            output of the graph has a name that cannot be sent.
    """
    return _cut(model, plans, {plan.name: tier_by_node(graph, plan) for plan in plans}, graph)


def graphs_of(bundle: Bundle) -> PlanGraphs:
    """The plans of a bundle, cut as they were when it was built.

    Raises:
        BundleError: the bundle was cut in another way, by a flagsplit that differs in that.
        ModelError: its graph is damaged.
    """
    model = flagir.load((bundle.folder / GRAPH_NAME).parent)
    plans = bundle.plans.pool.plans
    placements = {plan.name: flagir.read_placement(model, plan.name) for plan in plans}
    clear_placements(model)
    graph = flagir.block_graph(model, dict(bundle.facts.nominal_dims))
    graphs = _cut(model, plans, placements, graph)
    for plan in plans:
        recorded = [(step.tier, step.segment) for step in bundle.plans.steps[plan.name]]
        if [(step.tier, step.segment.id) for step in graphs.steps[plan.name]] != recorded:
            raise BundleError(
                f"{bundle.path} was built with {bundle.facts.built_with or 'another flagsplit'}, which cuts plan "
                f"{plan.name!r} otherwise than this one; use that version, or build the bundle again"
            )
    return graphs


def _cut(
    model: ir.Model, plans: Sequence[Plan], placements: Mapping[str, Mapping[str, int]], graph: BlockGraph
) -> PlanGraphs:
    if any(len(plan.tiers) > 1 for plan in plans):
        check_ends(model)
    steps: dict[str, tuple[Step, ...]] = {}
    answers: dict[str, Mapping[str, str]] = {}
    exact = _with_short_names(model)
    blocks = _blocks_of(exact, graph)
    joined = exact.clone() if any(map(is_lossy, plans)) else exact
    for plan in plans:
        placement = placements[plan.name]
        if not is_lossy(plan):
            steps[plan.name] = flagir.cut_into_steps(exact, placement, len(plan.tiers), blocks)
            continue
        variant = model.clone()
        flagir.write_placement(variant, plan.name, plan.tiers, placement)
        apply_codecs(variant, cuts_of(plan))
        add_checks(variant)
        renamed = name_what_is_lossy(variant)
        shorten_names(variant)
        placement = flagir.read_placement(variant, plan.name)
        steps[plan.name] = flagir.cut_into_steps(variant, placement, len(plan.tiers), _blocks_of(variant, graph))
        if renamed:
            answers[plan.name] = {output: name_that_travels(name) for output, name in renamed.items()}
        join_variant(joined, variant)
    return PlanGraphs(joined, steps, answers)


def _blocks_of(model: ir.Model, graph: BlockGraph) -> list[list[str]]:
    """The nodes of each block, under the names that they have in a plan's graph."""
    number = {node: block.index for block in graph.blocks for node in block.nodes}
    blocks: list[list[str]] = [[] for _ in graph.blocks]
    for node in model.graph:
        name = node.name or ""
        at = number.get(name, number.get(original_name(name)))
        if at is not None:
            blocks[at].append(name)
    return blocks


def _with_short_names(model: ir.Model) -> ir.Model:
    if not has_long_names(model):
        return model
    copy = model.clone()
    shorten_names(copy)
    return copy


@contextmanager
def plan_reference(bundle: Bundle, plan: str, host: LoadOptions) -> Iterator[Executable]:
    """The one model that a plan's split run must match, codecs included, loaded for the length of a `with` statement.

    Raises:
        PolicyError: the pool has no plan of that name.
        BundleError: the engine cannot load it.
    """
    cuts = cuts_of(bundle.plan(plan))
    made = reference(flagir.read_model(bundle.folder / GRAPH_NAME), plan, cuts)
    with tempfile.TemporaryDirectory(prefix="flagsplit-reference-") as folder:
        file = Path(folder) / "reference.onnx"
        file.write_bytes(flagir.to_bytes(made))
        loaded = load_graph(file, bundle, host)
        try:
            yield loaded
        finally:
            loaded.close()
