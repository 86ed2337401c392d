"""Small requests that run together: which may, how they are put together, and how the results are taken apart.

Runs of one segment are joined along the first axis, run once, and split. That is for segments whose every input and
output has the same open dimension in front and nowhere else. Off by default: an engine may add up in another order
when there are more rows, so that answers differ in their last bits from those of single runs.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from flagsplit.errors import ConfigError
from flagsplit.targets.interface import Array, Executable

Form = tuple[tuple[str, str, tuple[int, ...]], ...]
"""By input, its name, element type, and sizes but the first: runs of the same form can be joined."""

_RELATIVE = 1e-3
"""By how much, of the largest value of an output, a batch may differ from single runs: rounding, nothing else."""


@dataclass(frozen=True)
class BatchOptions:
    """Whether and how runs are put together.

    Attributes:
        max_batch: how many runs at most; 1 is off.
        max_wait_s: how long a run waits for others while the engine has nothing else to do.

    Raises:
        ConfigError: a value makes no sense.
    """

    max_batch: int = 1
    max_wait_s: float = 0.002

    def __post_init__(self) -> None:
        if self.max_batch < 1:
            raise ConfigError(f"max_batch: expected 1 or more, came {self.max_batch}")
        if not 0 <= self.max_wait_s < math.inf:
            raise ConfigError(f"max_wait_s: expected seconds from 0, came {self.max_wait_s}")


def can_batch(executable: Executable) -> bool:
    """Whether a segment's inputs and outputs all have one open dimension in front, the same, and it nowhere else.

    That the rows do not depend on each other does not follow: see `agree`.
    """
    shapes = [spec.shape for spec in (*executable.inputs, *executable.outputs)]
    if not executable.inputs or not executable.outputs or not all(shapes):
        return False
    first = shapes[0][0]
    named = isinstance(first, str) and first != "?"
    return named and all(shape[0] == first and first not in shape[1:] for shape in shapes)


def form_of(inputs: Mapping[str, Array]) -> Form | None:
    """What runs must have in common to be joined, or None if one cannot be: a scalar, or inputs of different rows."""
    if len({array.shape[:1] for array in inputs.values()}) != 1 or not all(array.ndim for array in inputs.values()):
        return None
    return tuple(sorted((name, array.dtype.str, array.shape[1:]) for name, array in inputs.items()))


def join(parts: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """The inputs of several runs, one below the other."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def rows_of(inputs: Mapping[str, Array]) -> int:
    """How many rows a run has."""
    return len(next(iter(inputs.values())))


def split(outputs: Mapping[str, Array], rows: Sequence[int]) -> list[dict[str, Array]] | None:
    """The results of several runs, each with memory of its own; None if some output has another number of rows."""
    if any(array.ndim == 0 or len(array) != sum(rows) for array in outputs.values()):
        return None
    ends = np.cumsum(rows)
    return [
        {name: array[end - count : end].copy() for name, array in outputs.items()}
        for end, count in zip(ends, rows, strict=True)
    ]


def agree(batched: Mapping[str, Array], single: Mapping[str, Array]) -> bool:
    """Whether results from a batch are those of a single run but for rounding."""
    return batched.keys() == single.keys() and all(_near(batched[name], array) for name, array in single.items())


def _near(came: Array, expected: Array) -> bool:
    if came.shape != expected.shape or came.dtype != expected.dtype:
        return False
    if expected.dtype.kind != "f":
        return bool(np.array_equal(came, expected))
    wanted, got = expected.astype(np.float64), came.astype(np.float64)
    largest = float(np.abs(wanted[np.isfinite(wanted)]).max(initial=0.0))
    return bool(np.allclose(got, wanted, rtol=0, atol=_RELATIVE * largest, equal_nan=True))
