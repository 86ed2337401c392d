"""What a .tflite file says, before it is bytes: tensors, operators by TFLite's names, and one program per chip part.

`flatfile` writes programs. Nothing here or in the lowerings needs LiteRT's package.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from flagsplit.targets.interface import Array


class Refused(Exception):  # noqa: N818 - an answer, not an error: it becomes a verdict, or a ModelError
    """A node cannot be lowered; the text is the reason."""


@dataclass(eq=False)
class Tensor:
    """A tensor of fixed shape.

    Attributes:
        shape: sizes.
        dtype: NumPy name of the element type.
        data: the content of a constant.
        scales: of int8, and of an int32 bias: what a step is worth, one number for all or for each slice along `axis`.
        zero: the integer that stands for 0, where there are scales.
        axis: see `scales`.
        steps: of a constant of float32 that was quantized: what a step is worth, for each element; `zero` goes with it.
    """

    shape: tuple[int, ...]
    dtype: str
    data: Array | None = None
    scales: Array | None = None
    axis: int = 0
    zero: int = 0
    steps: Array | None = None

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        """How many elements."""
        count = 1
        for each in self.shape:
            count *= each
        return count

    def shaped(self, shape: Sequence[int]) -> "Tensor":
        """A computed tensor of another shape, of the same type and scale."""
        return Tensor(tuple(shape), self.dtype, None, self.scales, self.axis, self.zero)

    def rearranged(self, move: Callable[[Array], Array]) -> "Tensor":
        """A constant whose elements are moved about."""
        assert self.data is not None
        data = move(self.data)
        steps = None if self.steps is None else move(self.steps)
        return Tensor(data.shape, self.dtype, data, zero=self.zero, steps=steps)


@dataclass(eq=False)
class Operator:
    """An operator: `code` is its name in TFLite's schema, `options` are the fields of its options table there."""

    code: str
    inputs: tuple[Tensor | None, ...]
    outputs: tuple[Tensor, ...]
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(eq=False)
class Program:
    """What becomes one subgraph with its signature."""

    inputs: Sequence[Tensor]
    outputs: Sequence[Tensor]
    operators: list[Operator]


def nhwc(rank: int) -> tuple[int, ...]:
    """The permutation that puts channels last."""
    return (0, *range(2, rank), 1)


def nchw(rank: int) -> tuple[int, ...]:
    """The permutation that puts channels second."""
    return (0, rank - 1, *range(1, rank - 1))
