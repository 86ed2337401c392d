"""The weight file of a package, memory-mapped.

    header    64 bytes   u32 count of records, u32 version (2), reserved
    record    64 bytes   u32 0xDEADBEEF, u32 element type, u64 size in bytes, u64 offset of the data, u64 padding bits
    data                 little-endian, at a multiple of 64 bytes; elements below a byte are packed, low bits first

A program refers to a record by its offset. Every offset and size is checked against the file before anything is read.
"""

import mmap
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from flagsplit.errors import BundleError

_SENTINEL: Final = 0xDEADBEEF
_ALIGNMENT: Final = 64
_VERSION: Final = 2
_HEADER: Final = struct.Struct("<II")
_RECORD: Final = struct.Struct("<IIQQQ")

_DTYPES: Final[Mapping[int, str]] = {
    1: "float16",
    2: "float32",
    3: "uint8",
    4: "int8",
    6: "int16",
    7: "uint16",
    8: "int4",
    9: "uint1",
    10: "uint2",
    11: "uint4",
    12: "uint3",
    13: "uint6",
    14: "int32",
    15: "uint32",
}
"""Our name of each element type by its number in the records."""


class WeightFile:
    """One weight file; it stays open, and mapped, while anything of it is in use.

    Raises:
        BundleError: there is no such file, or it is not a weight file of version 2.
    """

    def __init__(self, path: Path) -> None:
        self._name = path.name
        try:
            with path.open("rb") as file:
                self._data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except (OSError, ValueError) as error:
            raise BundleError(f"cannot read the weights in {path}: {error}; write the package again") from error
        if len(self._data) < _ALIGNMENT:
            raise self._damaged(f"a header of {_ALIGNMENT} bytes", f"{len(self._data)} bytes")
        _, version = _HEADER.unpack_from(self._data)
        if version != _VERSION:
            raise self._damaged(f"version {_VERSION}", f"version {version}")

    def record(self, offset: int, dtype: str) -> memoryview:
        """The data of the record at `offset`, which must hold elements of type `dtype`.

        Raises:
            BundleError: there is no such record, or it is damaged.
        """
        if offset % _ALIGNMENT or not 0 < offset <= len(self._data) - _ALIGNMENT:
            raise self._damaged(
                f"a record at a multiple of {_ALIGNMENT} within {len(self._data)} bytes", f"one at {offset}"
            )
        sentinel, code, size_bytes, start, _ = _RECORD.unpack_from(self._data, offset)
        if sentinel != _SENTINEL:
            raise self._damaged(f"a record at {offset}", f"{sentinel:#010x} in place of its mark {_SENTINEL:#010x}")
        if _DTYPES.get(code) != dtype:
            raise self._damaged(f"elements of type {dtype} at {offset}", _DTYPES.get(code, f"element type {code}"))
        if start % _ALIGNMENT or start < _ALIGNMENT or start > len(self._data) or size_bytes > len(self._data) - start:
            raise self._damaged(
                f"the data of the record at {offset} within {len(self._data)} bytes", f"{size_bytes} bytes at {start}"
            )
        return self._data[start : start + size_bytes]

    def _damaged(self, expected: str, came: str) -> BundleError:
        return BundleError(f"{self._name}: expected {expected}; got {came}; the package is damaged, write it again")
