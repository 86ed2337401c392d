"""Products of matrices."""

import numpy as np

from flagsplit.targets.mobile.coreml.lowering.facts import FLOATS, NUMBERS, Array, NodeFacts
from flagsplit.targets.mobile.coreml.lowering.registry import lowers
from flagsplit.targets.mobile.coreml.lowering.site import Site, Var


def _odd_product(facts: NodeFacts) -> str:
    return "an operand is a scalar" if not facts.rank(0) or not facts.rank(1) else ""


@lowers("MatMul", dtypes=NUMBERS, why_not=_odd_product)
def lower_matmul(site: Site) -> Var:
    x, y = site.var(0), site.var(1)
    if site.rank(0) == 1:
        x = site.reshape(x, (1, *site.shape(0)))
    if site.rank(1) == 1:
        y = site.reshape(y, (*site.shape(1), 1))
    return site.reshape(site.mb.matmul(x=x, y=y), site.out_shape())


@lowers("Gemm", dtypes=FLOATS)
def lower_gemm(site: Site) -> Var:
    mb, alpha, beta = site.mb, site.real("alpha", 1.0), site.real("beta", 1.0)
    turned = bool(site.integer("transB", 0))
    x, weight = site.var(0), site.const(1)
    if site.integer("transA", 0):
        x = mb.transpose(x=x, perm=[1, 0])
    bias = site.const(2) if site.is_const(2) else None
    if weight is not None and (bias is not None or not site.has(2)):
        scaled = _scaled(weight if turned else weight.T, alpha)
        if bias is None:
            return mb.linear(x=x, weight=scaled)
        columns = site.out_shape()[-1]
        if bias.ndim <= 1 or bias.shape[0] == 1:
            flat = np.broadcast_to(_scaled(bias, beta).reshape(-1), (columns,))
            return mb.linear(x=x, weight=scaled, bias=np.ascontiguousarray(flat))
    made = mb.matmul(x=x, y=site.var(1), transpose_y=turned)
    if alpha != 1:
        made = mb.mul(x=made, y=site.number(alpha))
    if not site.has(2):
        return made
    added = site.var(2) if beta == 1 else mb.mul(x=site.var(2), y=site.number(beta))
    return mb.add(x=made, y=added)


def _scaled(array: Array, by: float) -> Array:
    return np.ascontiguousarray(array if by == 1 else (array.astype(np.float64) * by).astype(array.dtype))
