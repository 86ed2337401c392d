"""Operators taken together where TFLite has one for both: fewer to run, and more that a delegate takes.

Constant factors and summands of a channel go into the weights and bias of the convolution or dense layer before
them, as folded batch normalizations do; RELU and RELU6 into the operator before them; and x * relu6(x + 3) / 6 is
HARD_SWISH.
"""

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from flagsplit.targets.tflite.layout import used_operators
from flagsplit.targets.tflite.program import Operator, Program, Tensor

_CHANNEL_AXIS = {"CONV_2D": 0, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 0}
_FUSED = "fusedActivationFunction"
_ACTIVATIONS = {"RELU": 1, "RELU6": 3}
_ACTIVATED = frozenset(("ADD", "CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "MUL", "SUB"))


def fuse(program: Program) -> Program:
    """The same program with fewer operators; `program` is used up."""
    return _Fuser(program).program()


class _Fuser:
    def __init__(self, program: Program) -> None:
        self._old = program
        self._reads: Counter[Tensor] = Counter(program.outputs)
        for operator in program.operators:
            self._reads.update(each for each in operator.inputs if each is not None)
        self._operators: list[Operator] = []
        self._maker: dict[Tensor, int] = {}

    def program(self) -> Program:
        for operator in self._old.operators:
            fused = self._hard_swish(operator) or self._into_weights(operator) or self._activated(operator)
            at = len(self._operators)
            if fused is None:
                self._operators.append(operator)
            else:
                at, made = fused
                if at == len(self._operators):
                    self._operators.append(made)
                else:
                    self._operators[at] = made
            for each in self._operators[at].outputs:
                self._maker[each] = at
        operators = used_operators(self._operators, self._old.outputs)
        return Program(self._old.inputs, self._old.outputs, operators)

    def _made_by(self, x: Tensor | None, code: str = "") -> Operator | None:
        """The operator that makes a tensor for one reader alone, if it is of that code."""
        if x is None or x not in self._maker or self._reads[x] != 1:
            return None
        found = self._operators[self._maker[x]]
        return found if not code or found.code == code else None

    def _hard_swish(self, operator: Operator) -> tuple[int, Operator] | None:
        x, number = _with_number(operator)
        if x is None or not ((operator.code, number) == ("DIV", 6) or (operator.code == "MUL" and _sixth(number))):
            return None
        product = self._made_by(x, "MUL")
        for source, gate in _pairs(product):
            shifted = self._made_by(gate, "ADD")  # with the RELU6 in it already
            clipped = shifted is not None and shifted.options.get(_FUSED) == _ACTIVATIONS["RELU6"]
            if shifted is not None and clipped and _with_number(shifted) == (source, 3):
                return len(self._operators), Operator("HARD_SWISH", (source,), operator.outputs)
        return None

    def _into_weights(self, operator: Operator) -> tuple[int, Operator] | None:
        if operator.code not in ("ADD", "MUL") or operator.options.get(_FUSED):
            return None
        for x, other in _pairs(operator):
            before = self._made_by(x)
            if before is None or other is None or other.data is None or not _may_fold(before):
                continue
            row = _per_channel(other, operator.outputs[0].shape)
            if row is not None and before.outputs[0].shape == operator.outputs[0].shape:
                assert x is not None
                return self._maker[x], _folded(before, operator, row)
        return None

    def _activated(self, operator: Operator) -> tuple[int, Operator] | None:
        if operator.code not in _ACTIVATIONS:
            return None
        x = operator.inputs[0]
        before = self._made_by(x)
        if x is None or before is None or before.code not in _ACTIVATED or before.options.get(_FUSED):
            return None
        options = {**before.options, _FUSED: _ACTIVATIONS[operator.code]}
        return self._maker[x], Operator(before.code, before.inputs, operator.outputs, options)


def _pairs(operator: Operator | None) -> tuple[tuple[Tensor | None, Tensor | None], ...]:
    """The two inputs of an operator, either way round."""
    if operator is None or len(operator.inputs) != 2:
        return ()
    return (operator.inputs, operator.inputs[::-1])


def _with_number(operator: Operator) -> tuple[Tensor | None, float | None]:
    """The activation and the number that an operator of two inputs takes."""
    for x, other in _pairs(operator):
        if x is not None and x.data is None and other is not None and other.data is not None and other.size == 1:
            if operator.code == "DIV" and x is not operator.inputs[0]:
                continue
            return x, float(np.asarray(other.data).reshape(()))
    return None, None


def _sixth(number: float | None) -> bool:
    return number is not None and abs(number * 6 - 1) < 1e-6


def _may_fold(operator: Operator) -> bool:
    if operator.code not in _CHANNEL_AXIS or operator.options.get(_FUSED):
        return False
    weights, bias = operator.inputs[1], operator.inputs[2]
    return weights is not None and weights.data is not None and (bias is None or bias.data is not None)


def _per_channel(x: Tensor, shape: tuple[int, ...]) -> NDArray[np.float64] | None:
    """One number for each of the last axis, if a constant is no more than that."""
    if x.rank > len(shape) or x.dtype != "float32":
        return None
    if x.size != 1 and (not x.rank or x.size != x.shape[-1] or x.size != shape[-1]):
        return None
    return np.broadcast_to(np.asarray(x.data, np.float64).reshape(-1), shape[-1:])


def _folded(before: Operator, operator: Operator, row: NDArray[np.float64]) -> Operator:
    x, weights, bias = before.inputs
    assert weights is not None
    old = np.zeros(row.shape) if bias is None else np.asarray(bias.data, np.float64).reshape(-1)
    if operator.code == "ADD":
        return Operator(before.code, (x, weights, _float32(old + row)), operator.outputs, before.options)
    shape = [1] * weights.rank
    shape[_CHANNEL_AXIS[before.code]] = row.size
    scaled = _float32(np.asarray(weights.data) * row.reshape(shape))
    if weights.steps is not None and np.all(row > 0):
        scaled.steps, scaled.zero = (
            np.asarray(weights.steps, np.float32) * row.reshape(shape).astype(np.float32),
            weights.zero,
        )
    return Operator(before.code, (x, scaled, _float32(old * row)), operator.outputs, before.options)


def _float32(data: NDArray[np.float64]) -> Tensor:
    return Tensor(data.shape, "float32", data.astype(np.float32))
