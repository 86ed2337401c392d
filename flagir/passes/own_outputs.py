"""Make every graph output the result of a node of its own, so that a segment can produce it."""

import itertools

import onnx_ir as ir
import onnx_ir.passes.common as common


class OwnOutputs(ir.passes.InPlacePass):
    """Mutates: puts an `Identity` before an output that is an input, a constant, or another output."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Alias in place."""
        modified = common.OutputFixPass()(model).modified
        graph = model.graph
        taken = {name for scope in model.graphs() for name in ir.convenience.create_value_mapping(scope)}
        for index, value in enumerate(graph.outputs):
            maker = value.producer()
            if maker is None or maker.op_type == "Constant":
                alias = ir.node("Identity", [value])
                spare = next(name for count in itertools.count() if (name := f"{value.name}_{count}") not in taken)
                taken.add(spare)
                alias.outputs[0].name = spare
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
