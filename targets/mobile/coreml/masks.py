"""Masks that fp16 cannot hold, such as -1e9 or the least float, made so that it can.

A mask is added to scores, or put in place of them, so that a softmax gives nothing to what it covers. Any number far
below the scores does: e^-10000 is zero in every precision. So constants beyond `DEEPEST` that go to nothing but
softmaxes become `DEEPEST`, and the model is run on samples before and after; if an answer changes, they stay, and
what computes with them stays in fp32. A row that is covered as a whole is the case in which an answer may change.
"""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from flagsplit.targets.interface import Array
from flagsplit.targets.mobile.coreml.ranges import answers

DEEPEST = -1.0e4
"""Far below any score, and far enough from -65504 that scores can be added to it, and two masks to each other."""

_CARRYING = frozenset(
    (
        *("Add", "Concat", "Expand", "Flatten", "Gather", "Identity", "Mul", "Reshape", "Slice", "Split", "Squeeze"),
        *("Sub", "Tile", "Transpose", "Unsqueeze", "Where"),
    )
)
_ENDS = frozenset(("Softmax", "LogSoftmax"))


def soften_masks(model: ir.Model, samples: Sequence[Mapping[str, Array]]) -> tuple[str, ...]:
    """Replace masks in place.

    Args:
        model: a canonical model of fixed shapes.
        samples: one array per input in each, to compare the answers on.

    Returns:
        The names of the constants that were replaced.

    Raises:
        InputError: the model does not take these inputs.
    """
    masks = [value for value in model.graph.initializers.values() if _is_deep(value) and _only_masks(value)]
    if not masks:
        return ()
    before = answers(model, samples)
    kept = {value: value.const_value for value in masks}
    soften(model, [value.name or "" for value in masks])
    after = answers(model, samples)
    if all(_alike(one[name], other[name]) for one, other in zip(before, after, strict=True) for name in one):
        return tuple(value.name or "" for value in masks)
    for value, tensor in kept.items():
        value.const_value = tensor
    return ()


def soften(model: ir.Model, names: Collection[str]) -> None:
    """Replace those constants of these names that the model has, in place."""
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if value.name in names and tensor is not None:
            array = np.clip(tensor.numpy(), DEEPEST, -DEEPEST).astype(tensor.numpy().dtype)
            value.const_value = ir.Tensor(array, name=value.name)


def _is_deep(value: ir.Value) -> bool:
    tensor = value.const_value
    if tensor is None or tensor.dtype != ir.DataType.FLOAT or not tensor.size:
        return False
    return bool(np.abs(tensor.numpy()).max() > -DEEPEST)


def _only_masks(value: ir.Value) -> bool:
    """Whether all that a value goes into ends in softmaxes."""
    waiting, seen = [value], set[ir.Value]()
    while waiting:
        each = waiting.pop()
        if each in seen:
            continue
        seen.add(each)
        if each.is_graph_output():
            return False
        for node, _ in each.uses():
            if node.op_type in _CARRYING:
                waiting.extend(node.outputs)
            elif node.op_type not in _ENDS:
                return False
    return True


def _alike(one: Array, other: Array) -> bool:
    return bool(np.allclose(one, other, rtol=1e-4, atol=1e-6, equal_nan=True))
