"""A chip part that has a program for each of its sizes, as one executable: a request's shapes say which one runs it."""

from collections.abc import Callable, Mapping, Sequence

from flagsplit.errors import InputError
from flagsplit.targets.interface import Array, Executable, TensorSpec
from flagsplit.targets.segment_table import ChipCall

Shapes = tuple[tuple[int | str, ...], ...]


class BySize:
    """Programs of one part, loaded when they are first asked for; the first of them, or all, at once.

    Args:
        calls: of the programs, which take and give the same tensors at other sizes.
        load: loads one.
        all_at_once: whether no request is to wait for one that is loaded for it.

    Raises:
        BundleError: the first cannot be loaded, or another that is loaded at once.
    """

    def __init__(
        self, calls: Sequence[ChipCall], load: Callable[[ChipCall], Executable], *, all_at_once: bool = False
    ) -> None:
        self._load = load
        self._names = [tensor.name for tensor in calls[0].inputs]
        self._calls = {tuple(tuple(tensor.shape) for tensor in call.inputs): call for call in calls}
        first = next(iter(self._calls))
        self._loaded: dict[Shapes, Executable] = {}
        for shapes in self._calls if all_at_once else (first,):
            self._loaded[shapes] = load(self._calls[shapes])
        self._inputs, self._outputs = self._loaded[first].inputs, self._loaded[first].outputs

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._outputs

    def run(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        shapes: Shapes = tuple(tensors[name].shape for name in self._names)
        call = self._calls.get(shapes)
        if call is None:
            have = " or ".join(str([list(shape) for shape in each]) for each in self._calls)
            raise InputError(f"expected {', '.join(self._names)} of the shapes {have}, came {list(map(list, shapes))}")
        if shapes not in self._loaded:
            self._loaded[shapes] = self._load(call)
        return self._loaded[shapes].run(tensors)

    def close(self) -> None:
        for each in self._loaded.values():
            each.close()
        self._loaded.clear()
