"""Small weight files, written from the formats' descriptions."""

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

_SAFE = {"float32": "F32", "float16": "F16", "float64": "F64", "int64": "I64", "int8": "I8", "uint16": "U16"}
_C2 = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4}
_GGUF = {"float32": 0, "float16": 1, "int8": 24, "int32": 26}


def safetensors(tensors: Mapping[str, Array], **changes: Any) -> bytes:
    """Changes are to the header, by name of the tensor."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, array in tensors.items():
        begin, data = len(data), data + array.tobytes()
        header[name] = {"dtype": _SAFE[str(array.dtype)], "shape": array.shape, "data_offsets": [begin, len(data)]}
    for name, change in changes.items():
        header[name] = {**header.get(name, {}), **change} if isinstance(change, dict) else change
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def _c2_text(text: str) -> bytes:
    return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"


def ctranslate2(
    tensors: Mapping[str, Array], aliases: Mapping[str, str] | None = None, *, specification: str = "TestSpec"
) -> bytes:
    out = struct.pack("<I", 6) + _c2_text(specification) + struct.pack("<II", 3, len(tensors))
    for name, array in tensors.items():
        out += _c2_text(name) + struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)
        out += struct.pack("<BI", _C2[str(array.dtype)], array.nbytes) + array.tobytes()
    out += struct.pack("<I", len(aliases or {}))
    return out + b"".join(_c2_text(alias) + _c2_text(name) for alias, name in (aliases or {}).items())


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def fact(value: Any) -> bytes:
    """Type and value as GGUF has them."""
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<Ii", 5, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + _text(value)
    if value and isinstance(value[0], int):
        return struct.pack(f"<IIQ{len(value)}i", 9, 5, len(value), *value)
    return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(_text, value))


def gguf(
    facts: Mapping[str, Any],
    tensors: Mapping[str, Array] | None = None,
    blocks: Mapping[str, tuple[int, Sequence[int], bytes]] | None = None,
) -> bytes:
    """Tensors are plain; blocks are types, shapes and bytes."""
    rows = {name: (_GGUF[str(each.dtype)], each.shape, each.tobytes()) for name, each in (tensors or {}).items()}
    rows.update((name, (kind, tuple(shape), data)) for name, (kind, shape, data) in (blocks or {}).items())
    out = b"GGUF" + struct.pack("<IQQ", 3, len(rows), len(facts))
    out += b"".join(_text(name) + fact(value) for name, value in facts.items())
    data = b""
    for name, (kind, shape, content) in rows.items():
        data += b"\0" * (-len(data) % 32)
        out += _text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), kind, len(data))
        data += content
    return out + b"\0" * (-len(out) % 32) + data


def noise(*shape: int, dtype: str = "float32") -> Array:
    return (np.random.default_rng(3).standard_normal(shape) * 10).astype(dtype)
