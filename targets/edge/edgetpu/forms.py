"""Operators of int8 that the Edge TPU lacks, written in those that it has.

Hard-swish is x * (relu6(x + 3) / 6), a leaky relu the larger of x and its share, and a dense layer a convolution of one
pixel: that takes rows as pixels, and a scale for each output channel, which FULLY_CONNECTED got after Coral's compiler.
A picture that is flattened in ONNX's order before a dense layer is flattened as it lies, its weights in that order.
Channels that are picked or shuffled come from a convolution with ones, and the lowest number that is padded before a
maximum is 0 where nothing is lower.
"""

import numpy as np

from flagsplit.targets.chip_parts import ChipPart
from flagsplit.targets.tflite.int8_rules import HIGHEST, LOWEST, Params, params_of
from flagsplit.targets.tflite.layout import numbers, permutation_of, used_operators
from flagsplit.targets.tflite.passes import program_of
from flagsplit.targets.tflite.program import Operator, Program, Tensor, nchw

_TRANSPOSE = 1 << 22
"""What a transpose costs beside its elements: as much as can be, since few are mapped."""

_RELU, _RELU6 = 1, 3
_VALID = 1
_CLIPPED = Params(float(np.float32(6 / (HIGHEST - LOWEST))), LOWEST)
_GATE = Params(float(np.float32(1 / (HIGHEST - LOWEST))), LOWEST)


def lowered(part: ChipPart) -> Program:
    """The program of a chip part in operators that the Edge TPU has, as far as there are such forms.

    Raises:
        ModelError: a node cannot be lowered; the message names it and says why.
    """
    return with_forms(program_of(part, _TRANSPOSE))


def with_forms(program: Program) -> Program:
    """The same program in operators that the Edge TPU has, where there is such a form."""
    operators = [made for each in _flattened(program) for made in _form(each)]
    operators = _padded_with_zero(operators)
    return Program(program.inputs, program.outputs, used_operators(operators, program.outputs))


def _flattened(program: Program) -> list[Operator]:
    makers = {output: operator for operator in program.operators for output in operator.outputs}
    return [made for each in program.operators for made in _as_it_lies(each, makers)]


def _as_it_lies(dense: Operator, makers: dict[Tensor, Operator]) -> list[Operator]:
    """A dense layer of a picture with channels last, for one that was transposed and flattened."""
    if dense.code != "FULLY_CONNECTED":
        return [dense]
    row, weights = dense.inputs[:2]
    flat = makers.get(row) if row is not None else None
    turned = makers.get(flat.inputs[0]) if flat is not None and flat.code == "RESHAPE" and flat.inputs[0] else None
    if row is None or weights is None or weights.data is None or turned is None or turned.inputs[0] is None:
        return [dense]
    picture = turned.outputs[0].shape
    if permutation_of(turned) != nchw(4) or row.shape != (1, row.size) or picture[0] != 1:
        return [dense]
    data = weights.data.reshape(-1, *picture[1:]).transpose(0, 2, 3, 1).reshape(weights.shape)
    kernel = Tensor(weights.shape, weights.dtype, data, weights.scales, weights.axis, weights.zero)
    last = turned.inputs[0].shaped(row.shape)
    made = Operator(dense.code, (last, kernel, *dense.inputs[2:]), dense.outputs, dense.options)
    return [_reshaped(turned.inputs[0], last), made]


def _form(operator: Operator) -> list[Operator]:
    first, output = operator.inputs[0], operator.outputs[0]
    if first is None or first.dtype != "int8" or output.dtype != "int8":
        return [operator]
    if operator.code == "HARD_SWISH":
        return _hard_swish(first, output)
    if operator.code == "LEAKY_RELU" and 0 <= operator.options["alpha"] <= 1:
        return _leaky(first, output, operator.options["alpha"])
    if operator.code == "GATHER" and (picked := _picked(operator, first, output)) is not None:
        return [picked]
    weights = operator.inputs[1] if operator.code == "FULLY_CONNECTED" else None
    if weights is not None and weights.data is not None and first.data is None:
        return _pixels(operator, first, weights)
    return [operator]


def _picked(gather: Operator, x: Tensor, y: Tensor) -> Operator | None:
    """Channels as a convolution makes them of others, exactly: each weight is 127 times 1/127."""
    places = gather.inputs[1]
    axis, channels = gather.options["axis"], x.shape[-1]
    if places is None or places.data is None or places.rank != 1 or x.rank != 4 or axis % 4 != 3:
        return None
    count = places.size
    kernel = np.zeros((count, 1, 1, channels), np.int8)
    kernel[np.arange(count), 0, 0, np.asarray(places.data, np.int64)] = HIGHEST
    scales = np.full(count, 1 / HIGHEST, np.float32)
    return _pixelwise(x, Tensor(kernel.shape, "int8", kernel, scales, 0), None, y, 0)


def _padded_with_zero(operators: list[Operator]) -> list[Operator]:
    makers = {output: operator for operator in operators for output in operator.outputs}
    made = []
    for each in operators:
        x, value = each.inputs[0], each.inputs[2] if each.code == "PADV2" else None
        lowest = value is not None and value.data is not None and int(value.data.reshape(())) <= each.outputs[0].zero
        if x is not None and lowest and _not_negative(x, makers):
            made.append(Operator("PAD", each.inputs[:2], each.outputs))
        else:
            made.append(each)
    return made


def _not_negative(x: Tensor, makers: dict[Tensor, Operator]) -> bool:
    """Whether no element is below the integer that stands for 0."""
    maker = makers.get(x)
    if maker is None or maker.inputs[0] is None:
        return False
    if maker.options.get("fusedActivationFunction") in (_RELU, _RELU6) or maker.code in ("RELU", "RELU6"):
        return True
    return maker.code in ("MAX_POOL_2D", "RESHAPE", "TRANSPOSE", "PAD") and _not_negative(maker.inputs[0], makers)


def _hard_swish(x: Tensor, y: Tensor) -> list[Operator]:
    clipped, gate = _CLIPPED.tensor(x.shape), _GATE.tensor(x.shape)
    return [
        Operator("ADD", (x, _number(3.0)), (clipped,), {"fusedActivationFunction": _RELU6}),
        Operator("MUL", (clipped, _number(1 / 6)), (gate,)),
        Operator("MUL", (x, gate), (y,)),
    ]


def _leaky(x: Tensor, y: Tensor, share: float) -> list[Operator]:
    same, below = y.shaped(y.shape), y.shaped(y.shape)
    again = [] if params_of(x) == params_of(y) else [Operator("QUANTIZE", (x,), (same,))]
    return [
        *again,
        Operator("MUL", (x, _number(share)), (below,)),
        Operator("MAXIMUM", (same if again else x, below), (y,)),
    ]


def _pixels(operator: Operator, x: Tensor, weights: Tensor) -> list[Operator]:
    channels, out = weights.shape[1], weights.shape[0]
    rows = x.size // channels
    assert weights.data is not None
    kernel = Tensor((out, 1, 1, channels), "int8", weights.data.reshape(out, 1, 1, channels), weights.scales, 0)
    picture, made = x.shaped((1, 1, rows, channels)), operator.outputs[0].shaped((1, 1, rows, out))
    bias = operator.inputs[2] if len(operator.inputs) > 2 else None
    activation = operator.options.get("fusedActivationFunction", 0)
    return [
        _reshaped(x, picture),
        _pixelwise(picture, kernel, bias, made, activation),
        _reshaped(made, operator.outputs[0]),
    ]


def _pixelwise(x: Tensor, kernel: Tensor, bias: Tensor | None, y: Tensor, activation: int) -> Operator:
    """A convolution of one pixel."""
    if bias is None:
        scales = np.asarray(kernel.scales, np.float32) * np.float32(params_of(x).scale)
        bias = Tensor((kernel.shape[0],), "int32", np.zeros(kernel.shape[0], np.int32), scales, 0)
    options = {
        "padding": _VALID,
        "strideH": 1,
        "strideW": 1,
        "dilationHFactor": 1,
        "dilationWFactor": 1,
        "fusedActivationFunction": activation,
    }
    return Operator("CONV_2D", (x, kernel, bias), (y,), options)


def _reshaped(x: Tensor, y: Tensor) -> Operator:
    return Operator("RESHAPE", (x, numbers(y.shape)), (y,), {"newShape": list(y.shape)})


def _number(value: float) -> Tensor:
    params = Params(float(np.float32(abs(value) / HIGHEST)) if value else 1.0, 0)
    return params.tensor((), params.quantized(np.array(value)))
