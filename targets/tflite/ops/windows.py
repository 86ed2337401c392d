"""Strides, pads and sizes of what slides a window over an image: convolutions and pools."""

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from flagsplit.targets.tflite.attributes import ints_of
from flagsplit.targets.tflite.program import Refused


@dataclass(frozen=True)
class Windows:
    """One number for each spatial axis.

    Attributes:
        kernel, strides, dilations, sizes: of the window, and of the input.
        low, high: how much is padded before and after, as the node says.
        out: sizes of the output.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    sizes: tuple[int, ...]
    low: tuple[int, ...]
    high: tuple[int, ...]
    out: tuple[int, ...]

    @property
    def same(self) -> bool:
        """Whether TFLite's SAME pads as much."""
        for at, size in enumerate(self.sizes):
            stride = self.strides[at]
            out = -(-size // stride)
            total = max((out - 1) * stride + self.reach(at) - size, 0)
            if self.out[at] != out or self.low[at] != total // 2 or self.high[at] < total - total // 2:
                return False
        return True

    def reach(self, at: int) -> int:
        """How far a window goes along an axis."""
        return (self.kernel[at] - 1) * self.dilations[at] + 1

    @property
    def needed(self) -> list[tuple[int, int]]:
        """What must be padded, or with a negative number cut off at the end, to come to `out` without any padding."""
        found = []
        for at, size in enumerate(self.sizes):
            whole = (self.out[at] - 1) * self.strides[at] + self.reach(at)
            found.append((self.low[at], whole - size - self.low[at]))
        return found


def windows_of(node: ir.Node, kernel: Sequence[int], sizes: Sequence[int]) -> Windows:
    """The windows of a node, whose first output has its sizes."""
    count = len(sizes)
    strides, dilations = ints_of(node, "strides", [1] * count), ints_of(node, "dilations", [1] * count)
    shape = node.outputs[0].shape
    if shape is None:
        raise Refused("the shape of the output is not known")
    out = [int(dim) for dim in shape[2:] if isinstance(dim, int)]
    pads = ints_of(node, "pads", [0] * (2 * count))
    auto = node.attributes.get_string("auto_pad", "NOTSET")
    if auto == "VALID":
        pads = [0] * (2 * count)
    elif auto in ("SAME_UPPER", "SAME_LOWER"):
        totals = [
            max((out[at] - 1) * strides[at] + (kernel[at] - 1) * dilations[at] + 1 - sizes[at], 0)
            for at in range(count)
        ]
        small, large = [each // 2 for each in totals], [each - each // 2 for each in totals]
        pads = small + large if auto == "SAME_UPPER" else large + small
    if min(pads) < 0:
        raise Refused("pads below zero")
    parts = (kernel, strides, dilations, sizes, pads[:count], pads[count:], out)
    return Windows(*(tuple(int(each) for each in part) for part in parts))
