"""Give every value of the model a name of its own, also across subgraphs."""

import onnx_ir as ir


class UniqueNames(ir.passes.InPlacePass):
    """Mutates: renames values of subgraphs whose names occur elsewhere too.

    ONNX lets the branches of an `If` use the same names. Shape inference mixes such values up, and a reader does too.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rename in place; the main graph's names stay."""
        modified = False
        taken: set[str] = set()
        for graph in model.graphs():
            made = [value for node in graph for value in node.outputs]
            for value in dict.fromkeys((*graph.inputs, *graph.initializers.values(), *made)):
                if value.name and value.name in taken and graph is not model.graph:
                    value.name = _fresh(value.name, taken)
                    modified = True
                taken.add(value.name or "")
        return ir.passes.PassResult(model, modified)


def _fresh(name: str, taken: set[str]) -> str:
    count = 1
    while f"{name}_{count}" in taken:
        count += 1
    return f"{name}_{count}"
