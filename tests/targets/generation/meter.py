"""Counts the bytes of arrays as they come and go."""

import weakref
from typing import Any

import numpy as np
import pytest

from flagsplit.targets.generation.slot_cache import Floats, SlotCache


class Meter:
    """Makes arrays, and knows how many bytes of them are there, and were at most."""

    def __init__(self) -> None:
        self.now = self.most = 0

    def zeros(self, shape: tuple[int, ...]) -> Floats:
        """An array that is counted until nobody has it, or a part of it, any more."""
        made: Floats = self.counted(np.zeros(shape, np.float32))
        return made

    def counted(self, made: Any) -> Any:
        """The same array or tensor, counted."""
        self._count(made.nbytes)
        weakref.finalize(made, self._count, -made.nbytes)
        return made

    def watch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Count the arrays of all caches that are made from now on."""

        def empty(_: Any, rows: int, heads: int, size: int, length: int) -> Floats:
            return self.zeros((rows, heads, length, size))

        monkeypatch.setattr(SlotCache, "_empty", empty)

    def _count(self, nbytes: int) -> None:
        self.now += nbytes
        self.most = max(self.most, self.now)
