"""Operators that work in any layout, and what changes in them when channels come last.

Those that work on each element, once their operands have the same rank; those that name axes; and reshapes that only
add or drop sizes of one in space.
"""

from collections.abc import Sequence

import numpy as np

from flagsplit.targets.tflite.program import Operator, Tensor, nhwc

_ELEMENTWISE = frozenset(
    "ABS ADD ATAN2 CAST CEIL COS DEQUANTIZE DIV ELU EQUAL EXP FLOOR FLOOR_MOD GELU GREATER GREATER_EQUAL HARD_SWISH "
    "LEAKY_RELU LESS LESS_EQUAL LOG LOGICAL_AND LOGICAL_NOT LOGICAL_OR LOGISTIC MAXIMUM MINIMUM MUL NEG NOT_EQUAL POW "
    "PRELU QUANTIZE RELU RELU6 ROUND RSQRT SELECT_V2 SIGN SIN SQRT SQUARE SUB TANH".split()
)
_REDUCTIONS = frozenset("MEAN SUM REDUCE_MAX REDUCE_MIN REDUCE_PROD REDUCE_ANY REDUCE_ALL".split())
_BY_ROWS = frozenset("PAD PADV2".split())
_BY_LISTS = frozenset("SLICE STRIDED_SLICE".split())


def may_move(operator: Operator) -> bool:
    """Whether an operator works with channels last as well."""
    rank = operator.outputs[0].rank
    if rank < 3 or rank > 5:
        return False
    code, inputs = operator.code, [each for each in operator.inputs if each is not None]
    if code in _ELEMENTWISE:
        return all(each.rank == rank or (each.rank == 0 and each.data is not None) for each in inputs)
    if code == "CONCATENATION":
        return all(each.rank == rank for each in inputs)
    if code == "GATHER":
        return inputs[0].rank == rank and inputs[0].data is None and inputs[1].data is not None and inputs[1].rank == 1
    if code in _REDUCTIONS:
        return bool(operator.options["keepDims"]) and inputs[1].data is not None
    if code in _BY_ROWS or code in _BY_LISTS:
        return inputs[0].data is None and all(each.data is not None for each in inputs[1:])
    return code == "RESHAPE" and inputs[0].data is None and _same_image(inputs[0].shape, operator.outputs[0].shape)


def _same_image(before: Sequence[int], after: Sequence[int]) -> bool:
    """Whether batch and channels stay, and of space only ones come or go."""
    if min(len(before), len(after)) < 3 or tuple(before[:2]) != tuple(after[:2]):
        return False
    return [each for each in before[2:] if each != 1] == [each for each in after[2:] if each != 1]


def moved(operator: Operator, inputs: Sequence[Tensor | None]) -> Operator:
    """The operator with channels last.

    Args:
        operator: as it was.
        inputs: its activations with channels last already; constants as they were.
    """
    rank = operator.outputs[0].rank
    perm = nhwc(rank)
    outputs = tuple(each.shaped([each.shape[at] for at in nhwc(each.rank)]) for each in operator.outputs)
    options = dict(operator.options)
    code = operator.code
    if code in _ELEMENTWISE or code == "CONCATENATION":
        if "axis" in options:
            options["axis"] = perm.index(options["axis"] % rank)
        return Operator(code, tuple(_constant(each, perm) for each in inputs), outputs, options)
    first, second = inputs[0], inputs[1]
    assert second is not None
    if code == "GATHER":
        options["axis"] = perm.index(options["axis"])
        return Operator(code, (first, second), outputs, options)
    if code == "RESHAPE":
        options["newShape"] = list(outputs[0].shape)
        return Operator(code, (first, _numbers(outputs[0].shape)), outputs, options)
    if code in _REDUCTIONS:
        assert second.data is not None
        axes = sorted(perm.index(int(each) % rank) for each in second.data.reshape(-1))
        return Operator(code, (first, _numbers(axes)), outputs, options)
    if code in _BY_ROWS:
        return Operator(code, (first, _rows(second, perm), *inputs[2:]), outputs, options)
    return Operator(code, (first, *(_rows(each, perm) for each in inputs[1:])), outputs, options)


def _constant(x: Tensor | None, perm: Sequence[int]) -> Tensor | None:
    if x is None or x.data is None or x.rank == 0:
        return x
    return x.rearranged(lambda data: data.transpose(perm))


def _rows(x: Tensor | None, perm: Sequence[int]) -> Tensor:
    assert x is not None
    assert x.data is not None
    data = x.data[list(perm)]
    return Tensor(data.shape, x.dtype, data)


def _numbers(values: Sequence[int]) -> Tensor:
    data = np.array(list(values), np.int32)
    return Tensor(data.shape, "int32", data)
