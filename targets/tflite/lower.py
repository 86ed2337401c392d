"""From a chip part to a program: each node by its lowering, or by the nodes that the standard defines it with."""

import numpy as np
import onnx_ir as ir

from flagsplit.errors import ModelError
from flagsplit.targets.chip_parts import ChipPart
from flagsplit.targets.tflite.builder import SMALL, Builder, carried_in
from flagsplit.targets.tflite.pairs import read_as_int8, reader_params
from flagsplit.targets.tflite.program import Program, Refused, Tensor
from flagsplit.targets.tflite.registry import TAKES_SMALL, lowering_of


def lower_part(part: ChipPart) -> Program:
    """Lower a chip part, in the layout of ONNX.

    Raises:
        ModelError: a node cannot be lowered; the message names it and says why.
    """
    graph = part.model.graph
    builder = Builder(lower_node)
    inputs = []
    for value in graph.inputs:
        try:
            inputs.append(_typed(value))
        except Refused as refused:
            reader = value.consumers()[0]
            raise ModelError(f"node {reader.name!r} ({reader.op_type}) cannot become TFLite: {refused}") from None
        builder.know(value, inputs[-1])
    for node in graph:
        try:
            lower_node(builder, node)
        except Refused as refused:
            raise ModelError(f"node {node.name!r} ({node.op_type}) cannot become TFLite: {refused}") from None
    outputs: list[Tensor] = []
    for value in graph.outputs:
        outputs.append(_own(builder, builder.tensor(value), [*inputs, *outputs]))
    return Program(inputs, outputs, builder.operators)


def refusal(node: ir.Node) -> str:
    """Why a node of fixed shapes cannot be lowered; "" if it can be. It is lowered to find out."""
    builder = Builder(lower_node)
    try:
        for value in node.inputs:
            if value is not None and (value.const_value is None or value.is_graph_input()):
                builder.know(value, _typed(value))
        lower_node(builder, node)
    except Refused as refused:
        return str(refused)
    return ""


def lower_node(builder: Builder, node: ir.Node) -> None:
    """Lower one node.

    Raises:
        Refused: it cannot be.
    """
    for value in node.outputs:
        if value.name or value.uses():
            _check(value)
    lowering = lowering_of(node)
    touched = [value.dtype for value in (*node.inputs, *node.outputs) if value is not None]
    if node.op_type not in TAKES_SMALL and any(dtype is not None and dtype.name in SMALL for dtype in touched):
        raise Refused(f"{node.op_type} of integers of 8 bits would have to wrap")
    lowering(builder, node)


def _typed(value: ir.Value) -> Tensor:
    _check(value)
    assert value.shape is not None
    shape = tuple(dim for dim in value.shape if isinstance(dim, int))
    if value.dtype == ir.DataType.INT8 and read_as_int8(value):
        scale, zero = reader_params(value)
        return Tensor(shape, "int8", scales=np.array([scale], np.float32), zero=zero)
    return Tensor(shape, carried_in(value.dtype))


def _check(value: ir.Value) -> None:
    carried_in(value.dtype)
    if value.shape is None or not all(isinstance(dim, int) for dim in value.shape):
        raise Refused(f"takes fixed shapes, came {value.name!r} of shape {value.shape}")
    if 0 in value.shape:
        raise Refused(f"TFLite has no empty tensors, came {value.name!r} of shape {value.shape}")


def _own(builder: Builder, tensor: Tensor, taken: list[Tensor]) -> Tensor:
    """A tensor that may be an output: made by an operator, and no other output."""
    if tensor.data is None and tensor not in taken:
        return tensor
    return builder.copied(tensor)
