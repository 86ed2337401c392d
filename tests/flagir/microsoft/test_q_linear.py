"""Operators on quantized tensors. Most are exact; where the engine rounds at another place, one step is allowed."""

from typing import Any

import numpy as np
import pytest
from tests.flagir.microsoft.vendor import assert_rewritten, floats, integers, scalar, vendor_model
from tests.flagir.models import Array, canonical

from flagsplit.errors import ModelError

BYTES = [np.uint8, np.int8]


def parameters(scale: float, zero: int, dtype: Any, *, with_zero: bool = True) -> list[Array | None]:
    return [scalar(scale), scalar(zero, dtype) if with_zero else None]


@pytest.mark.parametrize("dtype", BYTES)
@pytest.mark.parametrize("op", ["QLinearAdd", "QLinearMul"])
@pytest.mark.parametrize("shape", [(2, 3, 4), (4,), ()])
def test_binary(op: str, dtype: Any, shape: tuple[int, ...]) -> None:
    inputs = [
        integers(2, 3, 4, dtype=dtype),
        *parameters(0.1, 20, dtype),
        integers(*shape, dtype=dtype, seed=1),
        *parameters(0.05, 10, dtype),
        *parameters(0.3, 40, dtype),
    ]
    ops = assert_rewritten(op, inputs, constants=[1, 2, 4, 5, 6, 7], quanta=1)
    assert ops == ["DequantizeLinear", "DequantizeLinear", op.removeprefix("QLinear"), "QuantizeLinear"]


def test_scales_of_one_element_count_as_scalars() -> None:
    one: list[Array | None] = [np.array([0.1], np.float32), np.array([20], np.uint8)]
    inputs: list[Array | None] = [integers(2, 3), *one, *one]
    assert_rewritten("QLinearLeakyRelu", inputs, quanta=1)
    assert_rewritten("QLinearSigmoid", inputs, quanta=1, constants=[1, 2, 3, 4])
    assert_rewritten("DequantizeLinear", inputs[:3], axis=1)


@pytest.mark.parametrize("dtype", BYTES)
@pytest.mark.parametrize("op", ["QLinearSigmoid", "QLinearLeakyRelu"])
@pytest.mark.parametrize("with_zero", [True, False])
def test_unary(op: str, dtype: Any, with_zero: bool) -> None:
    x = integers(2, 3, 40, dtype=dtype)
    inputs = [x, *parameters(0.05, 11, dtype, with_zero=with_zero), *parameters(1 / 100, 3, dtype, with_zero=with_zero)]
    attributes = {"alpha": 0.2} if op == "QLinearLeakyRelu" else {}
    assert_rewritten(op, inputs, constants=[1, 2, 3, 4], quanta=1, **attributes)


@pytest.mark.parametrize("dtype", BYTES)
@pytest.mark.parametrize(("opset", "axis"), [(13, -1), (13, 1), (12, 2)])
def test_softmax(dtype: Any, opset: int, axis: int) -> None:
    inputs = [integers(2, 3, 4, dtype=dtype), *parameters(0.05, 11, dtype), *parameters(1 / 256, 0, dtype)]
    assert_rewritten("QLinearSoftmax", inputs, constants=[1, 2, 3, 4], quanta=1, opset_=opset, axis=axis)


def test_softmax_over_several_axes_is_refused() -> None:
    inputs = [integers(2, 3, 4), *parameters(0.05, 11, np.uint8), *parameters(1 / 256, 0, np.uint8)]
    proto, _ = vendor_model("QLinearSoftmax", inputs, opset_=12, axis=1)
    with pytest.raises(ModelError, match="meaning of opset 12 and axis 1"):
        canonical(proto)


@pytest.mark.parametrize("dtype", BYTES)
def test_where(dtype: Any) -> None:
    inputs = [
        integers(2, 3, 4, low=0, high=2).astype(bool),
        integers(2, 3, 4, dtype=dtype),
        *parameters(0.1, 20, dtype),
        integers(2, 3, 4, dtype=dtype, seed=1),
        *parameters(0.05, 10, dtype),
        *parameters(0.3, 40, dtype),
    ]
    assert_rewritten("QLinearWhere", inputs, constants=[2, 3, 5, 6, 7, 8], quanta=1)


@pytest.mark.parametrize("dtype", BYTES)
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_concat(dtype: Any, axis: int) -> None:
    inputs = parameters(0.1, 5, dtype)
    for seed in range(3):
        inputs += [integers(2, 3, 4, dtype=dtype, seed=seed), *parameters(0.1 + seed / 30, seed, dtype)]
    assert_rewritten("QLinearConcat", inputs, constants=[0, 1, 3, 4, 6, 7, 9, 10], quanta=1, axis=axis)


@pytest.mark.parametrize("dtype", BYTES)
@pytest.mark.parametrize("last", [0, 1])
@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"strides": [2, 2], "pads": [1, 1, 1, 1]},
        {"pads": [1, 0, 1, 1], "count_include_pad": 1},
        {"strides": [2, 2], "ceil_mode": 1},
    ],
)
def test_average_pool(dtype: Any, last: int, attributes: dict[str, Any]) -> None:
    x = integers(2, 7, 6, 4, dtype=dtype) if last else integers(2, 4, 7, 6, dtype=dtype)
    inputs = [x, *parameters(0.1, 5, dtype), *parameters(0.07, 9, dtype)]
    more = {"kernel_shape": [3, 2], "channels_last": last, **attributes}
    assert_rewritten("QLinearAveragePool", inputs, constants=[1, 2, 3, 4], quanta=1, **more)


@pytest.mark.parametrize("dtype", BYTES)
@pytest.mark.parametrize("last", [0, 1])
def test_global_average_pool(dtype: Any, last: int) -> None:
    inputs = [integers(2, 4, 5, 6, dtype=dtype), *parameters(0.1, 5, dtype), *parameters(0.07, 9, dtype)]
    assert_rewritten("QLinearGlobalAveragePool", inputs, constants=[1, 2, 3, 4], quanta=1, channels_last=last)


@pytest.mark.parametrize("dtype", BYTES)
def test_max_pool_with_channels_last(dtype: Any) -> None:
    x = integers(2, 7, 6, 4, dtype=dtype)
    ops = assert_rewritten("NhwcMaxPool", [x], kernel_shape=[3, 2], strides=[2, 1], pads=[1, 1, 1, 1])
    assert ops == ["Transpose", "MaxPool", "Transpose"]


@pytest.mark.parametrize("dtype", BYTES)
@pytest.mark.parametrize("last", [0, 1])
@pytest.mark.parametrize("group", [1, 2])
def test_conv(dtype: Any, last: int, group: int) -> None:
    x = integers(2, 7, 6, 4, dtype=dtype) if last else integers(2, 4, 7, 6, dtype=dtype)
    weights, bias = integers(6, 4 // group, 3, 3, dtype=np.int8), integers(6, dtype=np.int32, low=-500, high=500)
    inputs = [
        x,
        *parameters(0.1, 5, dtype),
        weights,
        scalar(0.02),
        scalar(0, np.int8),
        *parameters(3.0, 9, dtype),
        bias,
    ]
    more: dict[str, Any] = {"channels_last": last, "group": group, "pads": [1, 1, 1, 1]}
    assert_rewritten("QLinearConv", inputs, constants=[1, 2, 3, 4, 5, 6, 7, 8], **more)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16])
@pytest.mark.parametrize("axis", [None, 1])
def test_quantize_and_dequantize(dtype: Any, axis: int | None) -> None:
    count = () if axis is None else (3,)
    attributes: dict[str, Any] = {} if axis is None else {"axis": axis}
    scale = np.abs(floats(*count, seed=1)) / 10 + np.float32(0.05)
    zero = integers(*count, dtype=dtype, seed=2, low=0, high=50)
    assert_rewritten("QuantizeLinear", [floats(2, 3, 4), scale, zero], constants=[1, 2], **attributes)
    assert_rewritten("DequantizeLinear", [integers(2, 3, 4, dtype=dtype), scale, zero], constants=[1, 2], **attributes)
    assert_rewritten("DequantizeLinear", [integers(2, 3, 4, dtype=dtype), scale], constants=[1], **attributes)
