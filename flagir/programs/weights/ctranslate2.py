"""CTranslate2's model.bin, version 6: the name of the architecture, and variables one behind the other.

    u32 6 | text specification | u32 its revision | u32 count | count variables | u32 count | count aliases
    variable: text name | u8 rank | u32 each size | u8 type | u32 bytes | data          alias: text name | text variable
    text: u16 length, with the zero at its end | bytes

As `ModelSpec._serialize` of python/ctranslate2/specs/model_spec.py writes it. The converter fuses projections that have
the same input: see `flagsplit.flagir.programs.whisper`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from flagsplit.errors import ModelError
from flagsplit.flagir.programs.weights.mapped import Cursor, Mapped, checked_shape, well_formed
from flagsplit.flagir.programs.weights.tensors import MAX_RANK, MAX_TENSORS, Stored, Weights, bfloat16, plain

_VERSION: Final = 6
_TYPES: Final = ("<f4", "<i1", "<i2", "<i4", "<f2", "bfloat16")
_MAX_TEXT_BYTES: Final = 1024


@dataclass(frozen=True)
class Ctranslate2File:
    """What a model.bin holds.

    Attributes:
        specification: name of the architecture, such as "WhisperSpec".
        weights: the variables, and the aliases as further names of theirs.
    """

    specification: str
    weights: Weights


def read_ctranslate2(*parts: Path) -> Ctranslate2File:
    """Read a model.bin.

    Args:
        parts: the file, or its pieces in their order.

    Raises:
        ModelError: the file is damaged, or of another version.
    """
    source = Mapped(*parts)
    cursor = Cursor(source)
    version = cursor.number("I")
    if version != _VERSION:
        raise ModelError(f"{source.name}: expected a CTranslate2 file of version {_VERSION}, came {version}")
    with well_formed(source.name, "CTranslate2"):
        specification = _text(cursor)
        cursor.number("I")
        stored = {}
        for _ in range(_count(cursor)):
            name = _text(cursor)
            if name in stored:
                raise ModelError(f"{source.name}: two variables are called {name!r}; it is damaged")
            stored[name] = _variable(cursor, name)
        aliases = [(_text(cursor), _text(cursor)) for _ in range(_count(cursor))]
    for alias, name in aliases:
        if name not in stored:
            raise ModelError(f"{source.name}: {alias!r} stands for {name!r}, which the file does not have")
        stored.setdefault(alias, stored[name])
    return Ctranslate2File(specification, Weights(source, stored))


def _count(cursor: Cursor) -> int:
    count = cursor.number("I")
    if count > min(MAX_TENSORS, cursor.left):
        raise ModelError(f"{cursor.source.name}: expected at most {MAX_TENSORS} variables, it says {count}")
    return count


def _text(cursor: Cursor) -> str:
    length = cursor.number("H")
    if length > _MAX_TEXT_BYTES:
        raise ModelError(f"{cursor.source.name}: expected a name of at most {_MAX_TEXT_BYTES} bytes, it has {length}")
    return cursor.text(length).removesuffix("\0")


def _variable(cursor: Cursor, name: str) -> Stored:
    said = f"{cursor.source.name}: variable {name[:80]!r}"
    rank = cursor.number("B")
    if rank > MAX_RANK:
        raise ModelError(f"{said}: expected at most {MAX_RANK} axes, it has {rank}")
    shape = cursor.numbers("I", rank)
    kind, size_bytes = cursor.number("B"), cursor.number("I")
    if kind >= len(_TYPES):
        raise ModelError(f"{said}: expected a type from 0 to {len(_TYPES) - 1}, came {kind}")
    dtype = _TYPES[kind]
    width = 2 if dtype == "bfloat16" else int(dtype[-1])
    expected_bytes = checked_shape(said, shape, cursor.left, 8 * width) * width
    if size_bytes != expected_bytes:
        raise ModelError(f"{said}: expected {expected_bytes} bytes for {list(shape)}, it says {size_bytes}")
    start = cursor.at
    cursor.take(size_bytes)
    return Stored(shape, start, size_bytes, bfloat16 if dtype == "bfloat16" else plain(dtype))
