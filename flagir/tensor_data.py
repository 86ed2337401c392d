"""Is a tensor of a file what it says? Its data must have the length of its shape and dtype, and lie inside."""

from pathlib import Path, PurePosixPath

import onnx_ir as ir

from flagsplit.errors import ModelError
from flagsplit.flagir.types import dims_of

_FIELDS = {
    ir.DataType.FLOAT: "float_data",
    ir.DataType.COMPLEX64: "float_data",
    ir.DataType.DOUBLE: "double_data",
    ir.DataType.COMPLEX128: "double_data",
    ir.DataType.INT64: "int64_data",
    ir.DataType.UINT32: "uint64_data",
    ir.DataType.UINT64: "uint64_data",
}
"""Where a tensor without raw data has it; all other types but strings lie in `int32_data`."""
_PAIRS = frozenset((ir.DataType.COMPLEX64, ir.DataType.COMPLEX128))


def check_tensor(tensor: object, folder: Path) -> None:
    """Check a tensor of a file that a stranger may have written.

    Args:
        tensor: an initializer's or an attribute's; other kinds than the two that files have are taken as they are.
        folder: the model's own, resolved.

    Raises:
        ModelError: the data is not that of the shape, or lies outside of `folder`.
    """
    try:
        if isinstance(tensor, ir.ExternalTensor):
            _check_external(tensor, folder)
        elif isinstance(tensor, ir.TensorProtoTensor):
            _check_inside(tensor)
        elif isinstance(tensor, ir.StringTensor) and len(tensor.raw) != tensor.size:
            raise ModelError(f"tensor {tensor.name!r} expects {tensor.size} strings, came {len(tensor.raw)}; damaged")
    except ValueError as error:  # a number that is no dtype
        raise ModelError(f"a tensor of the model is damaged: {error}") from error


def _check_inside(tensor: ir.TensorProtoTensor) -> None:
    dims, proto = dims_of(tensor), tensor.raw
    if tensor.dtype == ir.DataType.UNDEFINED or any(dim < 0 for dim in dims) or len(dims) != len(tensor.shape):
        raise ModelError(f"tensor {tensor.name!r} has no dtype or shape; the model is damaged")
    if proto.HasField("raw_data"):
        have, want = len(proto.raw_data), tensor.nbytes
    else:
        field = _FIELDS.get(tensor.dtype, "int32_data")
        have, want = len(getattr(proto, field)), tensor.size
        if tensor.dtype in _PAIRS:
            want *= 2
        elif tensor.dtype.bitwidth < 8:  # packed, a byte in each element of the field
            want = tensor.nbytes
        if any(len(getattr(proto, other)) for other in {"int32_data", *_FIELDS.values()} - {field}):
            raise ModelError(f"tensor {tensor.name!r} has data of another element type; the model is damaged")
    if have != want:
        raise ModelError(
            f"tensor {tensor.name!r} expects the data of {list(dims)} {tensor.dtype.name}, came "
            f"{have} {'bytes' if proto.HasField('raw_data') else 'elements'}; the model is damaged"
        )


def _check_external(tensor: ir.ExternalTensor, folder: Path) -> None:
    if tensor.dtype in (ir.DataType.UNDEFINED, ir.DataType.STRING) or any(dim < 0 for dim in dims_of(tensor)):
        raise ModelError(f"tensor {tensor.name!r} has no dtype or shape that can lie outside the model; damaged")
    location = str(tensor.location)
    parts = PurePosixPath(location)
    if parts.is_absolute() or ".." in parts.parts or not location:
        raise ModelError(f"tensor {tensor.name!r} lies at {location!r}, outside the model's folder; refused")
    try:
        target = (folder / location).resolve()
        is_there = target.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # a zero byte, a name too long, links in a circle
        raise ModelError(f"tensor {tensor.name!r} lies at {location[:80]!r}, which no file can be: {error}") from error
    if not target.is_relative_to(folder):
        raise ModelError(f"tensor {tensor.name!r} lies at {location!r}, a link out of the model's folder; refused")
    if not is_there:
        raise ModelError(f"tensor {tensor.name!r} expects its data in {location!r}, which is not there; copy it too")
    end = (tensor.offset or 0) + (tensor.length if tensor.length is not None else tensor.nbytes)
    if end > target.stat().st_size or (tensor.offset or 0) < 0:
        raise ModelError(
            f"tensor {tensor.name!r} expects {end} bytes in {location!r}, the file has {target.stat().st_size}; "
            f"it is truncated"
        )
    if tensor.length is not None and tensor.length != tensor.nbytes:
        raise ModelError(
            f"tensor {tensor.name!r} declares {tensor.nbytes} bytes by shape and {tensor.length} by length; damaged"
        )
