"""GGUF, llama.cpp's file: facts by name, the tokenizer among them, and tensors in blocks.

    "GGUF" | u32 version | u64 tensors | u64 facts | facts | tensors | padding | data
    fact: text name | u32 type | value         tensor: text name | u32 rank | u64 each size, innermost first | u32 type
    text: u64 length | UTF-8                           | u64 where in the data

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from flagsplit.errors import ModelError
from flagsplit.flagir.programs.weights.gguf_blocks import TYPES
from flagsplit.flagir.programs.weights.mapped import Cursor, Mapped, checked_shape, well_formed
from flagsplit.flagir.programs.weights.tensors import MAX_TENSORS, Stored, Weights, check_apart

_MAGIC: Final = b"GGUF"
_VERSIONS: Final = (2, 3)
_MAX_FACTS: Final = 10_000
_MAX_ITEMS: Final = 4_000_000
"""In all lists of a file together; a vocabulary has some hundred thousand."""
_MAX_NAME_BYTES: Final = 1024
_MAX_TEXT_BYTES: Final = 1 << 20
_MAX_RANK: Final = 4
_DEFAULT_ALIGNMENT: Final = 32
_NUMBERS: Final = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _LIST = 8, 9

Fact = str | int | float | bool | tuple[str, ...] | tuple[float, ...]
"""A value of a file's facts; lists of numbers are those of `struct`."""


@dataclass(frozen=True)
class GgufFile:
    """What a GGUF file holds.

    Attributes:
        name: of the file, for messages.
        facts: by their names, such as "llama.block_count".
        weights: the tensors, the outermost axis first, as float32.
    """

    name: str
    facts: dict[str, Fact]
    weights: Weights

    def number(self, name: str, default: float | None = None) -> float:
        """A fact that is a number.

        Raises:
            ModelError: there is none of that name and no default, or it is something else.
        """
        value = self.facts.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ModelError(f"{self.name}: expected a number for {name!r}, came {str(value)[:40]}")
        return value

    def size(self, name: str) -> int:
        """A fact that is a positive whole number; errors as for `number`."""
        value = self.number(name)
        if not isinstance(value, int) or value <= 0:
            raise ModelError(f"{self.name}: expected a positive whole number for {name!r}, came {value}")
        return value

    def text(self, name: str) -> str:
        """A fact that is a text; errors as for `number`."""
        value = self.facts.get(name)
        if not isinstance(value, str):
            raise ModelError(f"{self.name}: expected a text for {name!r}, came {str(value)[:40]}")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """A fact that is a list of texts; errors as for `number`."""
        value = self.facts.get(name)
        if not isinstance(value, tuple) or not all(isinstance(item, str) for item in value):
            raise ModelError(f"{self.name}: expected a list of texts for {name!r}, came {str(value)[:40]}")
        return tuple(str(item) for item in value)


def read_gguf(path: Path) -> GgufFile:
    """Read a GGUF file.

    Raises:
        ModelError: the file is damaged, of another version, or has tensors of a type that is not read.
    """
    return _read(Mapped(path))


def parse_gguf(data: bytes, name: str) -> GgufFile:
    """Read a GGUF file that is in memory; `name` is for messages. Errors as for `read_gguf`."""
    return _read(Mapped.of(data, name))


def _read(source: Mapped) -> GgufFile:
    with well_formed(source.name, "GGUF"):
        return _Reader(source).read()


class _Reader:
    def __init__(self, source: Mapped) -> None:
        self._cursor = Cursor(source)
        self._name = source.name
        self._items_left = _MAX_ITEMS

    def read(self) -> GgufFile:
        cursor = self._cursor
        if bytes(cursor.take(4)) != _MAGIC:
            raise ModelError(f"{self._name}: expected a GGUF file, which begins with {_MAGIC.decode()}")
        version = cursor.number("I")
        if version not in _VERSIONS:
            raise ModelError(f"{self._name}: expected GGUF of version 2 or 3, came {version}")
        tensors, count = self._count(MAX_TENSORS, 24), self._count(_MAX_FACTS, 13)
        facts: dict[str, Fact] = {}
        for _ in range(count):
            name = self._text(_MAX_NAME_BYTES)
            if name in facts:
                raise ModelError(f"{self._name}: it states {name!r} twice; it is damaged")
            facts[name] = self._value(cursor.number("I"))
        return GgufFile(self._name, facts, self._weights(tensors, facts))

    def _count(self, most: int, least_bytes: int) -> int:
        """How many things follow, which take at least so many bytes each."""
        count = self._cursor.number("Q")
        if count > most or count * least_bytes > self._cursor.left:
            raise ModelError(
                f"{self._name}: it says {count} entries follow; expected at most {most}, and room for them in the file"
            )
        return count

    def _text(self, most_bytes: int) -> str:
        length = self._cursor.number("Q")
        if length > most_bytes:
            raise ModelError(f"{self._name}: expected a text of at most {most_bytes} bytes, it has {length}")
        return self._cursor.text(length)

    def _value(self, kind: int) -> Fact:
        if kind == _TEXT:
            return self._text(_MAX_TEXT_BYTES)
        if kind in _NUMBERS:
            (value,) = self._cursor.numbers(_NUMBERS[kind], 1)
            return value
        if kind != _LIST:
            raise ModelError(f"{self._name}: expected a fact of a type from 0 to 12, came {kind}")
        kind = self._cursor.number("I")
        count = self._count(self._items_left, 8 if kind == _TEXT else 1)
        self._items_left -= count
        if kind == _TEXT:
            return tuple(self._text(_MAX_TEXT_BYTES) for _ in range(count))
        if kind not in _NUMBERS:
            raise ModelError(f"{self._name}: expected a list of numbers or texts, came one of type {kind}")
        return self._cursor.numbers(_NUMBERS[kind], count)

    def _weights(self, count: int, facts: dict[str, Fact]) -> Weights:
        rows = [self._tensor() for _ in range(count)]
        alignment = facts.get("general.alignment", _DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or not 0 < alignment <= 1 << 16:
            raise ModelError(f"{self._name}: expected an alignment of at most 65536 bytes, came {alignment}")
        cursor = self._cursor
        begin = cursor.at + -cursor.at % alignment
        stored: dict[str, Stored] = {}
        left = cursor.left
        for name, shape, kind, start in rows:
            said = f"{self._name}: tensor {name[:80]!r}"
            block = TYPES.get(kind)
            if block is None:
                known = ", ".join(each.name for each in TYPES.values())
                raise ModelError(f"{said}: expected one of {known}, came GGUF's type {kind}")
            numbers = checked_shape(said, shape, left, 8 * block.size_bytes / block.numbers)
            if (row := (shape or (1,))[-1]) % block.numbers:
                raise ModelError(f"{said}: expected rows of {block.numbers} numbers or a multiple, came {row}")
            size_bytes = numbers // block.numbers * block.size_bytes
            if name in stored or start > left or begin + start + size_bytes > cursor.source.size_bytes:
                raise ModelError(f"{said}: it is there twice, or ends beyond the file; it is damaged or incomplete")
            stored[name] = Stored(shape, begin + start, size_bytes, block.decode)
        check_apart(self._name, stored, left)
        return Weights(cursor.source, stored)

    def _tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._text(_MAX_NAME_BYTES)
        rank = self._cursor.number("I")
        if rank > _MAX_RANK:
            raise ModelError(f"{self._name}: tensor {name[:80]!r}: expected at most {_MAX_RANK} axes, came {rank}")
        shape = self._cursor.numbers("Q", rank)[::-1]
        return name, shape, self._cursor.number("I"), self._cursor.number("Q")
