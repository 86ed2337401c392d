"""GridSample: the pixels around each place are gathered, weighted and added."""

import math
from collections.abc import Callable
from itertools import product

import numpy as np
import onnx_ir as ir

from flagsplit.targets.tflite.builder import Builder
from flagsplit.targets.tflite.program import Refused, Tensor, nchw, nhwc

_CUBIC = -0.75
_Taps = list[tuple[Tensor, Tensor | None]]
"""Along one axis: which pixels, and what each counts, both [points, 1]; no weight is 1."""


def lower(builder: Builder, node: ir.Node) -> None:
    """As one row for each pixel, of all channels."""
    x, grid = builder.take(node, 0), builder.take(node, 1)
    if x.dtype != "float32":
        raise Refused(f"samples float32, came {x.dtype}")
    if grid.shape[-1] != x.rank - 2:
        raise Refused(f"samples places of {x.rank - 2} coordinates, came {grid.shape[-1]}")
    batch, channels, *sizes = x.shape
    points = math.prod(grid.shape[:-1])
    rows = builder.reshape(builder.transpose(x, nhwc(x.rank)), (batch * math.prod(sizes), channels))
    first = np.repeat(np.arange(batch) * math.prod(sizes), points // batch).astype(np.int32)[:, None]
    along = [_axis(builder, node, grid, at, size, points) for at, size in enumerate(sizes)]
    steps = [math.prod(sizes[at + 1 :]) for at in range(len(sizes))]
    total = None
    for taps in product(*along):
        place: Tensor = builder.const(first)
        weight: Tensor | None = None
        for (index, counts), step in zip(taps, steps, strict=True):
            place = builder.add(place, builder.mul(index, step))
            weight = _times(builder, weight, counts)
        found = builder.gather(rows, builder.reshape(place, (points,)), 0)
        found = found if weight is None else builder.mul(found, weight)
        total = found if total is None else builder.add(total, found)
    assert total is not None
    builder.give(node, builder.transpose(builder.reshape(total, (*grid.shape[:-1], channels)), nchw(x.rank)))


def _times(builder: Builder, x: Tensor | None, y: Tensor | None) -> Tensor | None:
    return builder.mul(x, y) if x is not None and y is not None else y if x is None else x


def _axis(builder: Builder, node: ir.Node, grid: Tensor, at: int, size: int, points: int) -> _Taps:
    """The pixels that count along one axis; a grid has its coordinates in the other order, from -1 to 1."""
    raw = builder.cut(grid, grid.rank - 1, grid.shape[-1] - 1 - at, 1)
    up = builder.add(builder.reshape(raw, (points, 1)), 1.0)
    corners = bool(node.attributes.get_int("align_corners", 0))
    place = (
        builder.mul(builder.mul(up, 0.5), float(size - 1))
        if corners
        else builder.mul(builder.sub(builder.mul(up, float(size)), 1.0), 0.5)
    )
    padding, mode = node.attributes.get_string("padding_mode", "zeros"), node.attributes.get_string("mode", "linear")
    into = _INTO[padding]
    # As PyTorch and ONNX Runtime have it: the curve goes on beyond the border.
    inside = place if (mode, padding) == ("cubic", "border") else into(builder, place, size, corners)[0]
    if mode not in _WEIGHTS:
        raise Refused(f"samples by {', '.join(_WEIGHTS)}, came {mode!r}")
    found: _Taps = []
    for whole, weight in _WEIGHTS[mode](builder, inside):
        index, counts = into(builder, whole, size, corners)
        known = builder.cast(_clamped(builder, index, size), "int32")
        known = _clamped(builder, known, size)  # what is no number may have become any
        found.append((known, _times(builder, weight, counts)))
    return found


def _clamped(builder: Builder, x: Tensor, size: int) -> Tensor:
    return builder.minimum(builder.maximum(x, 0), size - 1)


def _zeros(builder: Builder, x: Tensor, size: int, corners: bool) -> tuple[Tensor, Tensor | None]:  # noqa: ARG001
    """What lies outside counts nothing."""
    low, high = builder.compare("GREATER_EQUAL", x, 0.0), builder.compare("LESS_EQUAL", x, float(size - 1))
    return x, builder.cast(builder.binary("LOGICAL_AND", low, high), "float32")


def _border(builder: Builder, x: Tensor, size: int, corners: bool) -> tuple[Tensor, Tensor | None]:  # noqa: ARG001
    return _clamped(builder, x, size), None


def _reflection(builder: Builder, x: Tensor, size: int, corners: bool) -> tuple[Tensor, Tensor | None]:
    """To and fro between the first and the last pixel, or between the edges of the picture."""
    low, width = (0.0, float(size - 1)) if corners else (-0.5, float(size))
    if not width:
        return builder.mul(x, 0.0), None
    away = builder.unary("ABS", builder.sub(x, low))
    turned = builder.binary("FLOOR_MOD", away, builder.like(2 * width, away))
    back = builder.unary("ABS", builder.sub(turned, width))
    return builder.sub(builder.like(low + width, back), back), None


_INTO: dict[str, Callable[[Builder, Tensor, int, bool], tuple[Tensor, Tensor | None]]] = {
    "zeros": _zeros,
    "border": _border,
    "reflection": _reflection,
}


def _nearest(builder: Builder, place: Tensor) -> _Taps:
    return [(builder.unary("ROUND", place), None)]


def _linear(builder: Builder, place: Tensor) -> _Taps:
    low = builder.unary("FLOOR", place)
    part = builder.sub(place, low)
    return [(low, builder.sub(builder.like(1.0, part), part)), (builder.add(low, 1.0), part)]


def _cubic(builder: Builder, place: Tensor) -> _Taps:
    """By the cubic convolution of Keys."""
    low = builder.unary("FLOOR", place)
    part = builder.sub(place, low)
    rest = builder.sub(builder.like(1.0, part), part)

    def polynomial(x: Tensor, *factors: float) -> Tensor:
        made = builder.add(builder.mul(x, factors[0]), factors[1])
        for each in factors[2:]:
            made = builder.add(builder.mul(made, x), each)
        return made

    far = (_CUBIC, -5 * _CUBIC, 8 * _CUBIC, -4 * _CUBIC)
    near = (_CUBIC + 2, -(_CUBIC + 3), 0.0, 1.0)
    return [
        (builder.sub(low, 1.0), polynomial(builder.add(part, 1.0), *far)),
        (low, polynomial(part, *near)),
        (builder.add(low, 1.0), polynomial(rest, *near)),
        (builder.add(low, 2.0), polynomial(builder.add(rest, 1.0), *far)),
    ]


_WEIGHTS: dict[str, Callable[[Builder, Tensor], _Taps]] = {"nearest": _nearest, "linear": _linear, "cubic": _cubic}
