"""Rotary position embedding. ONNX's own function splits off an empty tensor where all of a head is turned."""

from flagsplit.targets.mobile.coreml.lowering.facts import FLOATS
from flagsplit.targets.mobile.coreml.lowering.registry import lowers
from flagsplit.targets.mobile.coreml.lowering.site import Site, Var


@lowers("RotaryEmbedding", dtypes=FLOATS)
def lower_rotary_embedding(site: Site) -> Var:
    mb, flat = site.mb, site.rank() == 3
    if flat:
        batch, steps, width = site.shape()
        heads = site.integer("num_heads")
        x = site.reshape(site.var(), (batch, steps, heads, width // heads))
    else:
        x = mb.transpose(x=site.var(), perm=[0, 2, 1, 3])
    size = x.shape[-1]
    turned_size = site.integer("rotary_embedding_dim", 0) or size
    turned = _turned(site, site.cut(x, 3, 0, turned_size))
    if turned_size < size:
        turned = mb.concat(values=[turned, site.cut(x, 3, turned_size, size)], axis=3)
    return site.reshape(turned, site.out_shape()) if flat else mb.transpose(x=turned, perm=[0, 2, 1, 3])


def _turned(site: Site, x: Var) -> Var:
    """Pairs of [batch, steps, heads, size] turned by the angle of their step."""
    mb, half = site.mb, x.shape[-1] // 2
    cosine, sine = (_angles(site, at, half) for at in (1, 2))
    if site.integer("interleaved", 0):
        first, second = site.cut(x, 3, 0, 2 * half, 2), site.cut(x, 3, 1, 2 * half, 2)
    else:
        first, second = site.cut(x, 3, 0, half), site.cut(x, 3, half, 2 * half)
    real = mb.sub(x=mb.mul(x=cosine, y=first), y=mb.mul(x=sine, y=second))
    imaginary = mb.add(x=mb.mul(x=sine, y=first), y=mb.mul(x=cosine, y=second))
    if site.integer("interleaved", 0):
        return site.reshape(mb.stack(values=[real, imaginary], axis=4), x.shape)
    return mb.concat(values=[real, imaginary], axis=3)


def _angles(site: Site, at: int, half: int) -> Var:
    """[batch, steps, 1, half]."""
    table = site.cut(site.var(at), site.rank(at) - 1, 0, half)
    if site.has(3):
        table = site.mb.gather(x=table, indices=site.from_end(site.var(3), site.shape(at)[0]), axis=0)
    return site.mb.expand_dims(x=table, axes=[2])
