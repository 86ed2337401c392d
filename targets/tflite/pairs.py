"""Which QuantizeLinear and DequantizeLinear are TFLite's own: of 8 bits, with one constant scale for all elements.

uint8 is int8 with another zero point, so that a program has int8 alone.
"""

import numpy as np
import onnx_ir as ir

_INT8_OF_UINT8 = 128

MOVES = frozenset("Flatten Identity Reshape Squeeze Transpose Unsqueeze".split())
"""Operators that may move integers about between the two."""


def params_of(node: ir.Node) -> tuple[float, int] | None:
    """Scale and zero point of a QuantizeLinear or DequantizeLinear as int8 has them; None if they are none of TFLite's.

    A zero point that is left out is 0.
    """
    integers = node.outputs[0] if node.op_type == "QuantizeLinear" else node.inputs[0]
    dtype = None if integers is None else integers.dtype
    blocks = node.attributes.get_int("block_size", 0)
    if dtype not in (ir.DataType.INT8, ir.DataType.UINT8) or blocks:
        return None
    scale = _number(node, 1)
    zero = _number(node, 2) if len(node.inputs) > 2 and node.inputs[2] is not None else 0
    if scale is None or zero is None or not np.isfinite(scale) or scale < np.finfo(np.float32).tiny:
        return None
    return scale, int(zero) - offset_of(dtype)


def offset_of(dtype: ir.DataType) -> int:
    """What lies between an integer of a type and the int8 in its place."""
    return _INT8_OF_UINT8 if dtype == ir.DataType.UINT8 else 0


def read_as_int8(value: ir.Value) -> bool:
    """Whether int8 can stand for a value of 8 bits: all that read it in the end want the same real numbers of it."""
    maker = value.producer()
    if not value.uses() and (maker is None or _first_of_all(value)):
        return False
    found = _wishes(value)
    if maker is not None:
        found.add(params_of(maker) if maker.op_type == "QuantizeLinear" and not maker.domain else None)
    return len(found) == 1 and None not in found


def _wishes(value: ir.Value) -> set[tuple[float, int] | None]:
    """Scale and zero point as all readers have them, those behind what moves integers about too; None is any other."""
    found: set[tuple[float, int] | None] = set()
    if value.is_graph_output() and value.dtype != ir.DataType.INT8:
        found.add(None)
    for node in (use.node for use in value.uses()):
        if node.op_type in MOVES and not node.domain:
            found |= _wishes(node.outputs[0])
        else:
            found.add(params_of(node) if node.op_type == "DequantizeLinear" and not node.domain else None)
    return found


def reader_params(value: ir.Value) -> tuple[float, int]:
    """What the readers of a value that is `read_as_int8` have."""
    (found,) = _wishes(value)
    assert found is not None
    return found


def _first_of_all(value: ir.Value) -> bool:
    """Whether a value is made of an input and nobody reads it: rounding is all there is, and it is as ONNX says."""
    maker = value.producer()
    source = maker.inputs[0] if maker is not None else None
    return source is None or source.producer() is None


def _number(node: ir.Node, at: int) -> float | None:
    value = node.inputs[at]
    tensor = None if value is None or value.is_graph_input() else value.const_value
    return float(tensor.numpy().reshape(())) if tensor is not None and tensor.size == 1 else None
