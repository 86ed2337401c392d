"""Operators of opsets newer than the pin: what of them the pin has, and what the rest is made of.

Most later definitions only admit more types. Of those that bring something new, ONNX itself gives many as functions of
older operators; a few more are spelled out here.
"""

from collections.abc import Sequence
from typing import Any

import onnx
import onnx_ir as ir

from flagsplit.flagir.opset import OPSET

_REWORDED = frozenset(("Attention",))
"""Operators whose definition, not only whose types, was reworked after the pin."""
_TO_DTYPE = ("to", "dtype", "output_dtype")
_SIGNED_BITS = {ir.DataType.INT8: 8, ir.DataType.INT16: 16, ir.DataType.INT32: 32, ir.DataType.INT64: 64}

_MOD = """
    R = Mod <fmod: int = 1> (X, Y)
    Nought = Constant <value_float: float = 0.0> ()
    Zero = CastLike (Nought, X)
    RisNegative = Less (R, Zero)
    YisNegative = Less (Y, Zero)
    Differ = Xor (RisNegative, YisNegative)
    RisZero = Equal (R, Zero)
    RisNotZero = Not (RisZero)
    Wrong = And (Differ, RisNotZero)
    Sum = Add (R, Y)
    Floored = Where (Wrong, Sum, R)
    Size = Abs (R)
    Sign = Sign (Y)
    SignedZero = Mul (Size, Sign)
    Z = Where (RisZero, SignedZero, Floored)
"""
"""The sign of the divisor, where the pin's operator for floats has that of the dividend."""

_SHIFT = """
    Last = Constant <value_int: int = {last}> ()
    Zero = Constant <value_int: int = 0> ()
    Count = Cast <to: int = 7> (Y)
    Below = Less (Count, Zero)
    Above = Greater (Count, Last)
    Beyond = Or (Below, Above)
    Clamped = Where (Beyond, Last, Count)
    N = Cast <to: int = 13> (Clamped)
    Wide = Cast <to: int = 7> (X)
"""
_SHIFT_LEFT = """
    Bits = Cast <to: int = 13> (Wide)
    Moved = BitShift <direction: string = "LEFT"> (Bits, N)
    Signed = Cast <to: int = 7> (Moved)
    Kept = Where (Beyond, Zero, Signed)
    Z = CastLike (Kept, X)
"""
_SHIFT_RIGHT = """
    IsNegative = Less (Wide, Zero)
    Inverse = BitwiseNot (Wide)
    Positive = Where (IsNegative, Inverse, Wide)
    Bits = Cast <to: int = 13> (Positive)
    Moved = BitShift <direction: string = "RIGHT"> (Bits, N)
    Signed = Cast <to: int = 7> (Moved)
    Back = BitwiseNot (Signed)
    Kept = Where (IsNegative, Back, Signed)
    Z = CastLike (Kept, X)
"""
"""Of signed integers, by way of the unsigned ones that the pin shifts; a count beyond the width leaves the sign."""


def why_not_pinned(node: ir.Node, came: int) -> str:
    """Why a node of a newer opset is not one of the pinned opset; "" if it is. Types that are not known are trusted."""
    try:
        new = onnx.defs.get_schema(node.op_type, came)
        old = onnx.defs.get_schema(node.op_type, OPSET)
    except onnx.defs.SchemaError:
        return f"new since {OPSET}"
    if new.since_version <= OPSET:
        return ""
    odd = set(node.attributes) - set(old.attributes)
    odd |= {name for name in set(new.attributes) - set(old.attributes) if new.attributes[name].required}
    odd |= foreign_types(node, old)
    if len(node.inputs) > old.max_input or len(node.outputs) > old.max_output:
        odd.add("number of inputs or outputs")
    if node.op_type in _REWORDED:
        odd.add("its definition")
    if _is_floored_mod(node):
        odd.add("fmod=0 of floats")
    return f"changed in {new.since_version}: {', '.join(sorted(odd))}" if odd else ""


def function_of(node: ir.Node, came: int) -> onnx.FunctionProto | None:
    """A function of operators of opset `came` that does what a node does; None if there is none."""
    dtype = node.inputs[0].dtype if node.inputs and node.inputs[0] is not None else None
    if node.op_type == "BitShift" and dtype in _SIGNED_BITS:
        left = node.attributes.get_string("direction") == "LEFT"
        body = _SHIFT.format(last=_SIGNED_BITS[dtype] - 1) + (_SHIFT_LEFT if left else _SHIFT_RIGHT)
        return _parsed(node, body, came)
    if _is_floored_mod(node):
        return _parsed(node, _MOD, came)
    return _of_schema(node, came)


def _parsed(node: ir.Node, body: str, came: int) -> onnx.FunctionProto:
    head = f'<domain: "flagir.newer", opset_import: ["" : {came}]> {node.op_type} (X, Y) => (Z)'
    function: onnx.FunctionProto = onnx.parser.parse_function(f"{head} {{{body}}}")
    return function


def _of_schema(node: ir.Node, came: int) -> onnx.FunctionProto | None:
    """ONNX's own function, where it was written for this definition of the operator."""
    try:
        schema: Any = onnx.defs.get_schema(node.op_type, came)  # onnx's type stubs lack what is used here
    except onnx.defs.SchemaError:
        return None
    function = None
    if schema.has_function:
        function = schema.get_function_with_opset_version(schema.function_opset_versions[-1])
    elif schema.has_context_dependent_function:
        version = schema.context_dependent_function_opset_versions[-1]
        types = [_type_proto(value).SerializeToString() for value in node.inputs]
        proto = ir.serde.serialize_node(node).SerializeToString()
        function = schema.get_context_dependent_function_with_opset_version(version, proto, types)
    if isinstance(function, bytes):
        function = onnx.FunctionProto.FromString(function) if function else None
    return function


def _type_proto(value: ir.Value | None) -> onnx.TypeProto:
    if value is None or value.type is None:
        return onnx.TypeProto()
    return ir.serde.serialize_value(value).type


def _is_floored_mod(node: ir.Node) -> bool:
    if node.op_type != "Mod" or (node.attributes.get_int("fmod") or 0) or node.inputs[0] is None:
        return False
    dtype = node.inputs[0].dtype
    return dtype is not None and dtype.is_floating_point()


def foreign_types(node: ir.Node, schema: onnx.defs.OpSchema) -> set[str]:
    """Element types that a node uses and the schema does not admit."""
    found: set[str] = set()
    sides: tuple[tuple[Sequence[ir.Value | None], Sequence[onnx.defs.OpSchema.FormalParameter]], ...] = (
        (node.inputs, schema.inputs),
        (node.outputs, schema.outputs),
    )
    for values, formals in sides:
        for index, value in enumerate(values):
            formal = formals[min(index, len(formals) - 1)] if formals else None
            if value is not None and isinstance(value.type, ir.TensorType) and formal is not None:
                found.update({_type_text(value.type.dtype)} - set(formal.types))
    every = {text for formal in schema.outputs for text in formal.types}
    for name in _TO_DTYPE:
        attribute = node.attributes.get(name)
        if attribute is not None and attribute.type == ir.AttributeType.INT and attribute.as_int():
            found.update({_type_text(ir.DataType(attribute.as_int()))} - every)
    return found


def _type_text(dtype: ir.DataType) -> str:
    return f"tensor({dtype.name.lower()})"
