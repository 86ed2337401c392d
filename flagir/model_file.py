"""Reading a model file that a stranger may have written: everything is checked before it is believed.

External data is mapped, not read, and must lie inside the model's own folder. What comes out is an `onnx_ir.Model`
as the file has it; `flagsplit.flagir.canonical` comes next.
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import onnx_ir as ir

from flagsplit.errors import ModelError
from flagsplit.flagir.types import dims_of

_MAX_PROTO_BYTES = (1 << 31) - 1


def read_model(path: Path) -> ir.Model:
    """Read an ONNX file.

    Args:
        path: an `.onnx` file; its external data lies beside or below it.

    Raises:
        ModelError: the file is missing, not ONNX, truncated, or points outside its folder.
    """
    size_bytes = _size_of(path)
    if size_bytes > _MAX_PROTO_BYTES:
        raise ModelError(
            f"expected a model file of at most 2 GiB, {path} has {size_bytes / 2**30:.1f} GiB; "
            f"save the model with external data"
        )
    try:
        model = ir.load(path)
    except Exception as error:
        raise ModelError(f"expected an ONNX model, {path} is not one: {_first_words(error)}{_hint(path)}") from error
    if not model.opset_imports and len(model.graph) == 0:
        raise ModelError(f"expected an ONNX model, {path} holds no graph{_hint(path)}")
    _check_external(model, path)
    return model


def _size_of(path: Path) -> int:
    if not path.exists():
        raise ModelError(f"no such model file: {path}")
    if not path.is_file():
        raise ModelError(f"expected a model file, {path} is a folder or a device")
    size_bytes = path.stat().st_size
    if size_bytes == 0:
        raise ModelError(f"expected an ONNX model, {path} is empty")
    return size_bytes


def _first_words(error: Exception) -> str:
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return " ".join(str(cause).split())[:160] or type(cause).__name__


def _hint(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(64)
    if head[:2] == b"PK":
        return "; it is a zip archive: a .flagsplit bundle goes to run, inspect or serve, not to build"
    if head[4:8] == b"ORTM":
        return "; it is an ONNX Runtime file: save it as .onnx first"
    if head and all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head):
        return "; it looks like a text file"
    return "; is it complete?"


def _check_external(model: ir.Model, path: Path) -> None:
    folder = path.resolve().parent
    for tensor in _tensors(model):
        if isinstance(tensor, ir.ExternalTensor):
            _check_one_external(tensor, folder)


def _tensors(model: ir.Model) -> Iterator[object]:
    """Every tensor of the file: initializers and attributes, of subgraphs and functions too."""
    functions = list(model.functions.values())
    for graph in (*model.graphs(), *(graph for function in functions for graph in function.subgraphs())):
        yield from (value.const_value for value in graph.initializers.values())
    scopes: list[ir.Graph | ir.Function] = [model.graph, *functions]
    for scope in scopes:
        for node in ir.traversal.RecursiveGraphIterator(scope):
            for attribute in node.attributes.values():
                if attribute.type == ir.AttributeType.TENSOR:
                    yield attribute.value
                elif attribute.type == ir.AttributeType.TENSORS:
                    yield from attribute.value or ()


def _check_one_external(tensor: ir.ExternalTensor, folder: Path) -> None:
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
