"""Attention to a cache, as steps of programs write it: to as many keys of the past as a row has, and to its chunk.

The masks are of a form that `flagsplit.flagir.programs.decoder` gives them; attention that is masked otherwise is left.
"""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from flagsplit.targets.cloud.cuda.lowering.registry import DOMAIN
from flagsplit.targets.cloud.cuda.passes.rewriting import maker, put, reader, scalar, sizes

_MASKED = -1e9


def fuse_cached_attention(graph: ir.Graph) -> None:
    """Find all, in place."""
    for node in list(graph):
        if node.op_type == "Softmax" and not node.domain and node.graph is graph:
            _fuse(graph, node)


def _fuse(graph: ir.Graph, softmax: ir.Node) -> None:
    masked = maker(softmax.inputs[0], "Add")
    if masked is None or (sizes(softmax.inputs[0]) or ())[3:] == ():
        return
    products, mask = masked.inputs
    joined = maker(products, "Concat")
    if joined is None:
        _fuse_plain(graph, softmax, products, mask)
    elif len(joined.inputs) == 2:
        _fuse_with_chunk(graph, softmax, joined.inputs, mask)


def _fuse_plain(graph: ir.Graph, softmax: ir.Node, products: ir.Value | None, mask: ir.Value | None) -> None:
    scores, mixed = _scores(products), reader(softmax.outputs[0], "MatMul")
    lengths = _lengths(mask)
    if scores is None or lengths is None or mixed is None or mixed.inputs[0] is not softmax.outputs[0]:
        return
    q, k = scores
    put(graph, mixed.outputs[0], "CachedAttention", [q, k, mixed.inputs[1], None, None, lengths], {}, DOMAIN)


def _fuse_with_chunk(
    graph: ir.Graph, softmax: ir.Node, products: Sequence[ir.Value | None], mask: ir.Value | None
) -> None:
    of_past, of_chunk = (_scores(each) for each in products)
    divided = reader(softmax.outputs[0], "Split")
    if of_past is None or of_chunk is None or of_past[0] is not of_chunk[0] or divided is None:
        return
    mixed = [reader(each, "MatMul") for each in divided.outputs]
    if len(mixed) != 2 or mixed[0] is None or mixed[1] is None:
        return
    added = reader(mixed[0].outputs[0], "Add")
    chunk = (sizes(of_chunk[1]) or (0, 0, 0))[2]
    lengths = _lengths(mask, chunk)
    if added is None or reader(mixed[1].outputs[0], "Add") is not added or lengths is None:
        return
    inputs = [of_past[0], of_past[1], mixed[0].inputs[1], of_chunk[1], mixed[1].inputs[1], lengths]
    put(graph, added.outputs[0], "CachedAttention", inputs, {}, DOMAIN)


def _scores(value: ir.Value | None) -> tuple[ir.Value, ir.Value] | None:
    """Queries and keys of their product."""
    product = maker(value, "MatMul")
    turned = maker(product.inputs[1], "Transpose") if product is not None else None
    if product is None or turned is None or list(turned.attributes.get_ints("perm", ()) or ()) != [0, 1, 3, 2]:
        return None
    q, k = product.inputs[0], turned.inputs[0]
    return None if q is None or k is None else (q, k)


def _lengths(mask: ir.Value | None, chunk: int = 0) -> ir.Value | None:
    """How many keys of the past count, if a mask says just that, and that those of the chunk count up to the query."""
    chosen = maker(mask, "Where")
    if chosen is None or scalar(chosen.inputs[1]) != 0 or (scalar(chosen.inputs[2]) or 0) > _MASKED:
        return None
    allowed = chosen.inputs[0]
    shape = sizes(allowed)
    either = maker(allowed, "Or")
    if shape is None or len(shape) != 4 or (either is not None) != bool(chunk):
        return None
    if either is not None:
        allowed, own = either.inputs
        keys, queries = np.arange(shape[3]) - (shape[3] - chunk), np.arange(shape[2]) % chunk
        if not _is(own, (keys >= 0) & (keys <= queries[:, None])):
            return None
    less = maker(allowed, "Less")
    spread = maker(less.inputs[1], "Unsqueeze") if less is not None else None
    if less is None or spread is None or not _is(less.inputs[0], np.arange(shape[3])):
        return None
    lengths = spread.inputs[0]
    return lengths if sizes(spread.outputs[0]) == (shape[0], 1, 1, 1) and len(sizes(lengths) or ()) == 1 else None


def _is(value: ir.Value | None, expected: NDArray[np.generic]) -> bool:
    tensor = value.const_value if value is not None and value.producer() is None else None
    if tensor is None:
        return False
    found = np.asarray(tensor.numpy())
    return found.size == expected.size and bool((found.reshape(expected.shape) == expected).all())
