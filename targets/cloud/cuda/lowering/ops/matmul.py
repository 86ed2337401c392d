"""Matrix products."""

from typing import Any

from flagsplit.targets.cloud.cuda.lowering.site import Kernel, Refused, Site, as_dtype, widened
from flagsplit.targets.cloud.cuda.rowwise import calls
from flagsplit.targets.cloud.cuda.sdk import torch


def lower(site: Site) -> Kernel:
    """a b, broadcast over the leading axes; whole numbers go through float64, which no GPU multiplies otherwise."""
    if site.is_float(0):
        return lambda a, b: torch.matmul(a, b)
    out = site.out_dtype()
    return lambda a, b: torch.matmul(a.double(), b.double()).to(as_dtype(out))


def lower_linear(site: Site) -> Kernel:
    """x w^T + bias, the weights turned round once when the program was made; in steps, also + residual."""
    if site.style.rows:
        return calls.linear
    return lambda x, weights, bias=None: torch.nn.functional.linear(x, weights, bias)


def lower_gemm(site: Site) -> Kernel:
    """alpha a b + beta c."""
    alpha, beta = site.number("alpha", 1.0), site.number("beta", 1.0)
    turn_a, turn_b = site.integer("transA", 0), site.integer("transB", 0)
    is_float, out = site.is_float(0), site.out_dtype()

    def kernel(a: Any, b: Any, c: Any = None) -> Any:
        if not is_float:
            a, b = a.double(), b.double()
        if (
            c is not None
            and c.dim() <= 1
            and alpha == beta == 1
            and is_float
            and c.numel() == (b.shape[0] if turn_b else b.shape[1])
        ):
            return torch.nn.functional.linear(a.t() if turn_a else a, b if turn_b else b.t(), c.reshape(-1))
        made = torch.matmul(a.t() if turn_a else a, b.t() if turn_b else b)
        made = made if alpha == 1 else made * alpha
        made = made if c is None else made + (c if beta == 1 else c * beta)
        return made.to(as_dtype(out))

    return kernel


def lower_einsum(site: Site) -> Kernel:
    """Sums of products by index letters."""
    equation = site.text("equation", "").replace(" ", "")
    if not site.is_float(0):
        raise Refused("PyTorch multiplies matrices of whole numbers on no GPU")
    return lambda *x: torch.einsum(equation, *x)


def lower_integer(_site: Site) -> Kernel:
    """The product of 8-bit integers less their zero points, exact in float64."""

    def kernel(a: Any, b: Any, zero_a: Any = None, zero_b: Any = None) -> Any:
        a, b = a.double(), b.double()
        if zero_a is not None:
            a = a - (zero_a.double().unsqueeze(-1) if zero_a.dim() == 1 and zero_a.numel() > 1 else zero_a.double())
        if zero_b is not None:
            b = b - zero_b.double()
        return torch.matmul(a, b).to(torch.int32)

    return kernel


def lower_det(_site: Site) -> Kernel:
    """Determinants."""
    return lambda x: torch.linalg.det(widened(x))
