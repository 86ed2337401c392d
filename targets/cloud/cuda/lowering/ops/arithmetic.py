"""Arithmetic of two tensors or more, and on bits."""

from functools import reduce
from typing import Any

from flagsplit.targets.cloud.cuda.lowering.site import Kernel, Refused, Site, as_dtype, widened
from flagsplit.targets.cloud.cuda.sdk import torch


def lower_add(site: Site) -> Kernel:
    """a + b."""
    _numbers(site)
    return lambda a, b: a + b


def lower_sub(site: Site) -> Kernel:
    """a - b."""
    _numbers(site)
    return lambda a, b: a - b


def lower_mul(site: Site) -> Kernel:
    """a b."""
    _numbers(site)
    return lambda a, b: a * b


def _numbers(site: Site) -> None:
    if site.dtype(0) == "bool":
        raise Refused("PyTorch does no arithmetic on bools")


def lower_div(site: Site) -> Kernel:
    """a / b; of whole numbers rounded towards 0."""
    if site.is_float(0):
        return lambda a, b: a / b
    return lambda a, b: torch.div(a, b, rounding_mode="trunc")


def lower_mod(site: Site) -> Kernel:
    """The remainder, of the divisor's sign; as in C with `fmod`."""
    if site.integer("fmod", 0):
        return lambda a, b: torch.fmod(a, b)
    return lambda a, b: torch.remainder(a, b)


def lower_pow(site: Site) -> Kernel:
    """a to the b, of a's type; a whole power of whole numbers is exact."""
    power = site.const(1)
    if power is not None and power.size == 1 and site.rank(0) >= power.ndim:
        number = power.reshape(-1)[0].item()
        if site.is_float(0):
            return lambda a, _: torch.pow(widened(a), number)
    else:
        site.read.discard(1)
    wide = not site.is_float(0) and site.is_float(1)
    out = site.out_dtype()

    def kernel(a: Any, b: Any) -> Any:
        if b is None:
            b = torch.tensor(number, dtype=torch.float64 if wide else torch.int64, device=a.device)
        if wide:
            return torch.pow(a.double(), b.double()).to(as_dtype(out))
        return torch.pow(widened(a), widened(b).to(widened(a).dtype) if a.is_floating_point() else b)

    return kernel


def lower_max(_site: Site) -> Kernel:
    """The largest of each position."""
    return lambda *x: reduce(lambda a, b: torch.maximum(a, b), x)


def lower_min(_site: Site) -> Kernel:
    """The smallest of each position."""
    return lambda *x: reduce(lambda a, b: torch.minimum(a, b), x)


def lower_sum(_site: Site) -> Kernel:
    """The sum at each position."""
    return lambda *x: reduce(lambda a, b: a + b, map(widened, x))


def lower_mean(_site: Site) -> Kernel:
    """The mean at each position."""
    return lambda *x: reduce(lambda a, b: a + b, map(widened, x)) / len(x)


def lower_bits(site: Site) -> Kernel:
    """And, or, exclusive or of bits, or all of them turned round."""
    function = {
        "BitwiseAnd": "bitwise_and",
        "BitwiseNot": "bitwise_not",
        "BitwiseOr": "bitwise_or",
        "BitwiseXor": "bitwise_xor",
    }[site.node.op_type]
    return lambda *x: getattr(torch, function)(*x)


def lower_shift(site: Site) -> Kernel:
    """Bits moved up or down."""
    if site.text("direction", "") == "LEFT":
        return lambda a, b: torch.bitwise_left_shift(a, b)
    return lambda a, b: torch.bitwise_right_shift(a, b)
