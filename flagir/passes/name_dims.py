"""Give every symbolic dimension of the graph's inputs a usable name, and forget dimensions that say nothing."""

import re

import onnx_ir as ir

_NAME = re.compile(r"(?!unk__)[A-Za-z_][A-Za-z0-9_.\-]*")
"""`unk__0` is what ONNX's own inference calls a dimension that it knows nothing of."""


class NameDims(ir.passes.InPlacePass):
    """Mutates shapes only.

    Exporters write unknown dimensions as nothing, -1, 0 or "?", so that two different dimensions carry one name.
    An input's unknown dimension becomes `INPUT.AXIS`, of which a user can speak (`--dim x.3=320`); elsewhere it
    becomes unknown, for shape inference to fill.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rename in place."""
        for value in model.graph.inputs:
            if value.shape is not None:
                dims = [
                    dim if isinstance(dim, int) or _is_name(dim) else f"{value.name}.{axis}"
                    for axis, dim in enumerate(_known(value.shape))
                ]
                value.shape = ir.Shape(dims)
        for graph in model.graphs():
            inputs = set(model.graph.inputs) if graph is model.graph else set()
            for value in _values(graph):
                if value.shape is not None and value not in inputs:
                    value.shape = ir.Shape(_known(value.shape))
        return ir.passes.PassResult(model, modified=True)


def _values(graph: ir.Graph) -> list[ir.Value]:
    return [*graph.inputs, *(value for node in graph for value in node.outputs)]


def _known(shape: ir.Shape) -> list[int | str | None]:
    dims: list[int | str | None] = []
    for dim in shape:
        if isinstance(dim, int):
            dims.append(dim if dim >= 0 else None)
        else:
            dims.append(dim.value if _is_name(dim.value) else None)
    return dims


def _is_name(dim: object) -> bool:
    return isinstance(dim, str) and _NAME.fullmatch(dim) is not None
