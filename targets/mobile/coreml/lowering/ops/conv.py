"""Convolutions."""

from collections.abc import Sequence

from flagsplit.targets.mobile.coreml.lowering.facts import FLOATS, NodeFacts
from flagsplit.targets.mobile.coreml.lowering.ops.windows import Windows
from flagsplit.targets.mobile.coreml.lowering.registry import lowers
from flagsplit.targets.mobile.coreml.lowering.site import Site, Var


def _odd_conv(facts: NodeFacts) -> str:
    if not 3 <= facts.rank() <= 5:
        return f"it is in {facts.rank() - 2} dimensions; Core ML goes from 1 to 3"
    if not facts.is_const(1) and max(facts.ints("dilations", [1])) > 1:
        return f"it is dilated and its weight {facts.value(1).name!r} is no constant"
    return ""


@lowers("Conv", dtypes=FLOATS, why_not=_odd_conv)
def lower_conv(site: Site) -> Var:
    windows = Windows.of(site, site.shape(1)[2:])
    return _with_bias(
        site,
        site.mb.conv,
        weight=site.var(1),
        strides=windows.strides,
        pad_type="custom",
        pad=[by for pair in windows.pads for by in pair],
        dilations=windows.dilations,
        groups=site.integer("group", 1),
    )


def _odd_transpose(facts: NodeFacts) -> str:
    if not 3 <= facts.rank() <= 5:
        return f"it is in {facts.rank() - 2} dimensions; Core ML goes from 1 to 3"
    return ""


@lowers("ConvTranspose", dtypes=FLOATS, const=(1,), why_not=_odd_transpose)
def lower_conv_transpose(site: Site) -> Var:
    """Without padding, then cut or filled to what ONNX gives: so every way to say its shape is the same."""
    mb, spatial = site.mb, site.rank() - 2
    strides = site.ints("strides", [1] * spatial)
    dilations = site.ints("dilations", [1] * spatial)
    kernel = site.shape(1)[2:]
    whole = [
        (size - 1) * stride + (width - 1) * dilation + 1
        for size, stride, width, dilation in zip(site.shape()[2:], strides, kernel, dilations, strict=True)
    ]
    before = _front_pads(site, whole, strides)
    ends = [have - first - want for have, first, want in zip(whole, before, site.out_shape()[2:], strict=True)]
    cut = [by for first, last in zip(before, ends, strict=True) for by in (first, max(last, 0))]
    made = _with_bias(
        site,
        mb.conv_transpose,
        weight=site.var(1),
        strides=strides,
        pad_type="custom",
        pad=cut,
        dilations=dilations,
        groups=site.integer("group", 1),
        late=min(ends) < 0,
    )
    if min(ends) >= 0:
        return made
    more = [0, 0, 0, 0, *[by for last in ends for by in (0, max(-last, 0))]]
    made = mb.pad(x=made, pad=more, mode="constant", constant_val=site.number(0))
    return _add_bias(site, made) if site.has(2) else made


def _front_pads(site: Site, whole: Sequence[int], strides: Sequence[int]) -> list[int]:
    spatial, auto = site.rank() - 2, site.text("auto_pad", "NOTSET")
    shape = site.ints("output_shape")
    extra = site.ints("output_padding", [0] * spatial)
    if shape:
        wanted = shape[-spatial:]
    elif auto in ("SAME_UPPER", "SAME_LOWER"):
        wanted = [size * stride for size, stride in zip(site.shape()[2:], strides, strict=True)]
    else:
        return site.ints("pads", [0] * 2 * spatial)[:spatial] if auto == "NOTSET" else [0] * spatial
    total = [have + more - want for have, more, want in zip(whole, extra, wanted, strict=True)]
    return [max(by, 0) // 2 if auto == "SAME_UPPER" else max(by, 0) - max(by, 0) // 2 for by in total]


def _with_bias(site: Site, operator: "object", *, late: bool = False, **arguments: "object") -> Var:
    """MIL takes a bias only if it is constant."""
    made: Var = operator  # coremltools has no types
    if site.has(2) and site.is_const(2) and not late:
        return made(x=site.var(), bias=site.var(2), **arguments)
    made = made(x=site.var(), **arguments)
    return _add_bias(site, made) if site.has(2) and not late else made


def _add_bias(site: Site, made: Var) -> Var:
    shape = (1, -1, *[1] * (site.rank() - 2))
    bias = site.const(2)
    if bias is not None:
        return site.mb.add(x=made, y=bias.reshape(shape))
    return site.mb.add(x=made, y=site.reshape(site.var(2), (1, site.shape(2)[0], *shape[2:])))
