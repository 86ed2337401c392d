"""What this side runs of an encoder: the parts before a cut, and the rest too where the loop runs here.

Parts before a cut that are on other tiers, too: `encoding_elsewhere.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from flagsplit.targets.interface import Array, Executable


class Before(Protocol):
    """What runs of an encoder before a cut."""

    @property
    def crossed_bytes(self) -> int:
        """What it sent to other tiers and back so far."""

    def run(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """The tensors that cross the cut, from the inputs of a model."""

    def close(self) -> None:
        """Free it."""


class Chain:
    """Graphs one after the other, each with what it reads of all that there is.

    Args:
        parts: each with the names of its inputs; closed with the chain.
        outputs: names of what is wanted in the end.
    """

    def __init__(self, parts: Sequence[tuple[Executable, Sequence[str]]], outputs: Sequence[str]) -> None:
        self._parts, self._outputs = parts, outputs
        self.crossed_bytes = 0

    def run(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs, from the inputs of a model."""
        values = dict(tensors)
        for part, names in self._parts:
            values |= part.run({name: values[name] for name in names})
        return {name: values[name] for name in self._outputs}

    def close(self) -> None:
        """Free the graphs."""
        for part, _ in self._parts:
            part.close()


class Rest:
    """What leads from the tensors of a cut to the hidden states, opened when it is first needed."""

    def __init__(self, opener: Callable[[], Executable | None]) -> None:
        self._opener: Callable[[], Executable | None] | None = opener
        self._opened: Executable | None = None

    def hidden(self, tensors: Mapping[str, Array]) -> Array:
        """The hidden states."""
        if self._opener is not None:
            self._opened, self._opener = self._opener(), None
        if self._opened is None:
            (found,) = tensors.values()
            return found
        return self._opened.run(tensors)["hidden"]

    def close(self) -> None:
        """Free it."""
        if self._opened is not None:
            self._opened.close()
