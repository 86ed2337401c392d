"""Calling a program of a chip under the names and element types of the graph, whichever engine runs it."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from flagsplit.errors import BundleError, InputError
from flagsplit.targets.interface import Array, TensorSpec
from flagsplit.targets.segment_table import ChipCall, ChipTensor

Run = Callable[[dict[str, Array]], Mapping[str, Array]]
"""Runs a program, from arrays by its names to arrays by its names; raises InputError if it refuses them."""


def _nothing() -> None:
    pass


class CallExecutable:
    """An executable of one call.

    Args:
        call: how the program is called.
        run: runs it.
        engine: what runs it, for messages.
        close: frees what `run` holds; called once.
    """

    def __init__(self, call: ChipCall, run: Run, engine: str, close: Callable[[], None] = _nothing) -> None:
        self._call = call
        self._run: Run | None = run
        self._engine = engine
        self._close = close
        self._inputs = tuple(each.to_spec() for each in call.inputs)
        self._outputs = tuple(each.to_spec() for each in call.outputs)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What `run` takes."""
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What `run` gives."""
        return self._outputs

    def run(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """Run once; see `Executable.run`."""
        if self._run is None:
            raise InputError(f"{self._call.function!r} was closed; load the segment again")
        given: dict[str, Array] = {}
        for each in self._call.inputs:
            if each.name not in tensors:
                raise InputError(f"expected an input {each.name!r}, came {', '.join(sorted(tensors)) or 'none'}")
            given[each.called] = to_program(each, np.asarray(tensors[each.name]), self._engine)
        made = self._run(given)
        return {each.name: from_program(each, np.asarray(made[each.called])) for each in self._call.outputs}

    def close(self) -> None:
        """Free what it holds; a second call does nothing."""
        if self._run is not None:
            self._run = None
            self._close()


def to_program(tensor: ChipTensor, given: Array, engine: str) -> Array:
    """An array as the program takes it.

    Raises:
        InputError: it is of another type or shape, or holds a number that the program's type cannot.
    """
    if given.dtype.name != tensor.dtype or not _fits(given.shape, tensor.shape):
        raise InputError(
            f"expected {tensor.name!r} as {tensor.dtype} of shape {list(tensor.shape)}, "
            f"came {given.dtype.name} of shape {list(given.shape)}"
        )
    kind = np.dtype(tensor.passed_as or tensor.dtype)
    wrong = _lost(given, kind)
    if wrong is not None:
        raise InputError(f"{tensor.name!r} is passed to {engine} as {kind.name}, which cannot hold {wrong}")
    passed = given.astype(kind, copy=False)
    return passed if tensor.passed_shape is None else passed.reshape(tensor.passed_shape)


def from_program(tensor: ChipTensor, made: Array) -> Array:
    """An array as the graph has it.

    Raises:
        BundleError: it is of another shape.
    """
    if tensor.passed_shape is not None:
        made = made.reshape([int(size) for size in tensor.shape])
    if not _fits(made.shape, tensor.shape):
        raise BundleError(
            f"the program gave {tensor.name!r} as {list(made.shape)}, segments.json says {list(tensor.shape)}; "
            "build the bundle again"
        )
    return np.asarray(made, np.dtype(tensor.dtype), order="C")


def _fits(shape: Sequence[int], declared: Sequence[int | str]) -> bool:
    """Whether an array is of a shape; a symbol stands for any size."""
    return len(shape) == len(declared) and all(
        isinstance(want, str) or size == want for size, want in zip(shape, declared, strict=True)
    )


def _lost(given: Array, kind: "np.dtype[np.generic]") -> str | None:
    """A finite number that another type cannot hold, if there is one."""
    if kind == given.dtype or not given.size:
        return None
    if kind.kind in "iu" and given.dtype.kind in "iu":
        limits = np.iinfo(kind.name)
        low, high = int(given.min()), int(given.max())
        wrong = low if low < limits.min else high
        return str(wrong) if low < limits.min or high > limits.max else None
    if kind.kind == "f" and kind.itemsize < given.dtype.itemsize and np.isfinite(given).all():
        most = given.flat[np.abs(given).argmax()]
        with np.errstate(over="ignore"):
            return f"{float(most):.5g}" if np.isinf(most.astype(kind)) else None
    return None
