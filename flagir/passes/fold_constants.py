"""Evaluate what depends on constants alone, so that no tier computes it again at every request."""

import logging
import math
import warnings

import onnx
import onnx_ir as ir
from onnxscript import optimizer

from flagsplit.flagir.opset import OPSET
from flagsplit.flagir.types import dims_of

_MAX_FOLDED_ELEMENTS = 8 << 20
_SMALL_BYTES = 1024
_HIDDEN = "flagir.hidden"


class FoldConstants(ir.passes.InPlacePass):
    """Mutates. onnxscript's folder with limits by which large weights stay where they are mapped.

    Inputs and results over 8 Mi elements are left alone: the engine folds those when it loads the segment.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fold in place."""
        log = logging.getLogger("onnxscript.optimizer")
        level = log.level
        log.setLevel(logging.ERROR)
        _hide(model)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # NumPy's, for an overflow that the model's own constants contain
                result = optimizer.fold_constants(
                    model,
                    input_size_limit=_MAX_FOLDED_ELEMENTS,
                    output_size_limit=_MAX_FOLDED_ELEMENTS,
                    should_fold=_may_fold,
                )
        finally:
            log.setLevel(level)
            _show(model)
        return ir.passes.PassResult(model, bool(result.modified))


def _hide(model: ir.Model) -> None:
    """Keep from the folder what it gets wrong.

    It makes a `CastLike` that does not saturate a `Cast` that does, and breaks on sizes that it does not know.
    """
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        unsaturated = node.op_type == "CastLike" and not node.attributes.get_int("saturate", 1)
        if not node.domain and (unsaturated or node.op_type == "SplitToSequence"):
            node.domain = _HIDDEN


def _show(model: ir.Model) -> None:
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.domain == _HIDDEN:
            node.domain = ""


def _may_fold(node: ir.Node) -> bool | None:
    """False where the result is too large: the folder itself looks only when it has computed it."""
    if node.op_type == "Identity":
        return False  # a graph output that is constant keeps a node of its own
    inputs = {value.name: value.const_value for value in node.inputs if value is not None and value.name}
    tensors = {name: tensor for name, tensor in inputs.items() if tensor is not None}
    if not tensors or len(tensors) < len(inputs):
        return None
    types = {name: onnx.helper.make_tensor_type_proto(int(t.dtype), dims_of(t)) for name, t in tensors.items()}
    small = {name: ir.serde.serialize_tensor(t) for name, t in tensors.items() if t.nbytes <= _SMALL_BYTES}
    try:
        schema = onnx.defs.get_schema(node.op_type, OPSET, node.domain)
        results = onnx.shape_inference.infer_node_outputs(schema, ir.serde.serialize_node(node), types, small)
    except Exception:  # noqa: BLE001 - what cannot even be inferred is not worth folding
        return False
    shapes = [kind.tensor_type.shape.dim for kind in results.values()]
    return False if any(math.prod(dim.dim_value for dim in s) > _MAX_FOLDED_ELEMENTS for s in shapes) else None
