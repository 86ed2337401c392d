"""Tell ONNX Runtime's operators from the standard's where it took the standard's domain for its own."""

import onnx_ir as ir

MICROSOFT = "com.microsoft"
_LAYER_NORMALIZATION_SINCE = 17


class SetApart(ir.passes.InPlacePass):
    """Mutates: moves to `com.microsoft` the `SimplifiedLayerNormalization`, and `LayerNormalization` before opset 17.

    To be run before the opset upgrade, which stops at operators that the standard does not have and leaves other
    domains alone.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Move in place."""
        opset = model.opset_imports.get("")
        own = {"SimplifiedLayerNormalization"}
        if opset is not None and opset < _LAYER_NORMALIZATION_SINCE:
            own.add("LayerNormalization")
        every = ir.traversal.RecursiveGraphIterator(model.graph)
        moved = [node for node in every if not node.domain and node.op_type in own]
        for node in moved:
            node.domain = MICROSOFT
        if moved:
            model.opset_imports.setdefault(MICROSOFT, 1)
        return ir.passes.PassResult(model, bool(moved))
