"""FusedMatMul and its older name TransposeMatMul: a matrix product with the transpositions and the factor around it."""

from collections.abc import Sequence

import onnx_ir as ir

from flagsplit.flagir.passes.microsoft.site import Site


def fused_matmul(site: Site) -> Sequence[ir.Value | None]:
    """alpha * MatMul(turned A, turned B)."""
    left = _turned(site, site.need(0), "A")
    right = _turned(site, site.need(1), "B")
    product = site.op("MatMul", left, right)
    alpha = site.attr_float("alpha", 1.0)
    return [product if alpha == 1.0 else site.op("Mul", product, site.like(alpha, product))]


def _turned(site: Site, value: ir.Value, side: str) -> ir.Value:
    """With `transBatch` the rows of the matrices are the first axis and the batch lies behind it."""
    matrix, batch = site.attr_int(f"trans{side}", 0), site.attr_int(f"transBatch{side}", 0)
    if not matrix and not batch:
        return value
    axes = list(range(site.rank(value)))
    if len(axes) < 2:
        return value
    if batch:
        axes = [*axes[1:-1], axes[0], axes[-1]]
    if matrix:
        axes[-2:] = axes[:-3:-1]
    return site.transpose(value, *axes)
