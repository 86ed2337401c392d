"""Reading a model file that a stranger may have written: everything is checked before it is believed.

External data is mapped, not read, and must lie inside the model's own folder. What comes out is an `onnx_ir.Model`
as the file has it; `flagsplit.flagir.canonical` comes next.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx_ir as ir

from flagsplit.errors import ModelError
from flagsplit.flagir.frontends.ort_file import is_ort_file, read_ort
from flagsplit.flagir.limits import check_limits
from flagsplit.flagir.tensor_data import check_tensor
from flagsplit.flagir.version import check_version

_MAX_PROTO_BYTES = (1 << 31) - 1


def read_model(path: Path, weights_folder: Path | None = None) -> ir.Model:
    """Read an ONNX file, or one of ONNX Runtime's own, which its first bytes tell.

    Args:
        path: an `.onnx` file, whose external data lies beside or below it, or an `.ort` file.
        weights_folder: where the external data lies instead.

    Raises:
        ModelError: the file is missing, neither of the two, truncated, of a newer FlagIR version, or points outside
            its folder.
    """
    _size_of(path)
    return read_ort(path, _read_onnx) if is_ort_file(_head(path)) else _read_onnx(path, weights_folder)


def _read_onnx(path: Path, weights_folder: Path | None = None) -> ir.Model:
    size_bytes = _size_of(path)
    if size_bytes > _MAX_PROTO_BYTES:
        raise ModelError(
            f"expected a model file of at most 2 GiB, {path} has {size_bytes / 2**30:.1f} GiB; "
            f"save the model with external data"
        )
    check_limits(path)
    try:
        with _quiet():
            model = ir.load(path)
    except Exception as error:
        if "Map types" in _first_words(error):
            raise ModelError(
                f"{path} has maps, as ZipMap makes them, and only tensors are taken; convert it without them "
                f"(skl2onnx: options={{'zipmap': False}})"
            ) from error
        raise ModelError(f"expected an ONNX model, {path} is not one: {_first_words(error)}{_hint(path)}") from error
    if not model.opset_imports and len(model.graph) == 0:
        raise ModelError(f"expected an ONNX model, {path} holds no graph{_hint(path)}")
    _check_names(model)
    _check_reads(model)
    check_version(model)
    if weights_folder is not None:
        for tensor in _tensors(model):
            if isinstance(tensor, ir.ExternalTensor):
                tensor.base_dir = weights_folder
    _check_tensors(model, weights_folder or path.resolve().parent)
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


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(64)


def _hint(path: Path) -> str:
    head = _head(path)
    if head[:2] == b"PK":
        return "; it is a zip archive: a .flagsplit bundle goes to run, inspect or serve, not to build"
    if head and all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head):
        return "; it looks like a text file"
    return "; is it complete?"


def _check_names(model: ir.Model) -> None:
    """A name that is no UTF-8 comes out of the parser as bytes, which nothing expects."""
    for name in _names(model):
        if isinstance(name, bytes):
            raise ModelError(f"expected the names of the model to be UTF-8, came {name[:40]!r}; the model is damaged")


def _names(model: ir.Model) -> Iterator[object]:
    scopes: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    yield from (part for scope in scopes for pair in scope.metadata_props.items() for part in pair)
    yield from (part for pair in model.metadata_props.items() for part in pair)
    yield from (name for scope in (model, *scopes) for name in scope.opset_imports)
    for scope in scopes:
        yield scope.name
        graphs = (scope, *scope.subgraphs())
        yield from (name for graph in graphs if isinstance(graph, ir.Graph) for name in graph.initializers)
        yield from (value.name for graph in graphs for value in graph.inputs)
        for node in ir.traversal.RecursiveGraphIterator(scope):
            yield from (node.name, node.op_type, node.domain, node.overload)
            yield from (value.name for value in (*node.inputs, *node.outputs) if value is not None)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's warnings: what they are about is checked afterwards, and then said."""
    log = logging.getLogger("onnx_ir")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def _check_reads(model: ir.Model) -> None:
    """Every value that is read or returned must come from somewhere; the library makes up those that do not."""
    scopes: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for scope in scopes:
        graphs = (scope, *scope.subgraphs())
        known = {value for graph in graphs for value in graph.inputs}
        known.update(value for graph in graphs if isinstance(graph, ir.Graph) for value in graph.initializers.values())
        for node in ir.traversal.RecursiveGraphIterator(scope):
            for value in node.inputs:
                if value is not None and value.producer() is None and value not in known:
                    who = f"node {node.name!r} ({node.op_type})" if node.name else f"a node ({node.op_type})"
                    raise ModelError(f"{who} reads {value.name!r}, which nothing makes; the model is damaged")
        for graph in graphs:
            for value in graph.outputs:
                if value.producer() is None and value not in known:
                    raise ModelError(
                        f"graph {graph.name!r} returns {value.name!r}, which it does not make; the model is damaged"
                    )


def _check_tensors(model: ir.Model, folder: Path) -> None:
    for tensor in _tensors(model):
        check_tensor(tensor, folder.resolve())


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
