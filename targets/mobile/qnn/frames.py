"""What goes through the pipes between this process and the one with the SDK: a JSON message and arrays after it.

The process with the SDK may have run a damaged binary, so what comes from it is checked like a stranger's.
"""

import json
from collections.abc import Mapping
from typing import IO, TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from flagsplit.targets.interface import Array

_MOST_HEADER_BYTES = 16 << 20
_MOST_ARRAY_BYTES = 4 << 30
_KINDS = "float16 float32 float64 int8 int16 int32 int64 uint8 uint16 uint32 uint64 bool".split()


class BrokenPipeContentError(Exception):
    """The pipe ended, or what came through it is no message."""


def send(pipe: IO[bytes], message: Mapping[str, Any], arrays: "Mapping[str, Array]") -> None:
    """Write a message, and the arrays that belong to it."""
    rows = [[name, array.dtype.name, list(array.shape)] for name, array in arrays.items()]
    header = json.dumps({"message": message, "arrays": rows}).encode()
    pipe.write(len(header).to_bytes(8, "little") + header)
    for array in arrays.values():
        pipe.write(np.ascontiguousarray(array).tobytes())
    pipe.flush()


def receive(pipe: IO[bytes]) -> "tuple[dict[str, Any], dict[str, Array]]":
    """Read what `send` wrote.

    Raises:
        BrokenPipeContentError: see there.
    """
    size = int.from_bytes(_exactly(pipe, 8, 8), "little")
    header = json.loads(_exactly(pipe, size, _MOST_HEADER_BYTES))
    arrays: dict[str, Array] = {}
    for name, kind, shape in header["arrays"]:
        if kind not in _KINDS:
            raise BrokenPipeContentError(f"an array of type {kind!r}")
        dtype = np.dtype(kind)
        count = int(np.prod([int(size) for size in shape], dtype=object))
        data = _exactly(pipe, count * dtype.itemsize, _MOST_ARRAY_BYTES)
        arrays[name] = np.frombuffer(data, dtype).reshape(shape)
    return header["message"], arrays


def _exactly(pipe: IO[bytes], count: int, most: int) -> bytes:
    if not 0 <= count <= most:
        raise BrokenPipeContentError(f"{count} bytes announced")
    data = pipe.read(count)
    if len(data) != count:
        raise BrokenPipeContentError("it ended")
    return data
