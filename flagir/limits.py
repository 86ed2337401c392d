"""What a model file may hold, counted before it is parsed: parsed, a node of two bytes takes over a kilobyte.

This walks the protobuf wire format and nothing else. Tensor data is stepped over, so that the cost is that of the
graph, not of the weights. What is not well formed is left for the parser to refuse.
"""

import mmap
from functools import cache
from pathlib import Path
from typing import Any

import onnx

from flagsplit.errors import ModelError

MAX_NODES = 200_000
"""Nodes in all graphs and functions together."""
MAX_FIELDS = 4_000_000
"""Protobuf fields in all; a node has about ten."""

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_NODE = onnx.NodeProto.DESCRIPTOR

Descriptor = Any
"""A message's description; protobuf comes without types."""


@cache
def _inner(message: Descriptor) -> dict[int, Descriptor]:
    """Which fields of a message hold messages."""
    return {field.number: field.message_type for field in message.fields if field.message_type is not None}


def check_limits(path: Path) -> None:
    """Refuse a file that would take far more memory than it has bytes.

    Args:
        path: a file that is not empty.

    Raises:
        ModelError: it holds more nodes or fields than `MAX_NODES` and `MAX_FIELDS`.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if len(data) > 2 * MAX_NODES:  # a field has at least two bytes
            _walk(data)


def _walk(data: mmap.mmap) -> None:
    fields = nodes = 0
    todo = [(0, len(data), onnx.ModelProto.DESCRIPTOR)]
    while todo:
        at, end, message = todo.pop()
        inner = _inner(message)
        while at < end:
            fields += 1
            if fields > MAX_FIELDS:
                raise ModelError(f"expected a model of at most {MAX_FIELDS} fields, came more; split or simplify it")
            tag, at = _varint(data, at, end)
            wire = tag & 7
            if wire == _LENGTH:
                size, at = _varint(data, at, end)
                child = inner.get(tag >> 3)
                if child is not None and size:
                    todo.append((at, min(at + size, end), child))
                nodes += child is _NODE
                if nodes > MAX_NODES:
                    raise ModelError(f"expected a model of at most {MAX_NODES} nodes, came more; split or simplify it")
                at += size
            elif wire == _VARINT:
                _, at = _varint(data, at, end)
            elif wire in (_FIXED64, _FIXED32):
                at += 8 if wire == _FIXED64 else 4
            else:
                break


def _varint(data: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    """A number and where the next field begins; `end` where it is cut off or too long."""
    byte = data[at] if at < end else 0
    if byte < 128:
        return byte, at + 1
    value, shift = byte & 127, 7
    while shift < 70:
        at += 1
        if at >= end:
            return 0, end
        byte = data[at]
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at + 1
        shift += 7
    return 0, end
