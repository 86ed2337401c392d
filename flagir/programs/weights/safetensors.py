"""Safetensors: the length of a header, the header in JSON, the data.

https://huggingface.co/docs/safetensors/index#format
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from flagsplit.errors import ModelError
from flagsplit.flagir.programs.weights.mapped import Cursor, Mapped, checked_shape, well_formed
from flagsplit.flagir.programs.weights.tensors import (
    MAX_RANK,
    MAX_TENSORS,
    Stored,
    Weights,
    bfloat16,
    check_apart,
    plain,
)

_MAX_HEADER_BYTES: Final = 16 << 20
"""Some hundred bytes for each tensor."""
_WIDTHS: Final = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "BOOL": 1,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U64": 8,
    "U32": 4,
    "U16": 2,
    "U8": 1,
}


def read_safetensors(path: Path) -> Weights:
    """The tensors of a safetensors file.

    Raises:
        ModelError: the file is damaged, or holds types that are none of NumPy's.
    """
    source = Mapped(path)
    cursor = Cursor(source)
    length = cursor.number("Q")
    if length > min(cursor.left, _MAX_HEADER_BYTES):
        raise ModelError(f"{path}: expected a safetensors file, its header is said to have {length} bytes; is it one?")
    with well_formed(source.name, "safetensors"):
        header = json.loads(cursor.text(length), parse_constant=_no_number)
    if not isinstance(header, dict) or len(header) > MAX_TENSORS:
        raise ModelError(f"{path}: expected a header with at most {MAX_TENSORS} tensors")
    stored = {name: _stored(name, row, cursor) for name, row in header.items() if name != "__metadata__"}
    check_apart(source.name, stored, cursor.left)
    return Weights(source, stored)


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _stored(name: str, row: Any, data: Cursor) -> Stored:
    said = f"{data.source.name}: tensor {name[:80]!r}"
    match row:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(start), int(end)]}:
            pass
        case _:
            raise ModelError(f"{said}: expected a type, a shape and two offsets")
    if dtype not in _WIDTHS:
        raise ModelError(f"{said}: expected one of {', '.join(_WIDTHS)}, came type {dtype[:20]!r}")
    if len(shape) > MAX_RANK or not all(type(size) is int for size in shape):
        raise ModelError(f"{said}: expected a shape of at most {MAX_RANK} numbers")
    count = checked_shape(said, shape, data.left, 8 * _WIDTHS[dtype])
    if not 0 <= start <= end <= data.left or end - start != count * _WIDTHS[dtype]:
        raise ModelError(f"{said}: expected {count * _WIDTHS[dtype]} bytes, its offsets are {start} and {end}")
    return Stored(tuple(shape), data.at + start, end - start, _decoder(dtype))


def _decoder(dtype: str) -> Any:
    if dtype == "BF16":
        return bfloat16
    return plain("?" if dtype == "BOOL" else f"<{dtype[0].lower()}{_WIDTHS[dtype]}")
