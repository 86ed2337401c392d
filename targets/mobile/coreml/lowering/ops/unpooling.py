"""Putting windows and largest elements back to where they came from."""

import numpy as np

from flagsplit.targets.mobile.coreml.lowering.facts import FLOATS, NodeFacts
from flagsplit.targets.mobile.coreml.lowering.registry import lowers
from flagsplit.targets.mobile.coreml.lowering.site import Site, Var


@lowers("Col2Im", dtypes=FLOATS, const=(1, 2), why_not=lambda facts: _odd_image(facts))
def lower_col2im(site: Site) -> Var:
    """A transposed convolution whose kernels each have a single one."""
    mb, kernel, image = site.mb, site.const_ints(2), site.const_ints(1)
    spatial, inside = len(kernel), int(np.prod(kernel))
    pads, strides = site.ints("pads", [0] * 2 * spatial), site.ints("strides", [1] * spatial)
    dilations = site.ints("dilations", [1] * spatial)
    batch, channels = site.shape()[0], site.shape()[1] // inside
    counts = [
        (size + pads[at] + pads[at + spatial] - dilations[at] * (kernel[at] - 1) - 1) // strides[at] + 1
        for at, size in enumerate(image)
    ]
    ends = [
        (count - 1) * strides[at] + (kernel[at] - 1) * dilations[at] + 1 - pads[at] - image[at]
        for at, count in enumerate(counts)
    ]
    x = site.reshape(site.var(), (batch, channels * inside, *counts))
    ones = np.eye(inside).reshape(inside, 1, *kernel)
    made = mb.conv_transpose(
        x=x,
        weight=site.numbers(np.tile(ones, (channels, *[1] * (spatial + 1)))),
        strides=strides,
        dilations=dilations,
        groups=channels,
        pad_type="custom",
        pad=[by for at in range(spatial) for by in (pads[at], max(ends[at], 0))],
    )
    more = [0, 0, 0, 0, *[by for end in ends for by in (0, max(-end, 0))]]
    return mb.pad(x=made, pad=more, mode="constant", constant_val=site.number(0)) if any(more) else made


def _odd_image(facts: NodeFacts) -> str:
    return "" if 1 <= len(facts.const_ints(2)) <= 3 else "it is in over 3 dimensions"


@lowers("MaxUnpool", dtypes=FLOATS, const=(2,), why_not=lambda facts: _of_other_shape(facts))
def lower_max_unpool(site: Site) -> Var:
    count = int(np.prod(site.out_shape()))
    updates, indices = (site.reshape(site.var(at), (int(np.prod(site.shape())),)) for at in range(2))
    zeros = site.numbers(np.zeros(count))
    made = site.mb.scatter_along_axis(data=zeros, indices=indices, updates=updates, axis=0, mode="update")
    return site.reshape(made, site.out_shape())


def _of_other_shape(facts: NodeFacts) -> str:
    return "its output's shape is given, to which its indices may not refer" if facts.has(2) else ""
