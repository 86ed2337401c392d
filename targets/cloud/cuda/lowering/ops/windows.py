"""Windows of convolutions and pools: sizes, steps and padding by axis."""

from dataclasses import dataclass

from flagsplit.targets.cloud.cuda.lowering.site import Refused, Site


@dataclass(frozen=True)
class Windows:
    """By axis of space.

    Attributes:
        kernel, strides, dilations: of the window.
        low, high: elements of padding before and after.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    low: tuple[int, ...]
    high: tuple[int, ...]

    @property
    def even(self) -> bool:
        """Whether there is as much padding before as after."""
        return self.low == self.high

    @property
    def flat_pads(self) -> list[int]:
        """As PyTorch's `pad` takes it: last axis first."""
        return [each for pair in zip(self.low[::-1], self.high[::-1], strict=True) for each in pair]


def windows_of(site: Site, kernel: tuple[int, ...], sizes: tuple[int, ...]) -> Windows:
    """What a node says of its windows.

    Args:
        site: the node.
        kernel: sizes of the window.
        sizes: of the input in space.
    """
    rank = len(kernel)
    if not 1 <= rank <= 3:
        raise Refused(f"PyTorch slides windows over 1 to 3 axes, came {rank}")
    strides = tuple(site.integers("strides") or [1] * rank)
    dilations = tuple(site.integers("dilations") or [1] * rank)
    auto = site.text("auto_pad", "NOTSET")
    pads = site.integers("pads") or [0] * (2 * rank)
    if auto == "VALID":
        pads = [0] * (2 * rank)
    elif auto != "NOTSET":
        pads = [0] * (2 * rank)
        for axis in range(rank):
            reach = (kernel[axis] - 1) * dilations[axis] + 1
            steps = -(-sizes[axis] // strides[axis])
            total = max(0, (steps - 1) * strides[axis] + reach - sizes[axis])
            less = total // 2
            pads[axis], pads[axis + rank] = (total - less, less) if auto == "SAME_LOWER" else (less, total - less)
    return Windows(kernel, strides, dilations, tuple(pads[:rank]), tuple(pads[rank:]))
