"""Quantization to 8 bits and back, and products of such numbers: computed in float32, held as int32.

Sums of products stay exact up to 2^24; beyond, they are off by less than float32's rounding of the answer.
"""

import numpy as np
import onnx_ir as ir

from flagsplit.targets.mobile.coreml.lowering.facts import BYTES, FLOATS, INTEGERS, Array, NodeFacts
from flagsplit.targets.mobile.coreml.lowering.registry import lowers
from flagsplit.targets.mobile.coreml.lowering.site import Site, Var

_BOUNDS = {ir.DataType.INT8: (-128, 127), ir.DataType.UINT8: (0, 255)}


def _odd_quantization(facts: NodeFacts) -> str:
    if facts.integer("block_size", 0):
        return "its scales are those of blocks"
    if facts.op == "QuantizeLinear" and facts.out_dtype() not in BYTES:
        return f"it quantizes to {facts.out_dtype().name.lower()}; only int8 and uint8 are lowered"
    if facts.op == "QuantizeLinear" and facts.dtype(0) != facts.dtype(1):
        return "its scale is of another type than its operand"
    if facts.op == "DequantizeLinear" and facts.dtype() not in BYTES | INTEGERS:
        return "its operand is not quantized"
    return ""


def _along(site: Site, at: int) -> list[int]:
    """The shape in which a scale or zero point meets the operand."""
    if site.rank(at) == 0 or site.shape(at) == (1,):
        return [1] * site.rank() if site.rank() else []
    shape = [1] * site.rank()
    shape[site.axis(1)] = site.shape(at)[0]
    return shape


def _as_float(site: Site, at: int, dtype: ir.DataType) -> Var:
    return site.reshape(site.cast(site.var(at), dtype), _along(site, at))


@lowers("QuantizeLinear", dtypes=FLOATS, bytes_too=True, why_not=_odd_quantization)
def lower_quantize(site: Site) -> Var:
    mb = site.mb
    scaled = mb.round(x=mb.real_div(x=site.var(), y=_as_float(site, 1, site.dtype())))
    if site.has(2):
        scaled = mb.add(x=scaled, y=_as_float(site, 2, site.dtype()))
    low, high = _BOUNDS[site.out_dtype()]
    bounded = mb.clip(x=scaled, alpha=site.number(low), beta=site.number(high))
    return mb.cast(x=bounded, dtype="int32")


@lowers("DequantizeLinear", dtypes=BYTES, bytes_too=True, why_not=_odd_quantization)
def lower_dequantize(site: Site) -> Var:
    mb, dtype = site.mb, site.out_dtype()
    x = site.cast(site.var(), dtype)
    if site.has(2):
        x = mb.sub(x=x, y=_as_float(site, 2, dtype))
    return mb.mul(x=x, y=site.reshape(site.cast(site.var(1), dtype), _along(site, 1)))


def _odd_product(facts: NodeFacts) -> str:
    if facts.rank(0) < 2 or facts.rank(1) < 2:
        return "an operand is no matrix"
    points = [facts.rank(at) for at in (2, 3) if facts.has(at)]
    return "its zero points are those of rows or columns of many matrices" if max(points, default=0) > 1 else ""


@lowers("MatMulInteger", dtypes=BYTES, bytes_too=True, why_not=_odd_product)
def lower_matmul_integer(site: Site) -> Var:
    """The zero point of the left side is that of rows, of the right side that of columns."""
    mb = site.mb
    sides = [_centred(site, at, [-1, 1] if at == 0 else [1, -1]) for at in range(2)]
    return mb.cast(x=mb.matmul(x=sides[0], y=sides[1]), dtype="int32")


def _centred(site: Site, at: int, shape: list[int]) -> Var | Array:
    """An operand without its zero point, in float32; a constant one is a constant again."""
    array, point = site.const(at), site.const(at + 2)
    if array is not None and (point is not None or not site.has(at + 2)):
        less = np.int32(0) if point is None else point.astype(np.int32)
        less = less.reshape(shape) if np.ndim(less) and less.size > 1 else less.reshape(())
        return (array.astype(np.int32) - less).astype(np.float32)
    x = site.mb.cast(x=site.var(at), dtype="fp32")
    if not site.has(at + 2):
        return x
    size = int(np.prod(site.shape(at + 2)))
    less = site.mb.cast(x=site.var(at + 2), dtype="fp32")
    less = site.reshape(less, [size if each < 0 else 1 for each in shape] if size > 1 else [])
    return site.mb.sub(x=x, y=less)
