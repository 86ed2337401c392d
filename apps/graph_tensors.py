"""Graph inputs and outputs in the words of a manifest."""

import onnx_ir as ir

from flagsplit.errors import ModelError
from flagsplit.runtime.manifest import Tensor


def tensor_of(value: ir.Value) -> Tensor:
    """An input or output of a graph.

    Raises:
        ModelError: it is no tensor.
    """
    if value.dtype is None or value.shape is None or value.name is None:
        raise ModelError(f"{value.name!r} has no tensor type; only tensors can enter and leave a bundle")
    dtype = "string" if value.dtype == ir.DataType.STRING else value.dtype.numpy().name
    return Tensor(
        name=value.name, dtype=dtype, shape=[dim if isinstance(dim, int) else str(dim.value) for dim in value.shape]
    )
