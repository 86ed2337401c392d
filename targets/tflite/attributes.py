"""Reading attributes of nodes."""

from collections.abc import Sequence

import onnx_ir as ir

from flagsplit.targets.tflite.program import Refused


def axis_of(node: ir.Node, rank: int, default: int, name: str = "axis") -> int:
    """An axis from the front."""
    return front(node.attributes.get_int(name, default), rank)


def front(axis: int, rank: int) -> int:
    """An axis from the front.

    Raises:
        Refused: there is none such.
    """
    if not -rank <= axis < max(rank, 1):
        raise Refused(f"axis {axis} of a tensor of rank {rank}")
    return axis + rank if axis < 0 else axis


def ints_of(node: ir.Node, name: str, default: Sequence[int]) -> list[int]:
    """A list of numbers."""
    found = node.attributes.get_ints(name, list(default))
    return [int(each) for each in found]
