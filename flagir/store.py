"""A FlagIR model on disk: `model.onnx` and, beside it, `weights.bin` with every tensor that is worth mapping.

Equal tensors are stored once, in the order in which the graph reads them, aligned for mapping. Writing streams: a
weight that was mapped, or that is one element repeated, is never in memory as a whole.
"""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx_ir as ir

from flagsplit.flagir.model_file import read_model
from flagsplit.flagir.reads import weights_read
from flagsplit.flagir.types import dims_of

MODEL_NAME = "model.onnx"
WEIGHTS_NAME = "weights.bin"
INLINE_BYTES = 256
"""Tensors up to this size stay in the model: shapes and scalars, which tools want to see."""

_CHUNK_BYTES = 4 << 20
_ALIGN_BYTES = 64
_PAGE_BYTES = 4096
_LARGE_BYTES = 1 << 20


def save(model: ir.Model, folder: Path) -> None:
    """Write a model; afterwards its initializers are mapped from the file written.

    Args:
        model: a canonical model; its large initializers are replaced by mapped ones.
        folder: exists and is empty.
    """
    save_all({MODEL_NAME: model}, folder)


def save_all(models: Mapping[str, ir.Model], folder: Path) -> None:
    """Write several models that share one file of weights, each equal tensor once; see `save`.

    Args:
        models: canonical models by the names of their files; the initializers of each are mapped afterwards.
        folder: exists and is empty.
    """
    written: dict[bytes, int] = {}
    with (folder / WEIGHTS_NAME).open("wb") as file:
        for model in models.values():
            _write_weights(model, file, folder, written)
    for name, model in models.items():
        (folder / name).write_bytes(to_bytes(model))


def load(folder: Path) -> ir.Model:
    """Read what `save` wrote; weights stay on disk until used.

    Raises:
        ModelError: a file is missing or damaged.
    """
    return read_model(folder / MODEL_NAME)


def to_bytes(model: ir.Model) -> bytes:
    """The model's protobuf, the same bytes for the same model; mapped weights are referred to, not included."""
    return bytes(ir.to_proto(model).SerializeToString(deterministic=True))


def weights_bytes(model: ir.Model) -> int:
    """Bytes of all initializers, tensors that are stored once counted once."""
    external = {
        (tensor.path, tensor.offset, tensor.nbytes): tensor.nbytes
        for value in model.graph.initializers.values()
        if isinstance(tensor := value.const_value, ir.ExternalTensor)
    }
    inline = sum(
        value.const_value.nbytes
        for value in model.graph.initializers.values()
        if value.const_value is not None and not isinstance(value.const_value, ir.ExternalTensor)
    )
    return sum(external.values()) + inline


def _write_weights(model: ir.Model, file: BinaryIO, folder: Path, written: dict[bytes, int]) -> None:
    used = dict.fromkeys(value for node in model.graph for value in weights_read(node))
    used.update(dict.fromkeys(model.graph.initializers.values()))
    for value in used:
        tensor = value.const_value
        if tensor is None:
            continue
        if tensor.nbytes <= INLINE_BYTES or tensor.dtype == ir.DataType.STRING:
            value.const_value = _inline(tensor, value.name or "")
            continue
        offset = _append(file, tensor, written)
        value.const_value = ir.ExternalTensor(
            WEIGHTS_NAME,
            offset,
            tensor.nbytes,
            tensor.dtype,
            shape=ir.Shape(dims_of(tensor)),
            name=value.name or "",
            base_dir=folder,
        )


def _inline(tensor: ir.TensorProtocol, name: str) -> ir.TensorProtocol:
    if tensor.dtype == ir.DataType.STRING:
        return tensor
    return ir.Tensor(np.ascontiguousarray(tensor.numpy()).reshape(tensor.numpy().shape), tensor.dtype, name=name)


def _append(file: BinaryIO, tensor: ir.TensorProtocol, written: dict[bytes, int]) -> int:
    """Write a tensor at the end of the file unless its bytes are there already; returns where they are."""
    end = file.tell()
    start = -end % (_PAGE_BYTES if tensor.nbytes >= _LARGE_BYTES else _ALIGN_BYTES) + end
    file.write(b"\0" * (start - end))
    digest = hashlib.blake2b(str(tensor.nbytes).encode(), digest_size=32)
    for chunk in _chunks(tensor):
        digest.update(chunk)
        file.write(chunk)
    known = written.setdefault(digest.digest(), start)
    if known != start:
        file.seek(end)
        file.truncate()
    return known


def _chunks(tensor: ir.TensorProtocol) -> Iterator[bytes | memoryview]:
    """The tensor's bytes in ONNX order, little-endian, a few megabytes at a time."""
    if isinstance(tensor, ir.ExternalTensor):
        yield from _file_chunks(tensor)
        return
    array = tensor.numpy() if isinstance(tensor, ir.Tensor) else None
    repeated = array is not None and array.size > 0 and not any(array.strides)
    if array is not None and repeated and array.dtype.itemsize * array.size == tensor.nbytes:
        one = array.reshape(-1)[:1].astype(array.dtype.newbyteorder("<")).tobytes()
        per_chunk = _CHUNK_BYTES // len(one)
        for start in range(0, array.size, per_chunk):
            yield one * min(per_chunk, array.size - start)
        return
    data = memoryview(tensor.tobytes())
    for start in range(0, len(data), _CHUNK_BYTES):
        yield data[start : start + _CHUNK_BYTES]


def _file_chunks(tensor: ir.ExternalTensor) -> Iterator[bytes]:
    left = tensor.nbytes
    with Path(tensor.path).open("rb") as file:
        file.seek(tensor.offset or 0)
        while left:
            chunk = file.read(min(left, _CHUNK_BYTES))
            if not chunk:
                raise OSError(f"{tensor.path} became shorter while it was read")
            left -= len(chunk)
            yield chunk
