"""Matrix products and attention."""

from collections.abc import Mapping
from typing import Final

import numpy as np

from flagsplit.targets.mobile.mil.arguments import Arguments, Operator
from flagsplit.targets.mobile.mil.ops.activation import softmax_of
from flagsplit.targets.mobile.mil.types import Array


def linear(a: Arguments) -> Array:
    """`x @ weight.T + bias`."""
    x, weight, bias = a.tensor("x"), a.tensor("weight"), a.optional("bias")
    a.room((*x.shape[:-1], weight.shape[0]))
    result = x @ weight.T
    return result if bias is None else result + bias


def matmul(a: Arguments) -> Array:
    """NumPy's `matmul`, each side transposed first if its flag says so."""
    x, y = a.tensor("x"), a.tensor("y")
    if a.flag("transpose_x", False) and x.ndim > 1:
        x = np.swapaxes(x, -1, -2)
    if a.flag("transpose_y", False) and y.ndim > 1:
        y = np.swapaxes(y, -1, -2)
    if x.ndim > 1 and y.ndim > 1:
        a.room((*np.broadcast_shapes(x.shape[:-2], y.shape[:-2]), x.shape[-2], y.shape[-1]))
    return np.asarray(np.matmul(x, y))


def einsum(a: Arguments) -> Array:
    """A product of two tensors over the last axis of the first and the third last of the second, batched over the rest.

    No other equation is part of MIL.
    """
    tensors, equation = a.tensors("values"), a.text("equation").replace(" ", "")
    left, _, out = equation.partition("->")
    terms = left.split(",")
    if len(tensors) != 2 or len(terms) != 2 or [len(term) for term in terms] != [value.ndim for value in tensors]:
        raise a.refuse(f"the equation {equation!r} does not fit {len(tensors)} tensors")
    first, second = terms
    if first[-1] != second[-3] or first[-2] != second[-2] or out != first[:-1] + second[-1]:
        raise a.refuse(f"the equation {equation!r} is not like 'nchw,nwhu->nchu'")
    x, y = (np.swapaxes(value, -2, -3) for value in tensors)
    product = np.swapaxes(np.matmul(x, y), -2, -3)
    a.room(product.shape)
    return product


def scaled_dot_product_attention(a: Arguments) -> Array:
    """`softmax(query @ key.T / sqrt(E) + mask) @ value`; a mask of truth values keeps what is true."""
    query, key, value = a.tensor("query"), a.tensor("key"), a.tensor("value")
    a.room((*query.shape[:-1], value.shape[-1]))
    scores = query @ np.swapaxes(key, -1, -2) / np.sqrt(np.float32(query.shape[-1]))
    mask = a.optional("attn_mask")
    if mask is not None:
        scores = np.where(mask, scores, np.float32(-np.inf)) if mask.dtype == np.bool_ else scores + mask
    return softmax_of(scores, -1) @ value


OPERATORS: Final[Mapping[str, Operator]] = {
    "einsum": einsum,
    "linear": linear,
    "matmul": matmul,
    "scaled_dot_product_attention": scaled_dot_product_attention,
}
