"""Make every graph output the result of a node of its own, so that a segment can produce it."""

import onnx_ir as ir
import onnx_ir.passes.common as common


class OwnOutputs(ir.passes.InPlacePass):
    """Mutates: puts an `Identity` before an output that is an input, an initializer, or another output."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Alias in place."""
        modified = common.OutputFixPass()(model).modified
        graph = model.graph
        for index, value in enumerate(graph.outputs):
            if value.producer() is None:
                alias = ir.node("Identity", [value])
                alias.outputs[0].name = f"{value.name}_out"
                alias.outputs[0].type, alias.outputs[0].shape = value.type, value.shape
                graph.append(alias)
                graph.outputs[index] = alias.outputs[0]
                _swap_names(value, alias.outputs[0])
                modified = True
        return ir.passes.PassResult(model, modified)


def _swap_names(inner: ir.Value, outer: ir.Value) -> None:
    """The outside world knows the output's name, so the new value takes it."""
    name, spare = inner.name, outer.name
    outer.name = f"{spare}_swap"
    inner.name = spare
    outer.name = name
