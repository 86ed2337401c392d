"""The bytes of a weight file, which may have come in parts, and a cursor that does not run off their end."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from flagsplit.errors import ModelError


class Mapped:
    """Files one behind the other as one run of bytes, paged in as they are read.

    Raises:
        ModelError: a file cannot be read.
    """

    def __init__(self, *paths: Path) -> None:
        self.name = str(paths[0])
        self._parts = [_mapped(path) for path in paths]
        self.size_bytes = sum(map(len, self._parts))

    @classmethod
    def of(cls, data: bytes, name: str) -> Mapped:
        """Bytes that are in memory already; `name` is for messages."""
        self = cls.__new__(cls)
        self.name, self._parts, self.size_bytes = name, [memoryview(data)], len(data)
        return self

    def take(self, start: int, count: int) -> memoryview:
        """`count` bytes from `start` on; copied where they lie in more than one part.

        Raises:
            ModelError: the file ends before.
        """
        if start < 0 or count < 0 or start + count > self.size_bytes:
            raise ModelError(
                f"{self.name}: expected {count} bytes at byte {start}, the file has {self.size_bytes}; it is damaged "
                "or incomplete"
            )
        pieces = list(self._pieces(start, count))
        return pieces[0] if len(pieces) == 1 else memoryview(b"".join(pieces))

    def _pieces(self, start: int, count: int) -> Iterator[memoryview]:
        at = 0
        for part in self._parts:
            piece = part[max(start - at, 0) : max(start + count - at, 0)]
            if len(piece):
                yield piece
            at += len(part)
        if not count:
            yield memoryview(b"")


def _mapped(path: Path) -> memoryview:
    try:
        with path.open("rb") as file:
            if not path.stat().st_size:
                return memoryview(b"")
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read the weights {path}: {error}") from error


class Cursor:
    """Reads little-endian fields one after the other."""

    def __init__(self, source: Mapped, at: int = 0) -> None:
        self.source = source
        self.at = at

    @property
    def left(self) -> int:
        return self.source.size_bytes - self.at

    def take(self, count: int) -> memoryview:
        taken = self.source.take(self.at, count)
        self.at += count
        return taken

    def number(self, code: str) -> int:
        """One integer of a `struct` code such as "I"."""
        (value,) = struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))
        return int(value)

    def numbers(self, code: str, count: int) -> tuple[int, ...]:
        return struct.unpack(f"<{count}{code}", self.take(count * struct.calcsize(f"<{code}")))

    def text(self, length: int) -> str:
        """UTF-8 of `length` bytes.

        Raises:
            UnicodeDecodeError: it is not UTF-8; see `well_formed`.
        """
        return str(self.take(length), "utf-8")


@contextmanager
def well_formed(name: str, kind: str) -> Iterator[None]:
    """Turns what Python's own readers raise over damaged bytes into one line.

    Raises:
        ModelError: with what is wrong.
    """
    try:
        yield
    except (UnicodeDecodeError, struct.error, RecursionError, ValueError, OverflowError) as error:
        raise ModelError(f"{name}: expected a {kind} file; it is damaged: {error}") from error


def checked_shape(name: str, shape: Sequence[int], most_bytes: int, bits: float) -> int:
    """How many elements a tensor of that shape has.

    Args:
        name: of the file and the tensor.
        shape: as it is stated.
        most_bytes: how many the file has.
        bits: each element takes.

    Raises:
        ModelError: the file is too short to hold them.
    """
    count = 1
    for size in shape:
        count *= size
    # Only Python's integers are multiplied: a product that overflows would look small.
    if any(size < 0 or size * bits > 8 * most_bytes for size in shape) or count * bits > 8 * most_bytes:
        raise ModelError(f"{name}: a shape of {list(shape)[:8]} is more than the file's {most_bytes} bytes can hold")
    return count
