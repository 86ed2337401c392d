"""A part under the names of the graph's values, whatever they are called in its file."""

from collections.abc import Mapping

from flagsplit.targets.interface import Array, Executable, TensorSpec
from flagsplit.targets.segment_table import ChipCall


class RenamedExecutable:
    """An open part.

    Args:
        opened: under the names of its file.
        call: both names of each value.
    """

    def __init__(self, opened: Executable, call: ChipCall) -> None:
        self._opened, self._call = opened, call

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return tuple(each.to_spec() for each in self._call.inputs)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return tuple(each.to_spec() for each in self._call.outputs)

    def run(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        made = self._opened.run({each.called: tensors[each.name] for each in self._call.inputs})
        return {each.name: made[each.called] for each in self._call.outputs}

    def close(self) -> None:
        self._opened.close()
