"""Which values stay in float32 when the rest is in half precision: sums of products of integers, and scales."""

from collections.abc import Iterator

import onnx_ir as ir

_INTEGER_PRODUCTS = ("MatMulInteger", "ConvInteger")
_INTEGERS = (ir.DataType.INT32, ir.DataType.INT64)
_WITH_SCALE = ("QuantizeLinear", "DequantizeLinear")


def wide_values(graph: ir.Graph) -> frozenset[str]:
    """Names of those values, constants among them.

    Half precision holds no number above 65,504, which such sums exceed, and has few digits for scales of a thousandth.
    """
    found: set[str] = set()
    for node in graph:
        if not node.domain:
            found.update(value.name or "" for value in _wide_at(node, found))
    return frozenset(found)


def _wide_at(node: ir.Node, wide: set[str]) -> Iterator[ir.Value]:
    if node.op_type == "Cast" and _is_sum(node.inputs[0]):
        yield node.outputs[0]
    elif node.op_type in _WITH_SCALE and node.inputs[1] is not None and node.inputs[1].const_value is not None:
        yield node.inputs[1]
    elif node.op_type == "Mul" and any(value is not None and value.name in wide for value in node.inputs):
        given = [value for value in node.inputs if value is not None]
        if all(value.name in wide or value.const_value is not None for value in given):
            yield from (*given, node.outputs[0])


def _is_sum(value: ir.Value | None) -> bool:
    maker = value.producer() if value is not None else None
    summed = maker is not None and maker.op_type in (*_INTEGER_PRODUCTS, "Add")
    return summed and value is not None and value.dtype in _INTEGERS
