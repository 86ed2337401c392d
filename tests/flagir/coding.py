"""A codec by itself: what it makes of an array, and how near that comes back."""

import functools

import numpy as np
import onnx
import onnx_ir as ir
from tests.flagir.coded_graphs import FLOAT, place
from tests.flagir.models import Array, canonical, parse, run

from flagsplit.flagir import ValueType
from flagsplit.flagir.codecs import BoundaryCut, apply_codecs, encoded_types
from flagsplit.flagir.codecs.functions import DOMAIN, function


@functools.cache
def coder(name: str, rank: int) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """A model that encodes and one that decodes tensors of a rank."""
    form = f"float[{','.join('abcde'[:rank])}]"
    proto = parse(f"g ({form} x) => ({form} y) {{ h = Neg(x) y = Neg(h) }}")
    for info in (*proto.graph.input, *proto.graph.output):
        info.type.tensor_type.shape.SetInParent()
    model = canonical(proto)
    place(model, [0, 1], 2)
    apply_codecs(model, [BoundaryCut("h", 0, 1, name)])
    nodes = {node.op_type: ir.serde.serialize_node(node) for node in model.graph}
    halves = []
    for way in ("Encode", "Decode"):
        node = next(node for op, node in nodes.items() if op.startswith(way))
        node.ClearField("device_configurations")
        values = {v.name: v for v in ir.convenience.create_value_mapping(model.graph).values()}
        graph = onnx.helper.make_graph(
            [node],
            way,
            [ir.serde.serialize_value(values[each]) for each in node.input],
            [ir.serde.serialize_value(values[each]) for each in node.output],
        )
        imports = [onnx.helper.make_opsetid("", 23), onnx.helper.make_opsetid(DOMAIN, 1)]
        body = ir.serde.serialize_function(function(node.op_type))
        halves.append(onnx.helper.make_model(graph, functions=[body], opset_imports=imports, ir_version=11))
        onnx.checker.check_model(halves[-1], full_check=True)
    return halves[0], halves[1]


def there_and_back(name: str, array: Array) -> tuple[dict[str, Array], Array]:
    """The encoded tensors by role, and what comes back."""
    encoder, decoder = coder(name, array.ndim)
    made = run(encoder, {"h": array})
    feed = dict(zip((info.name for info in decoder.graph.input), made, strict=True))
    (back,) = run(decoder, feed)
    return dict(zip(encoded_types(name, ValueType(FLOAT, array.shape)), made, strict=True)), back


def ranges(name: str, array: Array) -> Array:
    """The width of the range that each element belongs to, of the array's shape."""
    lead = 0 if name == "u8" else 2 if array.ndim > 2 else max(array.ndim - 1, 0)
    rest = tuple(range(lead, array.ndim))
    high, low = array.max(axis=rest, keepdims=True, initial=0), array.min(axis=rest, keepdims=True, initial=0)
    return np.asarray(np.broadcast_to(high.astype(np.float64) - low, array.shape))


def assert_near(name: str, back: Array, array: Array) -> None:
    """Within half a step of the range, or within the rounding of half precision."""
    if name == "fp16":
        np.testing.assert_array_equal(back, array.astype(np.float16).astype(np.float32))
        return
    levels = 15 if name == "u4_per_channel" else 255
    step = ranges(name, array) / levels
    assert (np.abs(back.astype(np.float64) - array) <= step * (0.5 + 1e-4) + 1e-37).all()
