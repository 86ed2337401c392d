"""What Huawei's pages restrict of single operators, as far as it is recorded in `operators.json`."""

from collections.abc import Callable, Mapping
from math import prod

import onnx_ir as ir

from flagsplit.targets.cloud.ascend.facts import given, ints, numbers, sizes
from flagsplit.targets.cloud.ascend.releases import Release

DTYPES = ("bool", "float16", "float32", "int16", "int32", "int64", "int8", "uint8")
"""Element types that are taken; which operator takes which is recorded of few."""

MOST_RANK = 8
_FLOATS = ("float16", "float32")
_MOST_STRIDE, _MOST_SIDE, _MOST_WINDOW, _MOST_WIDTH = 63, 255, 256, 4096
_WHOLE = 1e-3
Rule = Callable[[ir.Node, Release], str]


def broken_rule(node: ir.Node, release: Release) -> str:
    """Why a node of the older opset is not taken; "" if nothing is known against it."""
    for value in (*node.inputs, *node.outputs):
        if value is None:
            continue
        if value.dtype is not None and value.dtype.numpy().name not in DTYPES:
            return f"{value.name!r} is {value.dtype.numpy().name}; taken are {', '.join(DTYPES)}"
        if len(sizes(value)) > MOST_RANK:
            return f"{value.name!r} has {len(sizes(value))} dimensions; {MOST_RANK} are taken"
        if 0 in sizes(value) and value.const_value is None:
            return f"{value.name!r} has no elements"
    rule = _RULES.get(node.op_type)
    return rule(node, release) if rule is not None else ""


def cpu_reason(node: ir.Node) -> str:
    """Why an Ascend runs a node on its own CPU; "" if nothing is known of it."""
    if node.op_type not in ("AveragePool", "MaxPool"):
        return ""
    window = ints(node, "kernel_shape", ())
    if max(window) > _MOST_SIDE or prod(window) > _MOST_WINDOW:
        return f"a window of {'x'.join(map(str, window))} is beyond {_MOST_SIDE} a side or {_MOST_WINDOW} in all"
    if max(ints(node, "strides", [1])) > _MOST_STRIDE:
        return f"strides beyond {_MOST_STRIDE}"
    return ""


def _of_floats(node: ir.Node) -> str:
    dtype = node.inputs[0].dtype if node.inputs[0] is not None else None
    name = dtype.numpy().name if dtype is not None else "of no known type"
    return "" if name in _FLOATS else f"{node.op_type} takes {' and '.join(_FLOATS)}, not {name}"


def _recurrent(node: ir.Node, _: Release) -> str:
    return "its page knows no layout" if node.attributes.get_int("layout", 0) else _of_floats(node)


def _max_unpool(node: ir.Node, _: Release) -> str:
    return "engines disagree on what its indices mean where the shape is given" if given(node, 2) is not None else ""


def _limits(node: ir.Node, most: Mapping[str, int]) -> str:
    for name, limit in most.items():
        if max(ints(node, name, [0])) > limit:
            return f"its {name} are beyond {limit}"
    return ""


def _width(node: ir.Node) -> str:
    width = sizes(node.inputs[0])[-1]
    return f"its input is {width} wide; {_MOST_WIDTH} are taken" if width > _MOST_WIDTH else ""


def _conv(node: ir.Node, _: Release) -> str:
    if len(sizes(node.inputs[0])) not in (4, 5):
        return "convolutions are over one to three dimensions"
    if max(sizes(given(node, 1))[2:], default=0) > _MOST_SIDE:
        return f"its kernel is beyond {_MOST_SIDE} a side"
    most = {"strides": _MOST_STRIDE, "dilations": _MOST_SIDE, "pads": _MOST_SIDE}
    return _of_floats(node) or _limits(node, most) or _width(node)


def _conv_transpose(node: ir.Node, release: Release) -> str:
    if release.opset < 14:
        if len(sizes(node.inputs[0])) != 4:
            return "transposed convolutions are over one or two dimensions"
        if max(ints(node, "dilations", [1])) > 1:
            return "transposed convolutions have no dilations"
        if node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
            return "transposed convolutions have no auto_pad"
    elif len(sizes(node.inputs[0])) not in (4, 5):
        return "transposed convolutions are over one to three dimensions"
    return _of_floats(node)


def _pool(node: ir.Node, _: Release) -> str:
    if len(sizes(node.inputs[0])) != 4:
        return "pools are over one or two dimensions"
    if max(ints(node, "dilations", [1])) > 1:
        return "pools have no dilations"
    if node.attributes.get_int("storage_order", 0):
        return "pools have no storage_order"
    return _of_floats(node) or _width(node)


def _mat_mul(node: ir.Node, _: Release) -> str:
    if any(len(sizes(value)) > 6 for value in node.inputs):
        return "products are of at most 6 dimensions"
    return _of_floats(node)


def _resize(node: ir.Node, _: Release) -> str:
    mode, rank = node.attributes.get_string("mode", "nearest"), len(sizes(node.inputs[0]))
    places = node.attributes.get_string("coordinate_transformation_mode", "half_pixel")
    if mode not in ("nearest", "linear"):
        return f"mode {mode} is not taken"
    if rank not in (4, 5):
        return f"pictures have 4 or 5 dimensions, not {rank}"
    if rank == 5 and (mode != "linear" or places not in ("align_corners", "pytorch_half_pixel")):
        return "5 dimensions are taken with mode linear and align_corners or pytorch_half_pixel only"
    for index in (1, 2, 3):
        value = given(node, index)
        if value is not None and value.const_value is None:
            return "its sizes are not known when it is compiled"
    if places == "align_corners" and not _whole(node):
        return "its scales give no whole sizes: engines disagree then on what aligned corners are"
    return _of_floats(node)


def _whole(node: ir.Node) -> bool:
    scales = numbers(node, 2, "scales")
    if scales is None:
        return True
    made = [size * float(scale) for size, scale in zip(sizes(node.inputs[0]), scales, strict=True)]
    return all(abs(size - round(size)) < _WHOLE for size in made)


_RULES: Mapping[str, Rule] = {
    "AveragePool": _pool,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "GRU": _recurrent,
    "LSTM": _recurrent,
    "MatMul": _mat_mul,
    "MaxPool": _pool,
    "MaxUnpool": _max_unpool,
    "Resize": _resize,
}
RESTRICTED = frozenset(_RULES)
"""The operators of which restrictions are recorded."""
