"""FlagIR's opset in words of an older one, node by node.

Most later definitions admit more types and attributes and nothing else: a node that uses none of them is the same in
the older opset. What moved between attributes and inputs, or has other names, is written as it was; the rest is
refused.
"""

from collections.abc import Callable, Mapping
from math import prod

import numpy as np
import onnx
import onnx_ir as ir

from flagsplit.flagir.newer import foreign_types
from flagsplit.flagir.opset import OPSET
from flagsplit.targets.cloud.ascend.facts import NotTakenError, given, ints, numbers, put_constant, set_ints, sizes

_INTERPOLATIONS = {"linear": "bilinear", "nearest": "nearest", "cubic": "bicubic"}
"""Modes of GridSample, by what they are called since opset 20."""


def into_opset(model: ir.Model, opset: int, ir_version: int) -> None:
    """Write a model of FlagIR's opset and fixed shapes in an older one, in place.

    Args:
        model: every node is of an operator that the older opset has.
        opset: 13 or newer.
        ir_version: of the file.

    Raises:
        NotTakenError: a node says what the older opset cannot.
    """
    for node in model.graph:
        schema = onnx.defs.get_schema(node.op_type, opset)
        if onnx.defs.get_schema(node.op_type, OPSET).since_version > schema.since_version:
            rewrite = _REWORDED.get(node.op_type)
            if rewrite is not None:
                rewrite(node, opset)
            _drop_defaults(node, schema)
            _check(node, schema, opset)
    model.graph.opset_imports[""] = opset
    model.ir_version = ir_version
    context = onnx.checker.C.CheckerContext()
    context.ir_version, context.opset_imports = ir_version, {"": opset}
    for node in model.graph:
        try:
            onnx.checker.check_node(ir.serde.serialize_node(node), context)
        except onnx.checker.ValidationError as error:
            raise NotTakenError(node, f"opset {opset} does not have it: {' '.join(str(error).split())[:200]}") from None
    for name, value in list(model.graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del model.graph.initializers[name]


def _drop_defaults(node: ir.Node, schema: onnx.defs.OpSchema) -> None:
    """Leave out attributes that the older definition lacks and that say what it does anyway."""
    newer = onnx.defs.get_schema(node.op_type, OPSET)
    for name in set(node.attributes) - set(schema.attributes):
        default = newer.attributes[name].default_value
        stands_for = onnx.helper.get_attribute_value(default) if default.type else None
        stands_for = stands_for.decode() if isinstance(stands_for, bytes) else stands_for
        if node.attributes[name].value == stands_for:
            del node.attributes[name]


def _check(node: ir.Node, schema: onnx.defs.OpSchema, opset: int) -> None:
    odd = {f"its attribute {name}" for name in set(node.attributes) - set(schema.attributes)}
    odd |= {text.removeprefix("tensor(").removesuffix(")") for text in foreign_types(node, schema)}
    if len(node.inputs) > schema.max_input or len(node.outputs) > schema.max_output:
        odd.add("its number of inputs or outputs")
    if odd:
        raise NotTakenError(node, f"opset {opset} does not have {', '.join(sorted(odd))} of {node.op_type}")


def _reduce(node: ir.Node, _: int) -> None:
    """Axes were an attribute."""
    axes = numbers(node, 1, "axes")
    if axes is None and node.attributes.get_int("noop_with_empty_axes", 0) != 0:
        raise NotTakenError(node, "it reduces nothing, as it has no axes")
    node.resize_inputs(1)
    node.attributes.pop("noop_with_empty_axes", None)
    if axes is not None:
        set_ints(node, "axes", axes.tolist())


def _split(node: ir.Node, _: int) -> None:
    """Sizes were always spelled out where they were not equal."""
    if node.attributes.pop("num_outputs", None) is not None:
        axis = node.attributes.get_int("axis", 0)
        put_constant(node, 1, "sizes", np.array([sizes(value)[axis] for value in node.outputs], np.int64))


def _resize(node: ir.Node, _: int) -> None:
    """Scales and sizes were of all dimensions."""
    axes = ints(node, "axes", ())
    if node.attributes.get_string("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise NotTakenError(node, "it keeps the aspect ratio, by a policy of opset 18")
    if node.attributes.get_string("coordinate_transformation_mode", "") == "half_pixel_symmetric":
        raise NotTakenError(node, "half_pixel_symmetric is of opset 19")
    if not axes:
        return
    if given(node, 1) is not None:
        raise NotTakenError(node, "it has a region of interest and axes")
    shape, made = sizes(node.inputs[0]), sizes(node.outputs[0])
    axes = [axis % len(shape) for axis in axes]
    scales = numbers(node, 2, "scales")
    if scales is not None:
        full = np.ones(len(shape), np.float32)
        full[axes] = scales
        put_constant(node, 2, "scales", full)
    else:
        put_constant(node, 3, "sizes", np.array(made, np.int64))
    del node.attributes["axes"]


def _pad(node: ir.Node, _: int) -> None:
    """Pads were of all dimensions."""
    if node.attributes.get_string("mode", "constant") == "wrap":
        raise NotTakenError(node, "mode wrap is of opset 19")
    axes, rank = numbers(node, 3, "axes"), len(sizes(node.inputs[0]))
    if axes is not None:
        pads = numbers(node, 1, "pads")
        full = np.zeros((2, rank), np.int64)
        if pads is not None:
            full[:, [int(axis) % rank for axis in axes]] = pads.reshape(2, -1)
        put_constant(node, 1, "pads", full.reshape(-1))
    if len(node.inputs) > 3:
        node.resize_inputs(3)


def _grid_sample(node: ir.Node, _: int) -> None:
    """Interpolations had names of two dimensions."""
    if len(sizes(node.inputs[0])) != 4:
        raise NotTakenError(node, "more than two spatial dimensions are of opset 20")
    mode = _INTERPOLATIONS[node.attributes.get_string("mode", "linear")]
    node.attributes["mode"] = ir.AttrString("mode", mode)


def _pool(node: ir.Node, _: int) -> None:
    """There were no dilations."""
    if prod(ints(node, "dilations", ())) == 1:
        node.attributes.pop("dilations", None)


def _roi_align(node: ir.Node, opset: int) -> None:
    """Regions were not moved by half a pixel, and nothing could be said of it."""
    if opset < 16:
        if node.attributes.get_string("coordinate_transformation_mode", "half_pixel") != "output_half_pixel":
            raise NotTakenError(node, "half_pixel is of opset 16")
        del node.attributes["coordinate_transformation_mode"]


def _reshape(node: ir.Node, _: int) -> None:
    """A size of zero was always that of the input."""
    shape = numbers(node, 1, "sizes")
    if shape is None or 0 not in shape:
        node.attributes.pop("allowzero", None)


_REDUCTIONS = "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSumSquare"
_REWORDED: Mapping[str, Callable[[ir.Node, int], None]] = {
    "AveragePool": _pool,
    "GridSample": _grid_sample,
    "LpPool": _pool,
    "Pad": _pad,
    "Reshape": _reshape,
    "Resize": _resize,
    "RoiAlign": _roi_align,
    "Split": _split,
    **dict.fromkeys(_REDUCTIONS.split(), _reduce),
}
