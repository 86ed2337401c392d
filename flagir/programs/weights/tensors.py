"""Weights by name, whatever the file: each tensor is read, and turned into float32, when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flagsplit.errors import ModelError
from flagsplit.flagir.programs.weights.mapped import Mapped

Array = NDArray[Any]

MAX_TENSORS = 100_000
MAX_RANK = 8


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies: `size_bytes` from `start` on; `decode` makes a flat array of them."""

    shape: tuple[int, ...]
    start: int
    size_bytes: int
    decode: Callable[[memoryview], Array]


class Weights:
    """The tensors of one file; floats of any width come as float32, integers as they are."""

    def __init__(self, source: Mapped, stored: Mapping[str, Stored]) -> None:
        self._source = source
        self._stored = stored

    @property
    def file(self) -> str:
        """What the file is called, for messages."""
        return self._source.name

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._stored)

    def __contains__(self, name: str) -> bool:
        return name in self._stored

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor, without reading it.

        Raises:
            ModelError: the file has no such tensor.
        """
        if name not in self._stored:
            raise ModelError(f"{self.file}: expected a tensor {name!r}, which the file does not have")
        return self._stored[name].shape

    def read(self, name: str, *shape: int) -> Array:
        """A tensor, as a new array.

        Args:
            name: of the tensor.
            shape: what it has to have; nothing takes any.

        Raises:
            ModelError: the file has no such tensor, or it has another shape.
        """
        came = self.shape(name)
        if shape and came != shape:
            raise ModelError(f"{self.file}: expected {name!r} of shape {list(shape)}, came {list(came)}")
        stored = self._stored[name]
        return stored.decode(self._source.take(stored.start, stored.size_bytes)).reshape(came)


def check_apart(name: str, stored: Mapping[str, Stored], most_bytes: int) -> None:
    """Refuse tensors that share bytes: a small file could stand for any amount of them.

    Raises:
        ModelError: they have more bytes in all than the file.
    """
    total_bytes = sum(each.size_bytes for each in stored.values())
    if total_bytes > most_bytes:
        raise ModelError(f"{name}: its tensors have {total_bytes} bytes, the file only {most_bytes}; it is damaged")


def plain(dtype: str) -> Callable[[memoryview], Array]:
    """Decodes numbers of a NumPy type; 16 and 64-bit floats become float32."""

    def decode(data: memoryview) -> Array:
        array = np.frombuffer(data, dtype)
        return array.astype(np.float32) if array.dtype.kind == "f" else array.copy()

    return decode


def bfloat16(data: memoryview) -> Array:
    """The upper half of a float32."""
    return (np.frombuffer(data, "<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
