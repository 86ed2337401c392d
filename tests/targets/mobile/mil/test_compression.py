"""Quantized values and compressed weights, as coremltools writes them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.targets.mobile.mil.oracle import close, onnx_op
from tests.targets.mobile.mil.writing import run, weight_bytes


def test_quantize_and_back(tmp_path: Path) -> None:
    x = np.random.default_rng(1).standard_normal((2, 3, 4)).astype(np.float32)
    scale, zero = np.array([0.1, 0.02, 0.5], np.float32), np.array([3, -4, 0], np.int8)

    def build(mb: Any, x: Any) -> Any:
        q = mb.quantize(input=x, scale=scale, zero_point=zero, axis=1, output_dtype="int8")
        u = mb.quantize(input=x, scale=np.float32(0.05), zero_point=np.uint8(120), output_dtype="uint8")
        return (
            mb.cast(x=q, dtype="int32"),
            mb.dequantize(input=q, scale=scale, zero_point=zero, axis=1),
            mb.cast(x=u, dtype="int32"),
            mb.dequantize(input=u, scale=np.float32(0.05), zero_point=np.uint8(120)),
        )

    came = run(tmp_path, build, {"x": x}, ios=17)
    (q,) = onnx_op("QuantizeLinear", x, scale, zero, axis=1)
    (u,) = onnx_op("QuantizeLinear", x, np.array(0.05, np.float32), np.array(120, np.uint8))
    close(came[0], q.astype(np.int32))
    close(came[1], onnx_op("DequantizeLinear", q, scale, zero, axis=1)[0])
    close(came[2], u.astype(np.int32))
    close(came[3], onnx_op("DequantizeLinear", u, np.array(0.05, np.float32), np.array(120, np.uint8))[0])


def _weight(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(2).standard_normal(shape).astype(np.float32)


def test_weights_of_ios_16(tmp_path: Path) -> None:
    x = np.ones((1, 4, 6), np.float32)
    codes = np.random.default_rng(3).integers(0, 255, (4, 6)).astype(np.uint8)
    scale, zero = np.array([0.1, 0.2, 0.3, 0.4], np.float32), np.array([1, 2, 3, 4], np.uint8)
    table = _weight(4)
    indices = np.random.default_rng(4).integers(0, 4, 24).astype(np.uint8)
    packed = np.array([sum(int(v) << 2 * k for k, v in enumerate(indices[at : at + 4])) for at in range(0, 24, 4)])
    mask = np.random.default_rng(5).integers(0, 2, 24).astype(np.uint8)
    values = _weight(int(mask.sum()))
    shape = np.array([4, 6], np.uint32)

    def build(mb: Any, x: Any) -> Any:
        weights = (
            mb.constexpr_affine_dequantize(quantized_data=codes, scale=scale, zero_point=zero, axis=0),
            mb.constexpr_lut_to_dense(indices=packed.astype(np.uint8), lut=table, shape=shape),
            mb.constexpr_sparse_to_dense(nonzero_data=values, mask=np.packbits(mask, bitorder="little"), shape=shape),
            mb.constexpr_cast(source_val=codes.astype(np.float16), output_dtype="fp32"),
        )
        return tuple(mb.mul(x=x, y=weight) for weight in weights)

    came = run(tmp_path, build, {"x": x}, ios=16)
    dense = np.zeros(24, np.float32)
    dense[mask == 1] = values
    expected = [
        scale[:, None] * (codes.astype(np.float32) - zero[:, None]),
        table[indices].reshape(4, 6),
        dense.reshape(4, 6),
        codes.astype(np.float32),
    ]
    for result, wanted in zip(came, expected, strict=True):
        close(result[0], wanted)


@pytest.mark.parametrize("kind", ["int4", "uint4", "int8"])
def test_blocks_of_ios_18(tmp_path: Path, kind: str) -> None:
    low, high = {"int4": (-8, 8), "uint4": (0, 16), "int8": (-128, 128)}[kind]
    codes = np.random.default_rng(6).integers(low, high, (4, 64))
    scale = np.abs(_weight(4, 2)) + np.float32(0.1)
    offset = np.random.default_rng(7).integers(max(low, 0), high, (4, 2))
    x = np.ones((1, 64), np.float32)

    def build(mb: Any, x: Any) -> Any:
        from coremltools.converters.mil.mil import types

        dtype = types.nptype_from_builtin(types.string_to_builtin(kind))
        return mb.linear(
            x=x,
            weight=mb.constexpr_blockwise_shift_scale(
                data=codes.astype(dtype), scale=scale, offset=offset.astype(dtype)
            ),
        )

    (came,) = run(tmp_path, build, {"x": x}, ios=18)
    wide = scale.repeat(32, axis=1) * (codes - offset.repeat(32, axis=1))
    close(came[0], wide.sum(axis=1).astype(np.float32), 1e-4)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8])
def test_tables_of_ios_18(tmp_path: Path, bits: int) -> None:
    """One table for each two rows; elements below a byte are packed in the weight file."""
    indices = np.random.default_rng(8).integers(0, 1 << bits, (4, 8))
    table = _weight(2, 1, 1 << bits, 1)
    x = np.ones((1, 4, 8), np.float32)

    def build(mb: Any, x: Any) -> Any:
        from coremltools.converters.mil.mil import types

        dtype = types.nptype_from_builtin(types.string_to_builtin(f"uint{bits}"))
        return mb.mul(x=x, y=mb.constexpr_lut_to_dense(indices=indices.astype(dtype), lut=table))

    (came,) = run(tmp_path, build, {"x": x}, ios=18)
    rows = [table[row // 2, 0, indices[row], 0] for row in range(4)]
    close(came[0], np.stack(rows))
    assert weight_bytes(tmp_path) > 0


def test_vectors_of_ios_18(tmp_path: Path) -> None:
    """The example of the documentation: each index stands for three elements along axis 1."""
    indices = np.array([[[0, 0], [1, 0]], [[1, 1], [0, 0]]])
    table = np.array([[1, 2, 3], [4, 5, 6]], np.float32).reshape(1, 1, 1, 2, 3)
    x = np.ones((2, 6, 2), np.float32)

    def build(mb: Any, x: Any) -> Any:
        from coremltools.converters.mil.mil import types

        dtype = types.nptype_from_builtin(types.uint1)
        return mb.mul(x=x, y=mb.constexpr_lut_to_dense(indices=indices.astype(dtype), lut=table, vector_axis=1))

    (came,) = run(tmp_path, build, {"x": x}, ios=18)
    wanted = [[[1, 1], [2, 2], [3, 3], [4, 1], [5, 2], [6, 3]], [[4, 4], [5, 5], [6, 6], [1, 1], [2, 2], [3, 3]]]
    close(came, np.array(wanted, np.float32))


def test_sparse_weights_of_ios_18(tmp_path: Path) -> None:
    """The examples of the documentation: sparse values in a table, and sparse values in blocks."""
    mask = np.array([[1, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 1], [0, 1, 1, 0, 1, 0], [0, 0, 0, 1, 0, 0]])
    codes = np.array([0, 1, 1, 0, 1, 1, 0, 0, 1])
    table = np.array([2, 3], np.float32).reshape(1, 1, 2, 1)
    data_mask = np.array([[1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 1, 1], [1, 1, 0, 0]])
    data = np.array([10, 11, 3, 4, 5, 6, 7, 8, 9], np.int8)
    scale = np.array([[0.1, 0.2, 0.3, 0.4]], np.float32)
    offset = np.array([[1, 2, 3, 4]], np.int8)
    x, y = np.ones((4, 6), np.float32), np.ones((4, 4), np.float32)

    def build(mb: Any, x: Any, y: Any) -> Any:
        from coremltools.converters.mil.mil import types

        bit = types.nptype_from_builtin(types.uint1)
        found, values = mb.constexpr_lut_to_sparse(
            indices_mask=mask.astype(bit), indices_nonzero_data=codes.astype(bit), lut=table
        )
        kept, scaled = mb.constexpr_sparse_blockwise_shift_scale(
            data_mask=data_mask.astype(bit), nonzero_data=data, scale=scale, offset=offset
        )
        return (
            mb.mul(x=x, y=mb.constexpr_sparse_to_dense(nonzero_data=values, mask=found)),
            mb.mul(x=y, y=mb.constexpr_sparse_to_dense(nonzero_data=scaled, mask=kept)),
        )

    looked_up, scaled = run(tmp_path, build, {"x": x, "y": y}, ios=18)
    wanted = np.zeros((4, 6), np.float32)
    wanted[mask == 1] = [2, 3, 3, 2, 3, 3, 2, 2, 3]
    close(looked_up, wanted)
    wanted = np.zeros((4, 4), np.float32)
    wanted[data_mask == 1] = [0.9, 1.8, 0.2, 0.4, 0.6, 0.9, 1.2, 0.7, 1.4]
    close(scaled, wanted)
