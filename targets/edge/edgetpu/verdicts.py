"""Whether the Edge TPU takes a node: what stands between DequantizeLinear and QuantizeLinear is lowered and checked.

A node is judged with those that compute on with it in one go, such as a convolution with its activation: the region
of floating-point values around it, whose ends are int8. A region with other ends is not quantized, and refused. Moves
side by side are judged as one, since they become one, such as the three that shuffle channels.
"""

import onnx_ir as ir

from flagsplit.errors import ModelError
from flagsplit.flagir.reads import weights_read
from flagsplit.targets.chip_parts import ChipPart
from flagsplit.targets.edge.edgetpu.ends import with_channels_last
from flagsplit.targets.edge.edgetpu.facts import LOGS, refusal_of
from flagsplit.targets.edge.edgetpu.forms import lowered
from flagsplit.targets.edge.edgetpu.streaming import as_moved_on_chip, reason_of, streamed_bytes
from flagsplit.targets.interface import SupportVerdict
from flagsplit.targets.tflite.layout import permutation_of
from flagsplit.targets.tflite.pairs import params_of
from flagsplit.targets.tflite.program import Operator, Program, nchw, nhwc

TO, BACK = "QuantizeLinear", "DequantizeLinear"
QUANTIZE_FIRST = (
    "it computes in floating point, the Edge TPU in int8; make an int8 model with `flagsplit quantize` first"
)
_MOST_NODES = 64
_MOVES = frozenset(("Reshape", "Transpose"))
_LEAST_RANK = 3


def verdict_of(node: ir.Node) -> SupportVerdict:
    """Whether the Edge TPU takes a node of fixed shapes, judged where it stands in its graph."""
    if node.domain:
        return SupportVerdict(False, f"takes operators of the ONNX standard, came {node.domain}.{node.op_type}")
    if node.op_type in (TO, BACK):
        return _of_pair(node)
    region = _region(node)
    if region is None:
        quantized = node.graph is not None and any(each.op_type == TO for each in node.graph)
        reason = "its values stand in floating point, the Edge TPU computes in int8" if quantized else QUANTIZE_FIRST
        return SupportVerdict(False, reason)
    verdict = _of_region(ChipPart("region", _model(node, region)))
    streamed = streamed_bytes(node) if verdict.supported else 0.0
    if not streamed:
        return verdict
    moved = as_moved_on_chip(node, streamed)
    return SupportVerdict(True, reason_of(streamed), source=LOGS, confidence="low", extra_bytes=moved)


def _of_region(part: ChipPart) -> SupportVerdict:
    verdict = _of_part(part)
    graph = part.model.graph
    turned = [[value.name or "" for value in ends if _has_channels(value)] for ends in (graph.inputs, graph.outputs)]
    if verdict.supported or not any(turned):
        return verdict
    last = _of_part(with_channels_last(part, *turned))
    return last if last.supported else verdict


def _of_part(part: ChipPart) -> SupportVerdict:
    try:
        program = lowered(part)
    except ModelError as error:
        return SupportVerdict(False, str(error))
    refused = [(each.code, refusal) for each in inside(program) if (refusal := refusal_of(each)) is not None]
    if not refused:
        return SupportVerdict(True)
    code, first = next((each for each in refused if each[0] not in ("QUANTIZE", "DEQUANTIZE")), refused[0])
    if _computes_in_floating_point(program):
        reason = (
            f"it has no form in int8, the Edge TPU computes in nothing else; LiteRT has it in floating point ({code})"
        )
        return SupportVerdict(False, reason, source=first.source, confidence=first.confidence)
    return SupportVerdict(False, first.reason, source=first.source, confidence=first.confidence)


def _computes_in_floating_point(program: Program) -> bool:
    """Whether an operator inside works on floating point."""
    return any(each.dtype == "float32" for operator in inside(program) for each in operator.outputs)


def _has_channels(value: ir.Value) -> bool:
    return value.shape is not None and len(value.shape) >= _LEAST_RANK


def inside(program: Program) -> list[Operator]:
    """The operators without those at the ends that the host runs: pairs, and transposes to channels last and back."""
    made = {output: operator for operator in program.operators for output in operator.outputs}
    read = {each for operator in program.operators for each in operator.inputs if each is not None}
    left = list(program.operators)

    def from_outside(operator: Operator) -> bool:
        first = operator.inputs[0]
        return first not in made or made[first] not in left

    def to_outside(operator: Operator) -> bool:
        readers = [each for each in left if operator.outputs[0] in each.inputs]
        return not readers and (operator.outputs[0] in program.outputs or operator.outputs[0] in read)

    for operator in list(left):
        rank = operator.outputs[0].rank
        at_start = operator.code == "QUANTIZE" and operator.inputs[0] in program.inputs
        if at_start or (permutation_of(operator) == nhwc(rank) and from_outside(operator)):
            left.remove(operator)
    for operator in reversed(list(left)):
        at_end = operator.code == "DEQUANTIZE" and operator.outputs[0] in program.outputs
        if at_end or (permutation_of(operator) == nchw(operator.outputs[0].rank) and to_outside(operator)):
            left.remove(operator)
    return left


def _of_pair(node: ir.Node) -> SupportVerdict:
    source = node.inputs[0]
    constant = source is not None and source.const_value is not None and not source.is_graph_input()
    if constant or params_of(node) is not None:
        return SupportVerdict(True)
    return SupportVerdict(False, "quantizes with one constant scale for a tensor, came another, or none of 8 bits")


def _region(node: ir.Node) -> set[ir.Node] | None:
    """The nodes that compute on with a node before anything stands as int8; None if some end is not int8."""
    found, todo = {node}, [node]
    while todo:
        each = todo.pop()
        near: list[ir.Node] = []
        for value in each.inputs:
            if value is None or (value.const_value is not None and not value.is_graph_input()):
                continue
            maker = value.producer()
            if maker is None:
                return None
            near.append(maker)
        for value in each.outputs:
            if value.is_graph_output():
                return None
            near.extend(_readers(value))
        near.extend(_moves_beside(each))
        new = [other for other in near if other.op_type not in (TO, BACK) and other not in found]
        found.update(new)
        todo.extend(new)
        if len(found) > _MOST_NODES:
            return None
    return found


def _readers(value: ir.Value) -> list[ir.Node]:
    return [use.node for use in value.uses()]


def _moves_beside(node: ir.Node) -> list[ir.Node]:
    """The moves before and after a move, each behind a pair."""
    if node.op_type not in _MOVES:
        return []
    source = node.inputs[0]
    for kind in (BACK, TO):
        maker = source.producer() if source is not None else None
        source = maker.inputs[0] if maker is not None and maker.op_type == kind else None
    before = [source.producer()] if source is not None else []
    pairs = [pair for to in _readers(node.outputs[0]) if to.op_type == TO for pair in _readers(to.outputs[0])]
    after = [each for pair in pairs if pair.op_type == BACK for each in _readers(pair.outputs[0])]
    return [each for each in (*before, *after) if each is not None and each.op_type in _MOVES]


def _saturated(pair: ir.Node) -> list[ir.Node]:
    """The activation before a quantization: after it nothing is negative, which a pad may need to know."""
    source = pair.inputs[0]
    maker = source.producer() if source is not None else None
    return [maker] if maker is not None and maker.op_type == "Relu" else []


def _model(node: ir.Node, region: set[ir.Node]) -> ir.Model:
    """A region with the pairs at its ends, from floating point to floating point where that is near."""
    wanted = set(region)
    for each in region:
        for value in each.inputs:
            maker = value.producer() if value is not None else None
            if maker is not None and maker not in region:
                wanted.add(maker)
                source = maker.inputs[0]
                before = source.producer() if source is not None else None
                if before is not None and before.op_type == TO:
                    wanted.add(before)
                    wanted.update(_saturated(before))
        for use in (use for value in each.outputs for use in value.uses() if use.node not in region):
            wanted.add(use.node)
            wanted.update(after.node for after in use.node.outputs[0].uses() if after.node.op_type == BACK)
    assert node.graph is not None
    nodes = [each for each in node.graph if each in wanted]
    made = {value for each in nodes for value in each.outputs}
    weights = dict.fromkeys(weight for each in nodes for weight in weights_read(each))
    read = dict.fromkeys(value for each in nodes for value in each.inputs if value is not None)
    inputs = [value for value in read if value not in made and value not in weights]
    outputs = [value for value in made if value.name and not any(use.node in wanted for use in value.uses())]
    view = ir.GraphView(
        inputs, outputs, nodes=nodes, initializers=tuple(weights), opset_imports=node.graph.opset_imports, name="region"
    )
    return ir.Model(view.clone(), ir_version=10)
