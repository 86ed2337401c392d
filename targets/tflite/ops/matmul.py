"""MatMul and Gemm: FULLY_CONNECTED where the weights are constant, else BATCH_MATMUL."""

import numpy as np
import onnx_ir as ir

from flagsplit.targets.tflite.builder import Builder
from flagsplit.targets.tflite.program import Refused, Tensor


def lower(builder: Builder, node: ir.Node) -> None:
    builder.give(node, product(builder, builder.take(node, 0), builder.take(node, 1)))


def product(builder: Builder, x: Tensor, y: Tensor) -> Tensor:
    """As NumPy's matmul."""
    if x.dtype != "float32":
        raise Refused(f"TFLite multiplies matrices of float32, came {x.dtype}")
    if y.rank == 2 and y.data is not None:
        return fully_connected(builder, x, builder.transpose(y, (1, 0)), None)
    left = builder.reshape(x, (1, *x.shape)) if x.rank == 1 else x
    right = builder.reshape(y, (*y.shape, 1)) if y.rank == 1 else y
    batch = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    rank = len(batch) + 2
    if rank > 4:
        left, right = (_flat(builder, each, batch) for each in (left, right))
    elif min(left.rank, right.rank) < rank:
        left, right = (builder.raised(each, rank) for each in (left, right))
    shape = [*batch, left.shape[-2], right.shape[-1]]
    made = builder.matmul(left, right)
    if y.rank == 1:
        shape.pop(-1)
    if x.rank == 1:
        shape.pop(len(batch))
    return builder.reshape(made, shape)


def _flat(builder: Builder, x: Tensor, batch: tuple[int, ...]) -> Tensor:
    """With one leading dimension."""
    wide = builder.expand(x, (*batch, *x.shape[-2:]))
    return builder.reshape(wide, (-(-wide.size // (x.shape[-2] * x.shape[-1])), *x.shape[-2:]))


def fully_connected(builder: Builder, x: Tensor, weights: Tensor, bias: Tensor | None) -> Tensor:
    """`weights` of shape [out, in]; x has them last."""
    if x.shape[-1] != weights.shape[1]:
        raise Refused(f"shapes {x.shape} and {weights.shape[::-1]} do not multiply")
    flat = builder.reshape(x, (1, x.size)) if x.rank == 1 else x
    shape = (*flat.shape[:-1], weights.shape[0])
    made = builder.op("FULLY_CONNECTED", [flat, weights, bias], shape, keepNumDims=flat.rank > 2)
    return builder.reshape(made, (*x.shape[:-1], weights.shape[0]))


def lower_gemm(builder: Builder, node: ir.Node) -> None:
    x, y, bias = builder.take(node, 0), builder.take(node, 1), builder.maybe(node, 2)
    alpha, beta = node.attributes.get_float("alpha", 1.0), node.attributes.get_float("beta", 1.0)
    if x.dtype != "float32":
        raise Refused(f"TFLite multiplies matrices of float32, came {x.dtype}")
    if node.attributes.get_int("transA", 0):
        x = builder.transpose(x, (1, 0))
    turned = bool(node.attributes.get_int("transB", 0))
    if y.data is not None:
        weights = y if turned else builder.transpose(y, (1, 0))
        if alpha != 1:
            weights = builder.const(np.asarray(weights.data, np.float32) * np.float32(alpha))
        row = None if bias is None or bias.data is None else np.asarray(bias.data, np.float32).reshape(-1)
        fits = row is not None and bias is not None and bias.shape[-1:] == row.shape == weights.shape[:1]
        added = builder.const(row * np.float32(beta)) if fits and row is not None else None
        made = fully_connected(builder, x, weights, added)
        bias = None if fits else bias
    else:
        made = builder.matmul(x, builder.transpose(y, (1, 0)) if turned else y)
        made = made if alpha == 1 else builder.mul(made, alpha)
    if bias is not None and beta != 0:
        made = builder.add(made, bias if beta == 1 else builder.mul(bias, beta))
    builder.give(node, made)
