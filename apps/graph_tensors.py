"""Graph inputs and outputs in the words of a manifest, and which of them stay with the one who asks."""

import onnx_ir as ir

from flagsplit.errors import ModelError
from flagsplit.flagir import GRAPH_INPUT, BlockGraph
from flagsplit.flagir.types import SENDABLE
from flagsplit.runtime.manifest import Tensor


def tensor_of(value: ir.Value) -> Tensor:
    """An input or output of a graph.

    Raises:
        ModelError: it is no tensor.
    """
    if value.dtype is None or value.shape is None or value.name is None:
        raise ModelError(f"{value.name!r} has no tensor type; only tensors can enter and leave a bundle")
    dtype = "string" if value.dtype == ir.DataType.STRING else value.dtype.numpy().name
    return Tensor(
        name=value.name, dtype=dtype, shape=[dim if isinstance(dim, int) else str(dim.value) for dim in value.shape]
    )


def check_ends(model: ir.Model) -> None:
    """Refuse a graph that takes or gives what an application has no plain array for.

    Raises:
        ModelError: an input or output is no tensor, or one of numbers that NumPy does not have. An input may be
            optional: it is always given.
    """
    for role, verb, values in (("input", "take", model.graph.inputs), ("output", "give", model.graph.outputs)):
        for value in values:
            kind = value.type
            if role == "input" and isinstance(kind, ir.OptionalType):
                kind = kind.elem_type
            if not isinstance(kind, ir.TensorType):
                what = "a sequence" if isinstance(kind, ir.SequenceType) else "an optional"
                raise ModelError(
                    f"{role} {value.name!r}: only tensors can enter and leave a bundle, came {what}; "
                    f"let the model {verb} tensors"
                )
            if kind.dtype not in SENDABLE and kind.dtype != ir.DataType.STRING:
                raise ModelError(
                    f"{role} {value.name!r}: came {kind.dtype.name.lower()}, of which ONNX Runtime takes and gives no "
                    f"arrays; let the model {verb} float32 and cast inside"
                )


def homebound(model: ir.Model, graph: BlockGraph, first: str) -> dict[int, str]:
    """Blocks that can run on the first tier alone, with the reason: strings do not travel.

    Args:
        model: a canonical model.
        graph: its blocks.
        first: name of the first tier.
    """
    ends = (*model.graph.inputs, *model.graph.outputs)
    strings = {value.name for value in ends if value.dtype == ir.DataType.STRING}
    found: dict[int, str] = {}
    for value in graph.values:
        if value.name in strings:
            why = f"{value.name!r} is of strings, which do not leave {first}"
            makers = () if value.producer == GRAPH_INPUT else (value.producer,)
            found |= dict.fromkeys((*makers, *value.consumers), why)
    return found
