"""The windows of convolutions and pools: strides, dilations and pads as numbers, whatever way the node says them."""

from dataclasses import dataclass

from flagsplit.targets.mobile.coreml.lowering.facts import NodeFacts


@dataclass(frozen=True)
class Windows:
    """Attributes: kernel, strides, dilations, pads (before and behind) and outputs along each spatial axis."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    outputs: tuple[int, ...]

    @staticmethod
    def of(facts: NodeFacts, kernel: "tuple[int, ...] | list[int]") -> "Windows":
        """Of a node whose first operand has two axes before the spatial ones."""
        spatial = len(kernel)
        strides = facts.ints("strides", [1] * spatial)
        dilations = facts.ints("dilations", [1] * spatial)
        given = facts.ints("pads", [0] * 2 * spatial)
        outputs = facts.out_shape()[2:]
        pads = list(zip(given[:spatial], given[spatial:], strict=True))
        auto = facts.text("auto_pad", "NOTSET")
        if auto == "VALID":
            pads = [(0, 0)] * spatial
        elif auto != "NOTSET":
            for at, size in enumerate(facts.shape()[2:]):
                reach = (kernel[at] - 1) * dilations[at] + 1
                total = max((outputs[at] - 1) * strides[at] + reach - size, 0)
                less, more = total // 2, total - total // 2
                pads[at] = (less, more) if auto == "SAME_UPPER" else (more, less)
        return Windows(tuple(kernel), tuple(strides), tuple(dilations), tuple(pads), tuple(outputs))

    def overhang(self, sizes: tuple[int, ...]) -> tuple[int, ...]:
        """How far the last window reaches beyond the padded end of each axis, as it may with ceil_mode."""
        return tuple(
            max((count - 1) * stride + (width - 1) * dilation + 1 - size - sum(pads), 0)
            for size, count, stride, width, dilation, pads in zip(
                sizes, self.outputs, self.strides, self.kernel, self.dilations, self.pads, strict=True
            )
        )
