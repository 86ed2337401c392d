"""Give every value a type and a shape, symbolic where it must be."""

import itertools
from collections.abc import Iterator

import onnx_ir as ir

from flagsplit.errors import ModelError
from flagsplit.flagir.inference import infer, weightless_proto
from flagsplit.flagir.ranks import guess_states, is_proved, settle_ranks
from flagsplit.flagir.types import dims_of

_MAX_ROUNDS = 16


class InferShapes(ir.passes.InPlacePass):
    """Mutates types and shapes only. What inference leaves open gets a symbol of its own.

    Shapes that the file declares are kept where inference knows no better, unless they contradict the operators:
    then none of them is believed.

    Raises:
        ModelError: a graph input has no type or no shape, or the graph cannot be inferred at all.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Infer in place."""
        for value in model.graph.inputs:
            if value.dtype is None or (value.shape is None and isinstance(value.type, ir.TensorType)):
                raise ModelError(
                    f"expected every graph input to declare its type and rank, input {value.name!r} does not; "
                    f"export the model again with shapes"
                )
        _say_of_constants(model)
        adopt_inferred(model)
        _try_states(model)
        for _ in range(_MAX_ROUNDS):
            if not settle_ranks(model):
                break
            adopt_inferred(model)
        made = [value for graph in model.graphs() for node in graph for value in node.outputs]
        used = {dim for value in (*model.graph.inputs, *made) for dim in _symbols(value)}
        fresh = (name for count in itertools.count() if (name := f"unknown_{count}") not in used)
        names: dict[str, str] = {}
        for value in made:
            _name_unknown(value, fresh, names)
        return ir.passes.PassResult(model, modified=True)


def _say_of_constants(model: ir.Model) -> None:
    """Give initializers the types and shapes of their tensors: what was folded has those of before."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                value.dtype, value.shape = value.const_value.dtype, ir.Shape(dims_of(value.const_value))


def adopt_inferred(model: ir.Model) -> None:
    """Give values the types and shapes that ONNX's inference finds, and keep what it does not know.

    Raises:
        ModelError: the graph cannot be inferred at all.
    """
    for graph, found in zip(model.graphs(), _inferred(model).graphs(), strict=True):
        known = ir.convenience.create_value_mapping(found)
        for node in graph:
            for value in node.outputs:
                better = known.get(value.name or "")
                if better is not None and better.type is not None:
                    value.type = better.type
                    value.shape = _merged(value.shape, better.shape)


def _inferred(model: ir.Model) -> ir.Model:
    try:
        proto = infer(weightless_proto(model, declared=True), strict=True)
    except Exception:  # noqa: BLE001 - the library's errors have no common base; the second try tells
        try:
            proto = infer(weightless_proto(model, declared=False), strict=False)
        except Exception as error:
            raise ModelError(f"shape inference failed: {' '.join(str(error).split())[:240]}") from error
    return ir.serde.deserialize_model(proto)


def _merged(declared: ir.Shape | None, inferred: ir.Shape | None) -> ir.Shape | None:
    """What inference knows, and where it knows nothing of a dimension, what was declared."""
    if declared is None or inferred is None or len(declared) != len(inferred):
        return inferred if inferred is not None else declared
    pairs = zip(declared, inferred, strict=True)
    return ir.Shape([old if _is_open(new) and not _is_open(old) else new for old, new in pairs])


def _is_open(dim: int | ir.SymbolicDim) -> bool:
    """Whether nothing is known of a dimension; `unk__` is the library's own name for that."""
    return not isinstance(dim, int) and (dim.value is None or dim.value.startswith("unk__"))


def _try_states(model: ir.Model) -> None:
    """Where a loop's state is open, suppose that it keeps its rank; what is not proved stays open."""
    guesses = guess_states(model)
    made = [value for graph in model.graphs() for node in graph for value in node.outputs]
    while guesses:
        before = [(value.type, value.shape) for value in made]
        adopt_inferred(model)
        proved = [pair for pair in guesses if is_proved(*pair)]
        if len(proved) == len(guesses):
            return
        for value, (kind, shape) in zip(made, before, strict=True):
            value.type, value.shape = kind, shape
        for state, result in guesses:
            if (state, result) not in proved:
                state.shape = None
        guesses = proved


def _symbols(value: ir.Value) -> list[str]:
    return [dim.value for dim in value.shape or () if not isinstance(dim, int) and dim.value is not None]


def _name_unknown(value: ir.Value, fresh: Iterator[str], names: dict[str, str]) -> None:
    dims: list[int | str] = []
    for dim in value.shape or ():
        if isinstance(dim, int):
            dims.append(dim)
        elif not _is_open(dim):
            dims.append(str(dim.value))
        else:
            name = names.get(dim.value or "") or next(fresh)
            names.setdefault(dim.value or name, name)
            dims.append(name)
    if value.shape is not None:
        value.shape = ir.Shape(dims)
