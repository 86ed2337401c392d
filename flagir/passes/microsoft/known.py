"""What is known of values while vendor operators are being rewritten: type and rank, node by node.

Shape inference of a whole graph stops at the first operator that it does not know. Here it runs one node at a time, so
that it sees what each rewrite wrote. The result is kept beside the graph; the graph itself is not touched.
"""

import onnx
import onnx_ir as ir

from flagsplit.flagir.opset import OPSET, STANDARD_DOMAINS
from flagsplit.flagir.types import dims_of

_SMALL_BYTES = 1024


class Known:
    """Types of values, as far as they can be told."""

    def __init__(self) -> None:
        self._types: dict[ir.Value, onnx.TypeProto] = {}
        self._seen: set[ir.Node] = set()

    def dtype(self, value: ir.Value) -> ir.DataType | None:
        """Element type of a tensor."""
        kind = self._of(value).tensor_type
        return ir.DataType(kind.elem_type) if kind.elem_type else None

    def dims(self, value: ir.Value) -> tuple[int | None, ...] | None:
        """Sizes of a tensor, None for one that is not known; None if not even the rank is."""
        kind = self._of(value).tensor_type
        if not kind.HasField("shape"):
            return None
        return tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim)

    def has_seen(self, node: ir.Node) -> bool:
        """Whether the results of a node were taken in."""
        return node in self._seen

    def learn(self, node: ir.Node) -> None:
        """Take in the results of a standard node."""
        self._seen.add(node)
        if node.op_type == "If" and not node.domain:
            self._learn_if(node)
        elif node.op_type == "Loop" and not node.domain:
            self._learn_loop(node)
        elif node.domain in STANDARD_DOMAINS:
            self._learn_plain(node)

    def enter(self, node: ir.Node) -> None:
        """Before the bodies of a node are walked: a loop's state begins with what it is given."""
        if node.op_type == "Loop" and not node.domain:
            for value, first in zip(node.attributes["body"].as_graph().inputs[2:], node.inputs[2:], strict=False):
                if value.dtype is None and first is not None:
                    self._types[value] = self._of(first)

    def _of(self, value: ir.Value) -> onnx.TypeProto:
        found = self._types.get(value)
        if found is None:
            found = self._types[value] = _declared(value)
        return found

    def _adopt(self, value: ir.Value, kind: onnx.TypeProto) -> None:
        if kind.WhichOneof("value") is None or (kind.HasField("tensor_type") and not kind.tensor_type.elem_type):
            return
        before = self._of(value).tensor_type
        if not kind.tensor_type.HasField("shape") and before.HasField("shape"):
            kind.tensor_type.shape.CopyFrom(before.shape)
        self._types[value] = kind

    def _learn_plain(self, node: ir.Node) -> None:
        inputs = [value for value in node.inputs if value is not None and value.name]
        tensors = {value.name or "": ir.convenience.get_const_tensor(value) for value in inputs}
        small = {
            name: ir.serde.serialize_tensor(tensor)
            for name, tensor in tensors.items()
            if tensor is not None and tensor.nbytes <= _SMALL_BYTES
        }
        try:
            schema = onnx.defs.get_schema(node.op_type, OPSET, node.domain)
            proto = ir.serde.serialize_node(node)
            types = {value.name or "": self._of(value) for value in inputs}
            found = onnx.shape_inference.infer_node_outputs(schema, proto, types, small)
        except Exception:  # noqa: BLE001 - the library's errors have no common base; what it cannot tell stays unknown
            return
        for value in node.outputs:
            if value.name in found:
                self._adopt(value, found[value.name])

    def _learn_if(self, node: ir.Node) -> None:
        branches = [node.attributes[name].as_graph().outputs for name in ("then_branch", "else_branch")]
        for value, one, other in zip(node.outputs, *branches, strict=False):
            self._adopt(value, _common(self._of(one), self._of(other)))

    def _learn_loop(self, node: ir.Node) -> None:
        results = node.attributes["body"].as_graph().outputs[1:]
        states = len(node.inputs) - 2
        for index, (value, result) in enumerate(zip(node.outputs, results, strict=False)):
            kind = onnx.TypeProto()
            kind.CopyFrom(self._of(result))
            if index >= states and kind.tensor_type.HasField("shape"):
                kind.tensor_type.shape.dim.insert(0, onnx.TensorShapeProto.Dimension())
            self._adopt(value, kind)


def _declared(value: ir.Value) -> onnx.TypeProto:
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is not None:
        return onnx.helper.make_tensor_type_proto(int(tensor.dtype), dims_of(tensor))
    return ir.serde.serialize_value(value).type if value.type is not None else onnx.TypeProto()


def _common(one: onnx.TypeProto, other: onnx.TypeProto) -> onnx.TypeProto:
    """What holds on both branches."""
    if one.tensor_type.elem_type != other.tensor_type.elem_type or not one.tensor_type.elem_type:
        return onnx.TypeProto()
    shapes = [kind.tensor_type.shape.dim if kind.tensor_type.HasField("shape") else None for kind in (one, other)]
    if shapes[0] is None or shapes[1] is None or len(shapes[0]) != len(shapes[1]):
        return onnx.helper.make_tensor_type_proto(one.tensor_type.elem_type, None)
    dims = [a.dim_value if a.HasField("dim_value") and a == b else None for a, b in zip(*shapes, strict=True)]
    return onnx.helper.make_tensor_type_proto(one.tensor_type.elem_type, dims)
