"""Reading and writing at indices. MIL's count from the front only, ONNX's from both ends."""

import numpy as np
import onnx_ir as ir

from flagsplit.targets.mobile.coreml.lowering.facts import BOOL, NUMBERS, NodeFacts
from flagsplit.targets.mobile.coreml.lowering.registry import lowers
from flagsplit.targets.mobile.coreml.lowering.site import Site, Var

_INT32 = ir.DataType.INT32


def _as_was(site: Site, made: Var) -> Var:
    return site.mb.cast(x=made, dtype="bool") if site.dtype() in BOOL else made


@lowers("Gather", why_not=lambda facts: _too_high(facts))
def lower_gather(site: Site) -> Var:
    axis = site.axis(0)
    indices = site.from_end(site.var(1), site.shape()[axis])
    return _as_was(site, site.mb.gather(x=site.as_int(site.var()), indices=indices, axis=axis))


def _too_high(facts: NodeFacts) -> str:
    return "" if facts.rank() else "it gathers from a scalar"


@lowers("GatherElements")
def lower_gather_elements(site: Site) -> Var:
    axis = site.axis(0)
    x, indices = site.as_int(site.var()), site.from_end(site.var(1), site.shape()[axis])
    for other in range(site.rank()):
        if other != axis:
            x = site.cut(x, other, 0, site.shape(1)[other])
    return _as_was(site, site.mb.gather_along_axis(x=x, indices=indices, axis=axis))


def _from_ends(site: Site, indices: Var, sizes: "tuple[int, ...]") -> Var:
    """Index tuples along the last axis, those below zero counted from the end of their axis."""
    mb, bounds = site.mb, np.asarray(sizes, np.int32)
    if indices.val is not None:
        found = np.asarray(indices.val)
        return mb.const(val=np.where(found < 0, found + bounds, found).astype(np.int32))
    shape = [1] * (len(indices.shape) - 1) + [len(sizes)]
    below = mb.less(x=indices, y=np.int32(0))
    return mb.select(cond=below, a=mb.add(x=indices, y=bounds.reshape(shape)), b=indices)


@lowers("GatherND")
def lower_gather_nd(site: Site) -> Var:
    """Where whole tuples of indices name single elements MIL gives a scalar too."""
    batch = site.integer("batch_dims", 0)
    sizes = site.shape()[batch : batch + site.shape(1)[-1]]
    indices = _from_ends(site, site.var(1), sizes)
    made = site.mb.gather_nd(x=site.as_int(site.var()), indices=indices, batch_dims=batch)
    return _as_was(site, site.reshape(made, site.out_shape()))


_MODES = {"none": "update", "add": "add", "mul": "mul", "max": "max", "min": "min"}


@lowers("ScatterElements", dtypes=NUMBERS)
def lower_scatter_elements(site: Site) -> Var:
    """MIL's updates are of the size of the data on all other axes; where they are smaller they go by coordinates."""
    mb, axis = site.mb, site.axis(0)
    indices, mode = site.from_end(site.var(1), site.shape()[axis]), _MODES[site.text("reduction", "none")]
    rest = [at for at in range(site.rank()) if at != axis]
    if all(site.shape()[at] == site.shape(1)[at] for at in rest):
        return mb.scatter_along_axis(data=site.var(), indices=indices, updates=site.var(2), axis=axis, mode=mode)
    shape = site.shape(1)
    parts = []
    for at in range(site.rank()):
        if at == axis:
            parts.append(site.reshape(indices, [int(np.prod(shape)), 1]))
        else:
            places = np.indices(shape)[at].reshape(-1, 1).astype(np.int32)
            parts.append(mb.const(val=places))
    where = parts[0] if len(parts) == 1 else mb.concat(values=parts, axis=1)
    updates = site.reshape(site.var(2), [int(np.prod(shape))])
    return mb.scatter_nd(data=site.var(), indices=where, updates=updates, mode=mode)


@lowers("ScatterND", dtypes=NUMBERS)
def lower_scatter_nd(site: Site) -> Var:
    indices = _from_ends(site, site.var(1), site.shape()[: site.shape(1)[-1]])
    mode = _MODES[site.text("reduction", "none")]
    return site.mb.scatter_nd(data=site.var(), indices=indices, updates=site.var(2), mode=mode)


@lowers("OneHot", const=(1,), dtypes=NUMBERS, why_not=lambda facts: _odd_values(facts))
def lower_one_hot(site: Site) -> Var:
    """Compared with all places: so on and off may be computed, and no index is out of bounds."""
    mb, size = site.mb, site.const_ints(1)[0]
    indices = site.cast(site.var(0), _INT32)
    axis = site.axis(-1, site.rank() + 1)
    wanted = list(site.shape())
    wanted.insert(axis, 1)
    indices = site.reshape(
        mb.select(cond=mb.less(x=indices, y=np.int32(0)), a=mb.add(x=indices, y=np.int32(size)), b=indices), wanted
    )
    places = [1] * len(wanted)
    places[axis] = size
    hot = mb.equal(x=indices, y=np.arange(size, dtype=np.int32).reshape(places))
    off, on = (site.reshape(site.cut(site.var(2), 0, at, at + 1), [1] * len(wanted)) for at in range(2))
    return mb.select(cond=hot, a=site.broadcast(on, site.out_shape()), b=off)


def _odd_values(facts: NodeFacts) -> str:
    return "its values are bools" if facts.dtype(2) in BOOL else ""
