"""Ways to write the same computation in PyTorch, of which now one is quicker, now another."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Style:
    """How operators are written that have several forms.

    Attributes:
        cudnn: convolutions and the Relu after them are one kernel of cuDNN's.
        products: convolutions of one pixel are matrix products, into which the compiler draws what follows.
        shifts: convolutions of single channels are sums of shifted pictures, which fuse with what is around them.
        rows: a row's result depends on that row alone, to the bit; see `flagsplit.targets.cloud.cuda.rowwise`.
    """

    cudnn: bool = False
    products: bool = False
    shifts: bool = False
    rows: bool = False
