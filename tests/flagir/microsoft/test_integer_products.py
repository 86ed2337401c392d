"""Products of quantized matrices. Integers are exact; what is left is the order in which floats are multiplied."""

from typing import Any

import numpy as np
import pytest
from tests.flagir.microsoft.vendor import assert_rewritten, floats, integers, scalar, vendor_model
from tests.flagir.models import Array, canonical, parse

from flagsplit.errors import ModelError


@pytest.mark.parametrize(("left", "right"), [(np.uint8, np.int8), (np.uint8, np.uint8), (np.int8, np.int8)])
@pytest.mark.parametrize("optional", ["", "zeros", "bias", "zeros, bias"])
@pytest.mark.parametrize("per_column", [False, True])
def test_matmul_integer_to_float(left: Any, right: Any, optional: str, per_column: bool) -> None:
    scale = np.abs(floats(6, seed=1)) / 50 if per_column else scalar(0.02)
    zeros: list[Array | None] = [None, None]
    if "zeros" in optional:
        zeros = [scalar(3, left), integers(6, dtype=right, seed=3) if per_column else scalar(-5 % 100, right)]
    bias = floats(6, seed=2) if "bias" in optional else None
    inputs = [integers(2, 3, 5, dtype=left), integers(5, 6, dtype=right), scalar(0.1), scale, *zeros, bias]
    ops = assert_rewritten("MatMulIntegerToFloat", inputs, constants=[1, 3, 5, 6])
    assert ops[:2] == ["MatMulInteger", "Cast"] or ops[0] == "Mul"


@pytest.mark.parametrize("right", [np.int8, np.uint8])
@pytest.mark.parametrize("optional", ["", "zeros", "bias", "zeros, bias"])
@pytest.mark.parametrize("per_column", [False, True])
@pytest.mark.parametrize("constants", [(), (1, 2, 3, 4)])
def test_dynamic_quantize_matmul(right: Any, optional: str, per_column: bool, constants: tuple[int, ...]) -> None:
    scale = np.abs(floats(6, seed=1)) / 50 if per_column else scalar(0.02)
    zero = None
    if "zeros" in optional:
        zero = integers(6, dtype=right, seed=3) if per_column else scalar(7, right)
    bias = floats(6, seed=2) if "bias" in optional else None
    inputs = [floats(2, 3, 5), integers(5, 6, dtype=right), scale, zero, bias]
    assert_rewritten("DynamicQuantizeMatMul", inputs, constants=constants)


def test_a_tensor_is_quantized_once_for_all_its_products() -> None:
    proto = parse(
        """g (float[N, 4] x) => (float[N, 2] y, float[N, 2] z)
            <int8[4, 2] w = {1, 2, 3, 4, 5, 6, 7, 8}, float s = {1}> {
            y = com.microsoft.DynamicQuantizeMatMul(x, w, s) z = com.microsoft.DynamicQuantizeMatMul(x, w, s) }""",
        imports=', "com.microsoft" : 1',
    )
    assert [node.op_type for node in canonical(proto).graph].count("DynamicQuantizeLinear") == 1


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("blocks", [1, 2, 3])
@pytest.mark.parametrize("optional", ["", "zeros", "bias", "zeros, bias"])
def test_matmul_n_bits(bits: int, blocks: int, optional: str) -> None:
    rows, block = 6, 16
    weights = integers(rows, blocks, block * bits // 8)
    zeros = integers(rows, -(-blocks * bits // 8), seed=1) if "zeros" in optional else None
    bias = floats(rows, seed=2) if "bias" in optional else None
    scales = np.abs(floats(rows, blocks, seed=3)) / 10
    ops = assert_rewritten(
        "MatMulNBits",
        [floats(2, 3, blocks * block), weights, scales, zeros, None, bias],
        constants=[1, 2, 3, 5],
        bits=bits,
        block_size=block,
        N=rows,
        K=blocks * block,
        accuracy_level=1,
        open_dims=False,
    )
    assert ops[0] == "DequantizeLinear"


def test_matmul_n_bits_of_broken_blocks_is_refused() -> None:
    inputs = [floats(2, 20), integers(6, 2, 8), floats(6, 2)]
    proto, _ = vendor_model("MatMulNBits", inputs, constants=[1, 2], bits=4, block_size=16, N=6, K=20)
    with pytest.raises(ModelError, match=r"MatMulNBits 'vendor'.*blocks of 16 for 20 columns"):
        canonical(proto)


@pytest.mark.parametrize("trans", range(4))
@pytest.mark.parametrize("per_column", [False, True])
@pytest.mark.parametrize("optional", ["", "bias", "result", "bias, result"])
def test_q_gemm(trans: int, per_column: bool, optional: str) -> None:
    """One step of the result apart at most: the engine sums integers, the standard form rounds floats."""
    left, right = integers(3, 5), integers(5, 6, dtype=np.int8)
    scale = np.abs(floats(6, seed=1)) / 50 if per_column else scalar(0.02)
    zero = np.zeros(6, np.int8) if per_column else scalar(2, np.int8)
    result = [scalar(0.5), scalar(120, np.uint8)] if "result" in optional else [None, None]
    inputs = [
        np.ascontiguousarray(left.T) if trans & 1 else left,
        scalar(0.1),
        scalar(100, np.uint8),
        np.ascontiguousarray(right.T) if trans & 2 else right,
        scale,
        zero,
        integers(6, dtype=np.int32, low=-500, high=500) if "bias" in optional else None,
        *result,
    ]
    names = {"transA": trans & 1, "transB": trans >> 1, "alpha": 0.75}
    assert_rewritten("QGemm", inputs, constants=[3, 4, 5, 6], quanta=int("result" in optional), **names)
