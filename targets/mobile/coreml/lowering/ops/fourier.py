"""The discrete Fourier transform, as a product with a constant matrix."""

import numpy as np

from flagsplit.targets.mobile.coreml.lowering.facts import FLOATS, Array, NodeFacts
from flagsplit.targets.mobile.coreml.lowering.registry import lowers
from flagsplit.targets.mobile.coreml.lowering.site import Site, Var

_MOST_ELEMENTS = 1 << 22
"""Of the matrix; beyond that the artifact would be mostly this."""


def _plan(facts: NodeFacts) -> tuple[int, int]:
    """The axis, and the length of the transform."""
    axis = facts.const_ints(2, [-2])[0] % facts.rank()
    return axis, facts.const_ints(1, [facts.shape()[axis]])[0]


def _too_long(facts: NodeFacts) -> str:
    axis, _ = _plan(facts)
    if axis == facts.rank() - 1:
        return "its axis is that of real and imaginary parts"
    if facts.shape()[axis] * facts.shape()[-1] * facts.out_shape()[axis] * 2 > _MOST_ELEMENTS:
        return f"its matrix would have over {_MOST_ELEMENTS} elements"
    if facts.out_shape()[-1] != 2:
        return "it gives real parts only"
    return ""


@lowers("DFT", dtypes=FLOATS, const=(1, 2), why_not=_too_long)
def lower_dft(site: Site) -> Var:
    mb, (axis, length), rank = site.mb, _plan(site), site.rank()
    matrix = site.numbers(_matrix(site, axis, length))
    perm = [*(at for at in range(rank - 1) if at != axis), axis, rank - 1]
    x = site.transpose(site.var(), perm)
    rest = x.shape[:-2]
    x = site.reshape(x, (int(np.prod(rest)), matrix.shape[0]))
    made = site.reshape(mb.matmul(x=x, y=matrix), (*rest, site.out_shape()[axis], 2))
    return site.transpose(made, list(np.argsort(perm)))


def _matrix(site: Site, axis: int, length: int) -> Array:
    """[input places x parts, output places x 2]; places beyond the length do not count, missing ones are zeros."""
    size, wanted, parts = site.shape()[axis], site.out_shape()[axis], site.shape()[-1]
    sign = 1 if site.integer("inverse", 0) else -1
    places = np.arange(size)
    angle = sign * 2 * np.pi * (np.outer(places, np.arange(wanted)) % length) / length
    cosine, sine = np.cos(angle), np.sin(angle)
    used = (places < length)[:, None]
    of_real, of_imaginary = np.stack([cosine, sine], -1), np.stack([-sine, cosine], -1)
    matrix = np.stack([of_real, of_imaginary][:parts], 1) * used[:, None, :, None]
    if sign > 0:
        matrix = matrix / length
    return matrix.reshape(size * parts, wanted * 2)
