"""What a block's run time depends on: a digest of its work, and a few numbers about it.

Two blocks of equal signature do the same work on tensors of the same types and shapes, whatever they are called and
whatever their large weights hold; what one of them took, measured, holds for the other. The numbers let a regression
say something of blocks that nobody measured. Work by class is in `flagsplit.flagir.work`.
"""

import hashlib
import math
from collections.abc import Collection, Iterator, Mapping, Sequence

import onnx_ir as ir

from flagsplit.flagir.reads import reads_of
from flagsplit.flagir.types import ValueType, dims_of
from flagsplit.flagir.work import NodeWork, Types

_DIGEST_BYTES = 16
_MOST_ELEMENTS = 32
"""Whole numbers of up to so many elements decide what a node does: axes, pads, shapes. Larger ones are weights."""
_WHOLE_NUMBERS = frozenset((ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL))
_FRACTIONS_DECIDE = frozenset(("Pow", "Range", "Resize", "Upsample"))
"""Where constants that are no whole numbers decide too: exponents, steps, scales."""
_KERNEL_AT = {"Conv": 1, "QLinearConv": 3, "ConvInteger": 1, "DeformConv": 1}
"""Where a convolution has its kernel among the inputs."""


def signature_of(nodes: Sequence[ir.Node], leaving: Collection[ir.Value], types: Types) -> str:
    """The digest of what a block does: equal digests mean equal work.

    It covers operators, attributes, small constants, and the types and concrete shapes of everything read and written,
    in order, with names left out, and which of the results are needed outside.

    Args:
        nodes: of the block, in execution order.
        leaving: its results that something outside of it reads, and those that are graph outputs.
        types: the concrete type of every activation.

    Returns:
        Lower-case hexadecimal digits.
    """
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    known: dict[ir.Value, int] = {}
    for node in nodes:
        for word in _words(node, types, known):
            digest.update(word.encode() + b"\0")
    digest.update(",".join(str(known[value]) for value in leaving).encode())
    return digest.hexdigest()


def features_of(nodes: Sequence[ir.Node], works: Sequence[NodeWork], types: Types) -> dict[str, float]:
    """Numbers about a block's work, for regressions over blocks.

    Args:
        nodes: of the block, in execution order.
        works: of each node.
        types: the concrete type of every activation.

    Returns:
        By name: `CLASS.OPERATOR` for each class of work and operator in the block, its floating-point operations, or
        for the class `movement` the elements moved; and of the contraction with the most work `rows`, `columns`,
        `inner` and `window`: the sides of its matrix product and the elements of its kernel.
    """
    found: dict[str, float] = {}
    for node, work in zip(nodes, works, strict=True):
        if work.is_view:
            continue
        done = {work.op_class: _elements(node, types)} if work.op_class == "movement" else work.by_class
        for name, amount in done.items():
            found[f"{name}.{node.op_type}"] = found.get(f"{name}.{node.op_type}", 0.0) + amount
    heaviest = max(zip(nodes, works, strict=True), key=lambda pair: (pair[1].op_class in _CONTRACTING, pair[1].flops))
    if heaviest[1].op_class in _CONTRACTING:
        found |= _product_of(*heaviest, types)
    return found


_CONTRACTING = frozenset(("conv", "depthwise", "matmul", "recurrent"))


def _elements(node: ir.Node, types: Types) -> float:
    values = [value for value in (*reads_of(node), *node.outputs) if value.name and not value.is_initializer()]
    return float(max((_type(value, types).elements for value in values), default=0))


def _product_of(node: ir.Node, work: NodeWork, types: Types) -> dict[str, float]:
    """The matrix product that a contraction amounts to: rows x inner by inner x columns, several times over."""
    out = _type(node.outputs[0], types)
    at = _KERNEL_AT.get(node.op_type, len(node.inputs))
    given = node.inputs[at] if at < len(node.inputs) else None
    kernel = _type(given, types).shape if given is not None else ()
    window, columns = 1, float(out.shape[-1]) if out.shape else 1.0
    inner = work.flops / 2 / max(out.elements, 1)
    if len(kernel) > 2 and len(out.shape) > 2:
        window, columns = math.prod(kernel[2:]), kernel[0] / (node.attributes.get_int("group", 1) or 1)
        inner = float(math.prod(kernel[1:]))
    return {"rows": out.elements / max(columns, 1.0), "columns": columns, "inner": inner, "window": float(window)}


def _words(node: ir.Node, types: Types, known: dict[ir.Value, int]) -> Iterator[str]:
    """All that decides what one node does, as words."""
    yield f"{node.domain}:{node.op_type}"
    for name, attribute in sorted(node.attributes.items()):
        yield from (name, *_attribute(attribute, types, known))
    for value in node.inputs:
        yield _operand(value, types, known, fractions=node.op_type in _FRACTIONS_DECIDE)
    for value in node.outputs:
        known[value] = len(known)
        yield f"={_type_text(_type(value, types))}" if value.name else "=none"


def _attribute(attribute: ir.Attr, types: Types, known: dict[ir.Value, int]) -> Iterator[str]:
    if attribute.type == ir.AttributeType.GRAPH:
        yield from _graph(attribute.as_graph(), types, known)
    elif attribute.type == ir.AttributeType.GRAPHS:
        for graph in attribute.as_graphs():
            yield from _graph(graph, types, known)
    elif attribute.type == ir.AttributeType.TENSOR:
        yield _constant(attribute.as_tensor())
    elif attribute.type == ir.AttributeType.TENSORS:
        yield from map(_constant, attribute.as_tensors())
    else:
        yield repr(attribute.value)


def _graph(graph: ir.Graph, types: Types, known: dict[ir.Value, int]) -> Iterator[str]:
    yield "{"
    for value in graph.inputs:
        known[value] = len(known)
    for node in graph:
        yield from _words(node, types, known)
    yield from (_operand(value, types, known) for value in graph.outputs)
    yield "}"


def _operand(value: ir.Value | None, types: Types, known: dict[ir.Value, int], *, fractions: bool = False) -> str:
    """Where a value comes from and what it is; names do not count, so each gets a number when it is first met."""
    if value is None:
        return "none"
    if value.is_initializer() and value.const_value is not None:
        return _constant(value.const_value, fractions=fractions)
    return f"{known.setdefault(value, len(known))}:{_type_text(_type(value, types))}"


def _constant(tensor: ir.TensorProtocol, *, fractions: bool = False) -> str:
    text = f"{tensor.dtype}{list(dims_of(tensor))}"
    decides = fractions or tensor.dtype in _WHOLE_NUMBERS
    return f"{text}{tensor.tobytes().hex()}" if decides and tensor.size <= _MOST_ELEMENTS else text


def _type(value: ir.Value, types: Mapping[str, ValueType]) -> ValueType:
    if value.name is not None and value.name in types:
        return types[value.name]
    if value.const_value is not None:
        return ValueType(value.const_value.dtype, dims_of(value.const_value))
    return ValueType(ir.DataType.FLOAT, ())


def _type_text(kind: ValueType) -> str:
    return f"{kind.dtype}{list(kind.shape)}"
