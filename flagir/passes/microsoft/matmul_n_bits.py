"""MatMulNBits: weights of 4 or 8 bits in blocks, each with a scale, which the standard writes as DequantizeLinear."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from flagsplit.flagir.passes.microsoft.site import Site

_DTYPES = {4: ir.DataType.UINT4, 8: ir.DataType.UINT8}


def matmul_n_bits(site: Site) -> Sequence[ir.Value | None]:
    """Inputs: A, B `[N, blocks, bytes]`, scales, zero points, order of the rows, bias."""
    bits, block = site.attr_int("bits", 4), site.attr_int("block_size", 0)
    rows, columns = site.attr_int("N", 0), site.attr_int("K", 0)
    dtype = _DTYPES.get(bits)
    if (
        dtype is None
        or block < 1
        or columns % block
        or site.input(4) is not None
        or site.attr_int("weight_prepacked", 0)
    ):
        site.refuse(
            f"{bits} bits, blocks of {block} for {columns} columns, or an order of its own",
            "expected 4 or 8 bits and whole blocks in order; quantize the original model again",
        )
    blocks = columns // block
    weights = _bytes(site, site.need(1)).reshape(rows, -1)
    zeros = site.input(3)
    if zeros is None:
        offsets = np.full((rows, blocks), 1 << (bits - 1), np.uint8)
    else:
        offsets = _unpacked(_bytes(site, zeros).reshape(rows, -1), bits)[:, :blocks]
    scales = site.op("Reshape", site.need(2), site.constant([rows, blocks]))
    matrix = site.op(
        "DequantizeLinear",
        site.tensor(_packed(weights, dtype, (rows, columns))),
        scales,
        site.tensor(ir.Tensor(offsets.astype(dtype.numpy()), dtype)),
        axis=1,
        block_size=block,
    )
    value = site.op("MatMul", site.need(0), site.transpose(matrix, 1, 0))
    bias = site.input(5)
    return [value if bias is None else site.op("Add", value, bias)]


def _bytes(site: Site, value: ir.Value) -> npt.NDArray[np.uint8]:
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is None or tensor.dtype != ir.DataType.UINT8:
        site.refuse(f"{value.name!r} not as constant bytes", "quantize the original model again")
    return np.asarray(tensor.numpy())


def _packed(data: npt.NDArray[np.uint8], dtype: ir.DataType, shape: tuple[int, int]) -> ir.TensorProtocol:
    """Both formats put the earlier number into the lower half of a byte."""
    if dtype == ir.DataType.UINT8:
        return ir.Tensor(data.reshape(shape), dtype)
    return ir.PackedTensor(data.reshape(-1), dtype, shape=ir.Shape(shape))


def _unpacked(data: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint8]:
    if bits == 8:
        return data
    return np.stack([data & 15, data >> 4], axis=-1).reshape(len(data), -1)
