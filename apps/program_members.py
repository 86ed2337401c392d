"""What a bundle holds of a generative program beside its linked model: its graphs, and how each plan feeds the loop.

A plan of the linked model says on which tier the loop runs and what crosses to it. From these follows which graph leads
from there to the hidden state, which is what a decoder's loop begins with. How that is read again is in
`flagsplit.runtime.program_parts`.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from flagsplit import flagir
from flagsplit.apps.graph_tensors import tensor_of
from flagsplit.apps.plan_graphs import PlanGraphs, original_name
from flagsplit.apps.program_plans import LINKED_HIDDEN
from flagsplit.errors import InternalError, ModelError
from flagsplit.flagir import Segment, Step
from flagsplit.flagir.programs.program import Program, graph_names
from flagsplit.flagir.programs.split import split_step
from flagsplit.flagir.programs.store import FACTS_NAME, TOKENIZER_NAME
from flagsplit.flagir.reads import activations_read, readers_of
from flagsplit.runtime.archive import Member
from flagsplit.runtime.itinerary import PlannedStep
from flagsplit.runtime.manifest import Tensor
from flagsplit.runtime.program_parts import FOLDER, LAYER_PLANS_NAME, PARTS_NAME, PartsFile, PlanParts
from flagsplit.splitter.layer_plans import layers_before
from flagsplit.splitter.pipeline import PlanningResult
from flagsplit.splitter.plan import Plan

HIDDEN = "hidden"
"""The hidden state in the program's own graphs."""


@dataclass(frozen=True)
class ProgramBuild:
    """A program on its way into a bundle.

    Attributes:
        program: its graphs' weights are mapped from the file that becomes the bundle's.
        expected_tokens: that plans are made for.
        layers: of a decoder-only program, the plans over its layers.
    """

    program: Program
    expected_tokens: int
    layers: PlanningResult | None = None


def program_members(
    model: ir.Model, graphs: PlanGraphs, plans: Sequence[Plan], built: ProgramBuild
) -> dict[str, Member]:
    """The members of a bundle under `program/`.

    Args:
        model: the linked model, canonical.
        graphs: it, as the plans cut it.
        plans: of the pool.
        built: the program.
    """
    program, files = built.program, dict[str, bytes]()
    facts = program.facts
    for name in graph_names(facts.kind):
        files[f"{name}.onnx"] = flagir.to_bytes(program.graphs[name])
    files[FACTS_NAME] = facts.to_json()
    files[TOKENIZER_NAME] = program.tokenizer
    served: dict[str, PlanParts] = {}
    unserved: dict[str, str] = {}
    loops = _Loops(model, graphs)
    for plan in plans:
        try:
            served[plan.name] = loops.parts(plan, files, encoded=facts.kind == "encoder-decoder")
        except _NotServedError as error:
            unserved[plan.name] = str(error)
    if built.layers is not None:
        for plan in built.layers.pool.plans:
            if len(plan.used_tiers) > 1:
                served[plan.name] = _divided(program, plan, files)
    parts = PartsFile(plans=served, unserved=unserved, expected_tokens=built.expected_tokens)
    members: dict[str, Member] = {f"{FOLDER}/{name}": data for name, data in files.items()}
    members[PARTS_NAME] = parts.to_json()
    if built.layers is not None:
        members[LAYER_PLANS_NAME] = built.layers.pool.to_json().encode() + b"\n"
    return members


class _NotServedError(Exception):
    """A plan under which a decoder cannot begin with the hidden state; the message says why."""


class _Loops:
    """Finds, plan by plan, what comes to the loop's tier and what leads from there to the hidden state."""

    def __init__(self, model: ir.Model, graphs: PlanGraphs) -> None:
        self._graphs = graphs
        self._nodes = {node.name or "": node for node in graphs.model.graph}
        self._loop = _loop_of(model).name or ""
        hidden = next((v for node in model.graph for v in node.outputs if v.name == LINKED_HIDDEN), None)
        readers = readers_of(model.graph).get(hidden, ()) if hidden is not None else ()
        self._readers = [(n.name or "", list(n.inputs).index(hidden)) for n in readers if hidden in n.inputs]

    def parts(self, plan: Plan, files: dict[str, bytes], *, encoded: bool) -> PlanParts:
        steps = self._graphs.steps[plan.name]
        at = next(i for i, step in enumerate(steps) if self._loop in map(original_name, step.segment.nodes))
        tier, before = steps[at].tier, steps[:at]
        if any(step.tier >= tier for step in before):
            raise _NotServedError(f"a request comes to {plan.tiers[tier]} more than once before its loop runs")
        if not encoded:
            if before:
                raise _NotServedError(f"its prompt is prepared on {plan.tiers[before[0].tier]}, apart from the loop")
            return PlanParts(loop_tier=tier)
        if not self._readers:
            raise InternalError(f"a linked program with an encoder has no value {LINKED_HIDDEN!r} that something reads")
        hidden = self._hidden(plan, steps[at])
        inside = self._leading_to(hidden, steps[at].segment)
        own = {value for node in inside for value in node.outputs}
        entering = dict.fromkeys(v for node in inside for v in activations_read(node) if v not in own) or {hidden: None}
        boundary = tuple(tensor_of(value) for value in entering)
        file = self._write(inside, hidden, [tensor.name for tensor in boundary], files) if inside else None
        planned = tuple(PlannedStep(s.tier, s.segment.id, s.segment.inputs, s.segment.outputs) for s in before)
        return PlanParts(loop_tier=tier, boundary=boundary, before=planned, hidden=file)

    def _hidden(self, plan: Plan, step: Step) -> ir.Value:
        """What is the hidden state on the loop's tier, whatever a codec has made of it."""
        names = {original_name(name): name for name in step.segment.nodes}
        for reader, index in self._readers:
            value = self._nodes[names[reader]].inputs[index] if reader in names else None
            if value is not None:
                return value
        raise _NotServedError(
            f"keys and values of the hidden state are made before {plan.tiers[step.tier]}, apart from the loop"
        )

    def _leading_to(self, value: ir.Value, segment: Segment) -> list[ir.Node]:
        """The nodes of a segment that a value is made by, in order."""
        inside, found = set(segment.nodes), set[ir.Node]()
        todo = [value]
        while todo:
            maker = todo.pop().producer()
            if maker is not None and maker not in found and maker.name in inside:
                found.add(maker)
                todo.extend(activations_read(maker))
        return [self._nodes[name] for name in segment.nodes if self._nodes[name] in found]

    def _write(self, nodes: Sequence[ir.Node], hidden: ir.Value, inputs: Sequence[str], files: dict[str, bytes]) -> str:
        names = tuple(node.name or "" for node in nodes)
        digest = hashlib.sha256("\0".join((*names, *inputs)).encode()).hexdigest()[:16]
        file = f"hidden-{digest}.onnx"
        if file not in files:
            made = flagir.extract(self._graphs.model, Segment(digest, names, tuple(inputs), (hidden.name or "",)))
            (output,) = made.graph.outputs
            output.name = HIDDEN
            files[file] = flagir.to_bytes(made)
        return file


def _loop_of(model: ir.Model) -> ir.Node:
    loops = [node for node in model.graph if node.op_type == "Loop" and not node.domain]
    if len(loops) != 1:
        raise ModelError(f"expected a linked program with one loop, came a model with {len(loops)}")
    return loops[0]


def _divided(program: Program, plan: Plan, files: dict[str, bytes]) -> PlanParts:
    """A plan that divides the layers between the first tier in use and the last."""
    layers = layers_before(plan.placement)
    names = f"first-{layers}.onnx", f"rest-{layers}.onnx"
    if names[0] not in files:
        for name, part in zip(names, split_step(program, layers), strict=True):
            files[name] = flagir.to_bytes(part)
    rows = Tensor(name="rows", dtype="float32", shape=["batch", "chunk", program.facts.width])
    return PlanParts(loop_tier=plan.placement[-1], boundary=(rows,), layers=layers, first=names[0], rest=names[1])


def shared_models(linked: ir.Model, program: Program) -> Mapping[str, ir.Model]:
    """The models that share the weights of a bundle, by the names of their files."""
    return {flagir.MODEL_NAME: linked} | {f"{name}.onnx": graph for name, graph in program.graphs.items()}
