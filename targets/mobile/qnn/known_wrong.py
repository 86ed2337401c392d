"""What the compiler takes and the emulator computes wrongly, beyond operators and types: rules on attributes and sizes.

Each was met by a node test of the onnx package. What is rewritten in place of being refused is in `prepare`.
"""

from collections.abc import Callable, Mapping

import onnx_ir as ir

_QUANTIZED = "activations quantized on the fly are taken as floating-point products only; build with --float-products"
_PADDED = ("SAME_UPPER", "SAME_LOWER")


def wrong_reason(node: ir.Node) -> str:
    """Why a node would come out wrong; "" if it is not known to."""
    rule = _RULES.get(node.op_type)
    return rule(node) if rule is not None and not node.domain else ""


def _average_pool(node: ir.Node) -> str:
    """`prepare` rewrites averages with paddings that are written out; these are left."""
    if node.attributes.get_int("ceil_mode", 0) != 0:
        return "AveragePool with ceil_mode=1: some give wrong numbers on the emulator"
    if node.attributes.get_string("auto_pad", "NOTSET") in _PADDED:
        return "AveragePool with auto_pad: some give wrong numbers on the emulator"
    return ""


def _lp_pool(node: ir.Node) -> str:
    padded = node.attributes.get_string("auto_pad", "NOTSET") in _PADDED
    return "LpPool with auto_pad: the emulator ends its process on some" if padded else ""


def _grid_sample(node: ir.Node) -> str:
    nearest = node.attributes.get_string("mode", "linear") == "nearest"
    return "GridSample with mode=nearest: rounds to another neighbor than the standard says" if nearest else ""


def _resize(node: ir.Node) -> str:
    mode, given, made = node.attributes.get_string("mode", "nearest"), node.inputs[0], node.outputs[0]
    if mode == "cubic" and node.attributes.get_int("exclude_outside", 0) != 0:
        return "Resize with exclude_outside=1: gives wrong numbers on the emulator"
    if given is None or given.shape is None or made.shape is None:
        return ""
    sizes = [(a, b) for a, b in zip(given.shape, made.shape, strict=True) if isinstance(a, int) and isinstance(b, int)]
    if mode != "cubic" and any(b < a for a, b in sizes):
        return f"Resize with mode={mode} to a smaller size: gives wrong numbers on the emulator"
    if mode == "nearest" and any(b % a for a, b in sizes if a):
        return "Resize with mode=nearest to no multiple of the size: gives wrong numbers on the emulator"
    return ""


_RULES: Mapping[str, Callable[[ir.Node], str]] = {
    "AveragePool": _average_pool,
    "DynamicQuantizeLinear": lambda _: _QUANTIZED,
    "GridSample": _grid_sample,
    "IsNaN": lambda _: "the NPU does not carry NaN",
    "LpPool": _lp_pool,
    "MatMulInteger": lambda _: _QUANTIZED,
    "OneHot": lambda _: "OneHot of negative indices, or of those out of range, gives wrong numbers on the emulator",
    "Resize": _resize,
    "Tan": lambda _: "Tan gives wrong numbers near its poles, where fp16 tells few arguments apart",
}
