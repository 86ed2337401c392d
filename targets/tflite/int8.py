"""Operators in int8: what stands between DEQUANTIZE and QUANTIZE computes on integers, by the rules of `int8_rules`.

First each QUANTIZE goes up, through operators that commute with rounding, to what computes; then every operator whose
inputs stand as int8, and whose output is wanted so, becomes one of int8. What has no such form stays in float32, with
DEQUANTIZE before and QUANTIZE after it. Runs after `layout` and `fuse`: what pads and moves lies with its reader.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from flagsplit.targets.tflite.int8_rules import (
    CLIPS,
    FIXED,
    HIGHEST,
    LOWEST,
    MOVERS,
    OPERANDS,
    SAME,
    WEIGHTED,
    Params,
    bias_of,
    constant_operand,
    data_inputs,
    params_of,
    stored,
    weights_of,
)
from flagsplit.targets.tflite.layout import numbers, used_operators
from flagsplit.targets.tflite.program import Operator, Program, Tensor

_LARGE = 1024
_NO_FINER = 1.01
_FUSED = "fusedActivationFunction"
_RELU6 = 6.0


_EXACT = frozenset(
    "BROADCAST_TO CONCATENATION DEPTH_TO_SPACE GATHER RESHAPE RESIZE_NEAREST_NEIGHBOR SLICE SPACE_TO_DEPTH SQUEEZE "
    "STRIDED_SLICE TILE TRANSPOSE".split()
)


def without_idle_pairs(program: Program) -> Program:
    """The same program without QUANTIZE and DEQUANTIZE behind what only moves numbers that stood as the same int8.

    Runs before `layout`, which takes moves together that lie side by side.
    """
    exact: dict[Tensor, Params] = {}
    same: dict[Tensor, Tensor] = {}
    unrounded: dict[Tensor, Tensor] = {}
    operators = []
    for old in program.operators:
        inputs = tuple(None if each is None else same.get(each, each) for each in old.inputs)
        operator, first, output = Operator(old.code, inputs, old.outputs, old.options), inputs[0], old.outputs[0]
        assert first is not None
        if operator.code == "QUANTIZE" and exact.get(first) == params_of(output):
            unrounded[output] = first
        elif operator.code == "DEQUANTIZE" and first in unrounded and output not in program.outputs:
            same[output] = unrounded[first]
            continue
        elif operator.code == "DEQUANTIZE" and first.dtype == "int8" and first.data is None:
            exact[output] = params_of(first)
        elif operator.code in _EXACT and not operator.options.get(_FUSED) and output.dtype == "float32":
            moved = [inputs[at] for at in data_inputs(operator)]
            found = {exact.get(each) if each is not None else None for each in moved}
            params = found.pop()
            if not found and params is not None:
                exact[output] = params
        operators.append(operator)
    return Program(program.inputs, program.outputs, used_operators(operators, program.outputs))


def to_int8(program: Program) -> Program:
    """The same program with operators of int8 where it can have them; one without QUANTIZE or DEQUANTIZE as it came."""
    return _Rewriter(program).program()


def computes_in_int8(program: Program) -> bool:
    """Whether some operator works on activations of int8."""
    return any(
        operator.code not in ("QUANTIZE", "DEQUANTIZE") and any(each.dtype == "int8" for each in operator.outputs)
        for operator in program.operators
    )


class _Rewriter:
    def __init__(self, program: Program) -> None:
        self._old = program
        self._readers: dict[Tensor, list[Operator | None]] = defaultdict(list)
        for operator in program.operators:
            for each in operator.inputs:
                if each is not None:
                    self._readers[each].append(operator)
        for each in program.outputs:
            self._readers[each].append(None)
        self._wanted: dict[Tensor, Params | None] = {}
        self._operators: list[Operator] = []
        self._real: dict[Tensor, Tensor] = {}
        """By tensor of float32, the int8 that stands for it."""
        self._now: dict[Tensor, Tensor] = {}
        """What became of tensors of int8 that were there before."""
        self._averages: set[Tensor] = set()
        self._made: dict[tuple[Tensor, Params | None], Tensor] = {}

    def program(self) -> Program:
        for operator in reversed(self._old.operators):
            for each in operator.outputs:
                self._wanted[each] = self._wish(each)
        for operator in self._old.operators:
            self._write(operator)
        outputs: list[Tensor] = []
        for each in self._old.outputs:
            made = self._floating(self._now.get(each, each))
            if made in outputs or made in self._old.inputs:
                made = self._copied(made)
            outputs.append(made)
        return Program(self._old.inputs, outputs, used_operators(self._operators, outputs))

    def _wish(self, x: Tensor) -> Params | None:
        """As what all readers of a tensor want it, if that is int8 and the same for all."""
        found = {self._wish_of(reader) for reader in self._readers[x]}
        return found.pop() if len(found) == 1 else None

    def _wish_of(self, reader: Operator | None) -> Params | None:
        if reader is None:
            return None
        if reader.code == "QUANTIZE":
            return params_of(reader.outputs[0])
        return self._wanted.get(reader.outputs[0]) if reader.code in MOVERS else None

    def _write(self, operator: Operator) -> None:
        first = operator.inputs[0]
        assert first is not None
        if operator.code == "QUANTIZE":
            output = operator.outputs[0]
            self._now[output] = self._as_int8(first, params_of(output))
        elif operator.code == "DEQUANTIZE" and first.dtype == "int8" and first.data is None:
            self._real[operator.outputs[0]] = self._now.get(first, first)
        elif not (self._moved(operator) or self._computed(operator)):
            inputs = tuple(
                None if each is None else self._floating(self._now.get(each, each)) for each in operator.inputs
            )
            self._operators.append(Operator(operator.code, inputs, operator.outputs, operator.options))

    def _as_int8(self, x: Tensor, params: Params) -> Tensor:
        """A tensor of float32 as int8, quantized here if it does not stand so."""
        if x.data is not None:
            return params.tensor(x.shape, params.quantized(x.data))
        source = self._real.get(x, x)
        if source is not x and params_of(source) == params:
            return source
        key = (source, params)
        if key not in self._made:
            self._made[key] = params.tensor(x.shape)
            self._operators.append(Operator("QUANTIZE", (source,), (self._made[key],)))
        return self._made[key]

    def _floating(self, x: Tensor) -> Tensor:
        """A tensor as it was, dequantized here if it stands as int8."""
        source = self._real.get(x)
        if source is None and x.steps is not None and x.size >= _LARGE:
            source = stored(x)
        if source is None:
            return x
        key = (x if x.data is not None else source, None)
        if key not in self._made:
            self._made[key] = Tensor(x.shape, "float32")
            self._operators.append(Operator("DEQUANTIZE", (source,), (self._made[key],)))
        return self._made[key]

    def _copied(self, x: Tensor) -> Tensor:
        made = x.shaped(x.shape)
        self._operators.append(Operator("RESHAPE", (x, numbers(x.shape)), (made,), {"newShape": list(made.shape)}))
        return made

    def _moved(self, operator: Operator) -> bool:
        """Write an operator that commutes with rounding, if its output is wanted as int8, or its inputs stand so."""
        if operator.code not in MOVERS or operator.options.get(_FUSED) or operator.outputs[0].dtype != "float32":
            return False
        moves = [operator.inputs[at] for at in data_inputs(operator)]
        data = [each for each in moves if each is not None]
        params = self._wanted[operator.outputs[0]] or self._common(data)
        if params is None or not self._may_move(operator, params):
            return False
        taken = dict(zip(data_inputs(operator), (self._as_int8(each, params) for each in data), strict=True))
        output = operator.outputs[0]
        if _idle(operator, params, taken):
            self._real[output] = next(each for each in taken.values() if each.data is None)
            return True
        inputs = [taken.get(at, each) for at, each in enumerate(operator.inputs)]
        code = operator.code
        if code in ("PAD", "PADV2"):
            value = 0.0 if code == "PAD" else _number(inputs[2])
            code = "PAD" if params.quantized(np.array(value)) == params.zero else "PADV2"
            inputs = (
                inputs[:2] if code == "PAD" else [*inputs[:2], params.tensor((), params.quantized(np.array(value)))]
            )
        self._real[output] = params.tensor(output.shape)
        self._operators.append(Operator(code, tuple(inputs), (self._real[output],), operator.options))
        return True

    def _common(self, data: Sequence[Tensor]) -> Params | None:
        """The parameters that all of some tensors stand as."""
        found = {params_of(self._real[each]) if each in self._real else None for each in data}
        return found.pop() if len(found) == 1 else None

    def _may_move(self, operator: Operator, params: Params) -> bool:
        if self._wanted[operator.outputs[0]] is not None:
            return True
        if operator.code in ("RELU", "RELU6"):
            return False
        if operator.code != "PADV2":
            return True
        value = _number(operator.inputs[2])
        back = (float(params.quantized(np.array(value))) - params.zero) * params.scale
        return abs(back - value) <= 1e-5 * params.scale

    def _computed(self, operator: Operator) -> bool:
        """Write an operator that computes, if it has a form of int8."""
        output = operator.outputs[0]
        params = self._wanted[output] or self._scaled_alike(operator) or self._averaged(operator)
        if params is None:
            return False
        inputs = self._weighted(operator) if operator.code in WEIGHTED else self._operands(operator)
        if inputs is None:
            return False
        made = params
        if operator.code in FIXED:
            made = FIXED[operator.code]
        elif operator.code in SAME:
            assert inputs[0] is not None
            made = params_of(inputs[0])
            if made.scale > params.scale * _NO_FINER:
                return False
        if operator.code == "AVERAGE_POOL_2D":
            self._averages.add(output)
        self._real[output] = made.tensor(output.shape)
        self._operators.append(Operator(operator.code, tuple(inputs), (self._real[output],), operator.options))
        return True

    def _weighted(self, operator: Operator) -> list[Tensor | None] | None:
        rule = WEIGHTED[operator.code]
        x, weights = self._real.get(_input(operator, rule.x)), weights_of(operator.inputs[1], rule.axis)
        if x is None or weights is None:
            return None
        inputs = list(operator.inputs)
        inputs[rule.x], inputs[1] = x, weights
        bias = inputs[rule.bias] if rule.bias < len(inputs) else None
        if bias is not None:
            inputs[rule.bias] = bias_of(bias, params_of(x), weights)
            if inputs[rule.bias] is None:
                return None
        return inputs

    def _operands(self, operator: Operator) -> list[Tensor | None] | None:
        inputs = list(operator.inputs)
        for at in OPERANDS.get(operator.code, ()):
            x = _input(operator, at)
            corrects = operator.code == "MUL" and any(each in self._averages for each in operator.inputs)
            inputs[at] = constant_operand(x, corrects) if x.data is not None else self._real.get(x)
            if inputs[at] is None:
                return None
        return inputs if operator.code in OPERANDS else None

    def _scaled_alike(self, operator: Operator) -> Params | None:
        """What a product with one positive number has, which only a sum in int8 reads: the same integers."""
        if operator.code != "MUL" or operator.options.get(_FUSED):
            return None
        readers = self._readers[operator.outputs[0]]
        if not all(
            each is not None and each.code in ("ADD", "SUB") and self._wanted[each.outputs[0]] for each in readers
        ):
            return None
        for x, factor in (operator.inputs, operator.inputs[::-1]):
            if x in self._real and factor is not None and factor.data is not None and factor.size == 1:
                assert x is not None
                number, params = _number(factor), params_of(self._real[x])
                return Params(float(np.float32(params.scale * number)), params.zero) if number > 0 else None
        return None

    def _averaged(self, operator: Operator) -> Params | None:
        """What an average over a window with pads has, before it is corrected in int8 for what it counts."""
        source = self._real.get(_input(operator, 0))
        if operator.code != "AVERAGE_POOL_2D" or source is None:
            return None
        readers = self._readers[operator.outputs[0]]
        corrected = all(each is not None and each.code == "MUL" and self._wanted[each.outputs[0]] for each in readers)
        return params_of(source) if corrected else None


def _input(operator: Operator, at: int) -> Tensor:
    found = operator.inputs[at]
    assert found is not None
    return found


def _number(x: Tensor | None) -> float:
    assert x is not None
    assert x.data is not None
    return float(np.asarray(x.data).reshape(()))


def _idle(operator: Operator, params: Params, taken: dict[int, Tensor]) -> bool:
    """Whether an operator that saturates does no more than int8 does anyway."""
    if operator.code not in CLIPS:
        return False
    if operator.code in ("RELU", "RELU6"):
        low, high = params.quantized(np.array([0.0, _RELU6])).tolist()
        return low == LOWEST and (operator.code == "RELU" or high == HIGHEST)
    bound = next((each.data for each in taken.values() if each.data is not None), None)
    x = next((each for each in taken.values() if each.data is None), None)
    if bound is None or x is None or x.shape != operator.outputs[0].shape:
        return False
    return bool(np.all(bound == (LOWEST if operator.code == "MAXIMUM" else HIGHEST)))
