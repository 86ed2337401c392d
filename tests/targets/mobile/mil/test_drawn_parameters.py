"""Parameters drawn at random for the operators with the most of them, against ONNX Runtime and NumPy.

The operators are called as the executor calls them, without a package around each.
"""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.targets.mobile.mil.oracle import close, onnx_op

from flagsplit.targets.mobile.mil.arguments import IOS18, Arguments
from flagsplit.targets.mobile.mil.ops import OPERATORS
from flagsplit.targets.mobile.mil.types import TensorType

Array = np.ndarray[Any, Any]
FEW = settings(max_examples=40, deadline=None, derandomize=True)


def call(kind: str, shape: tuple[int, ...] | None = None, **given: Any) -> Array:
    """One operator on arrays, numbers, lists and strings; its output may have any shape of the rank of `shape`."""
    values = {
        name: (np.asarray(value, np.int32 if isinstance(value, list) else None),) for name, value in given.items()
    }
    types = {name: (TensorType(_name(array), array.shape),) for name, (array,) in values.items()}
    first = next(iter(values.values()))[0]
    rank = first.ndim if shape is None else len(shape)
    outputs = (TensorType(_name(first), shape or (None,) * rank),)
    result: Any = OPERATORS[kind](Arguments(kind, values, types, outputs, lambda _, __: (), IOS18))
    return np.asarray(result)


def _name(array: Array) -> str:
    return "string" if array.dtype.kind == "U" else str(array.dtype.name)


def _floats(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@st.composite
def windows(draw: st.DrawFn) -> dict[str, Any]:
    """Sizes, strides, dilations and pads over one to three axes, where the window fits."""
    axes = draw(st.integers(1, 3))
    some = st.lists(st.integers(1, 3), min_size=axes, max_size=axes)
    kernel, strides, dilations = draw(some), draw(some), draw(some)
    pads = draw(st.lists(st.integers(0, 2), min_size=2 * axes, max_size=2 * axes))
    spare = draw(st.lists(st.integers(0, 4), min_size=axes, max_size=axes))
    spatial = [
        max((k - 1) * d + 1 + more - pads[2 * at] - pads[2 * at + 1], 1)
        for at, (k, d, more) in enumerate(zip(kernel, dilations, spare, strict=True))
    ]
    return {"kernel": kernel, "strides": strides, "dilations": dilations, "pad": pads, "spatial": spatial}


@FEW
@given(
    window=windows(),
    batch=st.integers(1, 2),
    groups=st.integers(1, 3),
    depth=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_conv_and_its_transpose(window: dict[str, Any], batch: int, groups: int, depth: int, seed: int) -> None:
    x = _floats(seed, batch, groups * depth, *window["spatial"])
    given_ = {"strides": window["strides"], "dilations": window["dilations"], "pad": window["pad"]}
    attributes = {
        "strides": window["strides"],
        "dilations": window["dilations"],
        "pads": [*window["pad"][::2], *window["pad"][1::2]],
        "group": groups,
    }
    weight, bias = _floats(seed + 1, 2 * groups, depth, *window["kernel"]), _floats(seed + 2, 2 * groups)
    came = call("conv", x=x, weight=weight, bias=bias, pad_type="custom", groups=groups, **given_)
    close(came, onnx_op("Conv", x, weight, bias, **attributes)[0], 1e-4)
    weight = _floats(seed + 3, groups * depth, 2, *window["kernel"])
    sizes = [
        (size - 1) * s + (k - 1) * d + 1 - window["pad"][2 * at] - window["pad"][2 * at + 1]
        for at, (size, s, k, d) in enumerate(
            zip(window["spatial"], window["strides"], window["kernel"], window["dilations"], strict=True)
        )
    ]
    if min(sizes) > 0:
        came = call("conv_transpose", x=x, weight=weight, bias=bias, pad_type="custom", groups=groups, **given_)
        close(came, onnx_op("ConvTranspose", x, weight, bias, **attributes)[0], 1e-4)


@FEW
@given(window=windows(), ceil=st.booleans(), seed=st.integers(0, 99))
def test_pools(window: dict[str, Any], ceil: bool, seed: int) -> None:
    axes = len(window["kernel"])
    kernel = [max(size, 2) for size in window["kernel"]]
    # Pads below the kernel, as both sides demand; of equal sizes on both sides for ceil mode.
    pad = [min(window["pad"][2 * (at // 2)], 1) for at in range(2 * axes)]
    spatial = [size + 3 for size in window["spatial"]]
    x = _floats(seed, 1, 2, *spatial)
    # Without pads, the documented size in ceil mode counts a window that starts beyond the input.
    reached = [
        pad[2 * at] > 0 or math.ceil((size - k) / s) * s < size
        for at, (size, k, s) in enumerate(zip(spatial, kernel, window["strides"], strict=True))
    ]
    ceil = ceil and all(reached)
    given_: dict[str, Any] = {"kernel_sizes": kernel, "strides": window["strides"], "pad": pad, "ceil_mode": ceil}
    attributes = {
        "kernel_shape": kernel,
        "strides": window["strides"],
        "pads": [*pad[::2], *pad[1::2]],
        "ceil_mode": int(ceil),
    }
    close(call("max_pool", x=x, pad_type="custom", **given_), onnx_op("MaxPool", x, **attributes)[0])
    for excluded in (False, True):
        came = call("avg_pool", x=x, pad_type="custom", exclude_padding_from_average=excluded, **given_)
        close(came, onnx_op("AveragePool", x, count_include_pad=int(not excluded), **attributes)[0])


@st.composite
def slices(draw: st.DrawFn) -> tuple[tuple[int, ...], list[tuple[int, int, int, bool, bool]]]:
    shape = tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=4)))
    bound = st.integers(-7, 7)
    step = st.sampled_from([-3, -2, -1, 1, 2, 3])
    return shape, [draw(st.tuples(bound, bound, step, st.booleans(), st.booleans())) for _ in shape]


@FEW
@given(drawn=slices())
def test_slices(drawn: tuple[tuple[int, ...], list[tuple[int, int, int, bool, bool]]]) -> None:
    shape, cuts = drawn
    x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    begin, end, stride, free_begin, free_end = zip(*cuts, strict=True)
    came = call(
        "slice_by_index",
        x=x,
        begin=list(begin),
        end=list(end),
        stride=list(stride),
        begin_mask=np.array(free_begin),
        end_mask=np.array(free_end),
    )
    wanted = x[tuple(slice(None if fb else b, None if fe else e, s) for b, e, s, fb, fe in cuts)]
    close(came, wanted)


@FEW
@given(
    sizes=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    wanted=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    mode=st.sampled_from([("UNALIGN_CORNERS", "half_pixel"), ("DEFAULT", "asymmetric")]),
)
def test_resized(sizes: tuple[int, int], wanted: tuple[int, int], mode: tuple[str, str]) -> None:
    x = _floats(sum(sizes), 1, 2, *sizes)
    given_: dict[str, Any] = {"target_size_height": wanted[0], "target_size_width": wanted[1], "sampling_mode": mode[0]}
    attributes: dict[str, Any] = {"mode": "linear", "coordinate_transformation_mode": mode[1]}
    (expected,) = onnx_op("Resize", x, None, None, np.array([1, 2, *wanted]), **attributes)
    close(call("resize_bilinear", x=x, **given_), expected)


@FEW
@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    axis=st.integers(-4, 3),
    largest=st.booleans(),
    seed=st.integers(0, 99),
)
def test_sorted_and_summed(shape: list[int], axis: int, largest: bool, seed: int) -> None:
    axis = axis % len(shape)
    x = np.random.default_rng(seed).permutation(np.prod(shape)).astype(np.float32).reshape(shape)
    order = call("argsort", x=x, axis=axis, ascending=not largest)
    close(order, np.argsort(-x if largest else x, axis=axis).astype(np.int32))
    close(
        call("cumsum", x=x, axis=axis, reverse=largest), onnx_op("CumSum", x, np.array(axis), reverse=int(largest))[0]
    )


@pytest.mark.parametrize("mode", ["constant", "reflect", "replicate"])
@FEW
@given(
    shape=st.lists(st.integers(2, 4), min_size=1, max_size=4),
    pads=st.lists(st.integers(0, 1), min_size=8, max_size=8),
)
def test_padded(mode: str, shape: list[int], pads: list[int]) -> None:
    x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    pads = pads[: 2 * len(shape)]
    given_: dict[str, Any] = {"constant_val": np.float32(2)} if mode == "constant" else {}
    value = np.array(2, np.float32) if mode == "constant" else None
    wanted = onnx_op("Pad", x, np.array([*pads[::2], *pads[1::2]]), value, mode={"replicate": "edge"}.get(mode, mode))
    close(call("pad", x=x, pad=pads, mode=mode, **given_), wanted[0])
