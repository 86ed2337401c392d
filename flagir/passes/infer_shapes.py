"""Give every value a type and a shape, symbolic where it must be."""

import onnx_ir as ir
import onnx_ir.passes.common as common

from flagsplit.errors import ModelError


class InferShapes(ir.passes.InPlacePass):
    """Mutates types and shapes only. What inference leaves open gets a symbol of its own.

    Raises:
        ModelError: a graph input has no type or no shape, or operators disagree about a type.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Infer in place."""
        for value in model.graph.inputs:
            if value.dtype is None or value.shape is None:
                raise ModelError(
                    f"expected every graph input to declare its type and rank, input {value.name!r} does not; "
                    f"export the model again with shapes"
                )
        common.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)
        count = 0
        for graph in model.graphs():
            for node in graph:
                for value in node.outputs:
                    count = _name_unknown(value, count)
        return ir.passes.PassResult(model, modified=True)


def _name_unknown(value: ir.Value, count: int) -> int:
    if value.shape is None:
        return count
    dims: list[int | str] = []
    for dim in value.shape:
        if isinstance(dim, int):
            dims.append(dim)
        elif dim.value is None:
            dims.append(f"unknown_{count}")
            count += 1
        else:
            dims.append(dim.value)
    value.shape = ir.Shape(dims)
    return count
