"""Gelu and its relatives, and the products with what was fused into them."""

from typing import Any

import numpy as np
import pytest
from tests.flagir.microsoft.vendor import HALF, assert_rewritten, floats, vendor_model
from tests.flagir.models import canonical

from flagsplit.errors import ModelError

TYPES = [(np.float32, 1e-5), (np.float16, HALF)]
ACTIVATIONS: list[tuple[str, list[float]]] = [
    ("Relu", []),
    ("Tanh", []),
    ("Sigmoid", []),
    ("LeakyRelu", [0.1]),
    ("Clip", [-0.5, 0.75]),
    ("HardSigmoid", [0.3, 0.4]),
]


@pytest.mark.parametrize(("dtype", "relative"), TYPES)
@pytest.mark.parametrize("rank", [1, 3])
def test_gelu(dtype: Any, relative: float, rank: int) -> None:
    x = floats(*(2, 3, 16)[-rank:], dtype=dtype) * 3
    assert assert_rewritten("Gelu", [x], relative=relative) == ["Gelu"]
    assert_rewritten("FastGelu", [x], relative=relative)


@pytest.mark.parametrize(("dtype", "relative"), TYPES)
def test_gelu_with_a_bias(dtype: Any, relative: float) -> None:
    x, bias = floats(2, 3, 16, dtype=dtype), floats(16, dtype=dtype, seed=1)
    assert assert_rewritten("FastGelu", [x, bias], constants=[1], relative=relative) == ["Add", "Gelu"]
    if dtype == np.float32:  # the CPU has no other
        assert_rewritten("BiasGelu", [x, bias], relative=relative)


@pytest.mark.parametrize("alpha", [None, 1.0, 1.702, -0.3])
@pytest.mark.parametrize(("dtype", "relative"), TYPES)
def test_quick_gelu(alpha: float | None, dtype: Any, relative: float) -> None:
    attributes: dict[str, Any] = {} if alpha is None else {"alpha": alpha}
    ops = assert_rewritten("QuickGelu", [floats(2, 3, 16, dtype=dtype)], relative=relative, **attributes)
    assert len(ops) == (2 if alpha == 1.0 else 3)


@pytest.mark.parametrize(("name", "parameters"), [("", []), *ACTIVATIONS])
@pytest.mark.parametrize("extras", ["", "bias", "sum", "bias and sum"])
def test_fused_conv(name: str, parameters: list[float], extras: str) -> None:
    attributes: dict[str, Any] = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 1]}
    if name:
        attributes["activation"] = name
    if parameters:
        attributes["activation_params"] = parameters
    bias = floats(4, seed=1) if "bias" in extras else None
    other = floats(2, 4, 4, 8, seed=2) if "sum" in extras else None
    assert_rewritten("FusedConv", [floats(2, 3, 8, 8), floats(4, 3, 3, 3), bias, other], constants=[1, 2], **attributes)


def test_fused_conv_in_one_dimension_and_groups() -> None:
    inputs = [floats(1, 4, 33), floats(6, 2, 5)]
    assert_rewritten("FusedConv", inputs, constants=[1], activation="Tanh", group=2, dilations=[2], pads=[3, 1])
    assert_rewritten("FusedConv", inputs, constants=[1], group=2, auto_pad="SAME_UPPER")


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        *(case for case in ACTIVATIONS if case[0] != "Clip"),
        ("Elu", [0.5]),
        ("ThresholdedRelu", [0.2]),
        ("Softplus", []),
        ("Softsign", []),
    ],
)
def test_fused_gemm(name: str, parameters: list[float]) -> None:
    keys = ("activation_alpha", "activation_beta")
    attributes: dict[str, Any] = dict(zip(keys, parameters, strict=False))
    inputs = [floats(5, 3), floats(4, 5), floats(4, seed=3)]
    assert_rewritten("FusedGemm", inputs, activation=name, transA=1, transB=1, alpha=0.5, beta=2.0, **attributes)
    assert_rewritten("FusedGemm", [floats(3, 5), floats(5, 4)], activation=name, **attributes)


def test_an_activation_without_its_parameters_is_refused() -> None:
    proto, _ = vendor_model("FusedConv", [floats(1, 3, 8, 8), floats(4, 3, 3, 3)], activation="LeakyRelu")
    with pytest.raises(ModelError, match=r"com\.microsoft\.FusedConv 'vendor'.* the activation 'LeakyRelu' with 0"):
        canonical(proto)


@pytest.mark.parametrize("rank", [2, 3, 4])
@pytest.mark.parametrize("trans", range(4))
@pytest.mark.parametrize("alpha", [1.0, 0.25])
def test_fused_matmul(rank: int, trans: int, alpha: float) -> None:
    left, right = floats(2, 2, 3, 5)[(0,) * (4 - rank)], floats(2, 2, 5, 4)[(0,) * (4 - rank)]
    trans_a, trans_b = trans & 1, trans >> 1
    left, right = np.swapaxes(left, -1, -2) if trans_a else left, np.swapaxes(right, -1, -2) if trans_b else right
    inputs = [np.ascontiguousarray(left), np.ascontiguousarray(right)]
    assert_rewritten("FusedMatMul", inputs, transA=trans_a, transB=trans_b, alpha=alpha)


@pytest.mark.parametrize("trans", range(16))
@pytest.mark.parametrize("rank", [3, 4])
def test_fused_matmul_with_the_batch_inside(rank: int, trans: int) -> None:
    batch = (2, 3)[: rank - 2]

    def side(rows: int, columns: int, *, matrix: int, outer: int) -> Any:
        if matrix:
            rows, columns = columns, rows
        return floats(rows, *batch, columns) if outer else floats(*batch, rows, columns)

    keys = ("transA", "transB", "transBatchA", "transBatchB")
    names: dict[str, Any] = {key: trans >> bit & 1 for bit, key in enumerate(keys)}
    left = side(4, 5, matrix=names["transA"], outer=names["transBatchA"])
    right = side(5, 6, matrix=names["transB"], outer=names["transBatchB"])
    assert_rewritten("FusedMatMul", [left, right], **names)


def test_fused_matmul_of_vectors_and_halves() -> None:
    assert_rewritten("FusedMatMul", [floats(5), floats(5, 4)], transA=1)
    assert_rewritten("FusedMatMul", [floats(3, 5), floats(5)], transB=1, alpha=2.0)
    assert_rewritten("TransposeMatMul", [floats(5, 3), floats(5, 4)], transA=1)
