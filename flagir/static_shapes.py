"""Concrete types of every value once the symbolic input dimensions are bound to sizes.

The cost model needs numbers where the graph has symbols. The graph itself stays symbolic: inference runs on a
skeleton of it that holds no weights. Strict inference also says whether a binding makes sense at all, which is how
`nominal_dims` finds sizes for a model whose author wrote none down.
"""

import itertools
import math
from collections.abc import Iterator, Mapping

import onnx
import onnx_ir as ir

from flagsplit.errors import ModelError
from flagsplit.flagir.inference import graphs_of, infer, weightless_proto
from flagsplit.flagir.types import ValueType

_IMAGE_SIZES = ((224, 224), (640, 640), (48, 320), (320, 320), (256, 256), (32, 320), (512, 512), (299, 299), (64, 64))
_IMAGE_SIZES_LATE = ((48, 192), (32, 100), (64, 256), (416, 416), (384, 384), (128, 128), (32, 32), (28, 28), (16, 16))
_SIDES = tuple(dict.fromkeys(height for height, _ in (*_IMAGE_SIZES, *_IMAGE_SIZES_LATE)))
"""For an image of which one side is given."""
_LENGTHS = (128, 64, 16, 1, 256, 512, 32, 8, 2, 224, 16000, 80, 3000)
_MAX_TRIES = 200
_MAX_ELEMENTS = 1 << 50
"""No machine holds a tensor of a petabyte; a product of nonsense overflows later sums."""


class Skeleton:
    """A model without its large weights, on which shape inference costs milliseconds.

    Args:
        model: a canonical model; it is not changed and not kept.
    """

    def __init__(self, model: ir.Model) -> None:
        self._proto = weightless_proto(model, declared=False)
        self.inputs = {value.name: tuple(value.shape or ()) for value in model.graph.inputs if value.name}
        self._known = {
            value.name: value
            for value in (*model.graph.inputs, *(out for node in model.graph for out in node.outputs))
            if value.name
        }

    @property
    def symbols(self) -> tuple[str, ...]:
        """The symbolic dimensions of the inputs, in order of appearance."""
        names = (str(d.value) for dims in self.inputs.values() for d in dims if not isinstance(d, int))
        return tuple(dict.fromkeys(names))

    def types(self, dims: Mapping[str, int]) -> dict[str, ValueType]:
        """Concrete types of all values, those of subgraphs included.

        Args:
            dims: a size for each symbol; a symbol left out stays open.

        Returns:
            For each value its dtype and shape; a dimension that depends on data counts as 1.

        Raises:
            ModelError: operators contradict each other at these sizes.
        """
        found, _ = self._inferred(dims)
        return found

    def open_values(self, dims: Mapping[str, int]) -> tuple[str, ...]:
        """The values with a dimension that these sizes leave open: it depends on data, and counts as 1.

        Raises:
            ModelError: operators contradict each other at these sizes.
        """
        found, closed = self._inferred(dims)
        return tuple(name for name in found if name not in closed)

    def _inferred(self, dims: Mapping[str, int]) -> tuple[dict[str, ValueType], set[str]]:
        """The types, and the names of those values of which no dimension is open."""
        proto = onnx.ModelProto()
        proto.CopyFrom(self._proto)
        for info in proto.graph.input:
            for dim in info.type.tensor_type.shape.dim:
                if dim.dim_param in dims:
                    dim.dim_value = dims[dim.dim_param]
        where = ", ".join(f"{name}={size}" for name, size in dims.items()) or "the declared sizes"
        try:
            inferred = infer(proto, strict=True)
        except Exception as error:
            raise ModelError(
                f"the graph contradicts itself at {where}: {' '.join(str(error).split())[:240]}"
            ) from error
        _check_reshapes(inferred.graph, where)
        found, closed = {}, set()
        for info in _infos(inferred.graph):
            kind = info.type.tensor_type
            if info.type.HasField("tensor_type") and kind.elem_type and kind.HasField("shape"):
                shape = tuple(dim.dim_value if dim.HasField("dim_value") else 1 for dim in kind.shape.dim)
                found[info.name] = ValueType(ir.DataType(kind.elem_type), shape)
                if all(dim.HasField("dim_value") for dim in kind.shape.dim):
                    closed.add(info.name)
        for name, value in self._known.items():
            if name not in found and value.dtype is not None:
                shape = tuple(dim if isinstance(dim, int) else dims.get(str(dim.value), 1) for dim in value.shape or ())
                found[name] = ValueType(value.dtype, shape)
        for name, concrete in found.items():
            if min(concrete.shape, default=0) < 0:
                raise ModelError(f"value {name!r} would have a negative size at {where}; give larger sizes")
            if concrete.elements > _MAX_ELEMENTS:
                raise ModelError(
                    f"value {name!r} would have over {_MAX_ELEMENTS:.0e} elements at {where}; give other sizes"
                )
        return found, closed


def _infos(graph: onnx.GraphProto) -> Iterator[onnx.ValueInfoProto]:
    """Of the main graph and of what lies in it; a canonical model has each name once."""
    for each in graphs_of(graph):
        yield from (*each.input, *each.value_info, *each.output)


def _check_reshapes(graph: onnx.GraphProto, where: str) -> None:
    """A Reshape to fixed sizes fits one input size only; inference does not look."""
    elements = {
        info.name: math.prod(dim.dim_value for dim in info.type.tensor_type.shape.dim)
        for info in (*graph.input, *graph.value_info, *graph.output)
        if info.type.tensor_type.HasField("shape")
        and all(dim.HasField("dim_value") for dim in info.type.tensor_type.shape.dim)
    }
    for node in graph.node:
        if node.op_type == "Reshape" and not node.domain:
            came, wanted = elements.get(node.input[0]), elements.get(node.output[0])
            if came is not None and wanted is not None and came != wanted:
                raise ModelError(
                    f"the graph contradicts itself at {where}: Reshape {node.name!r} makes {wanted} elements of {came}"
                )


def nominal_dims(skeleton: Skeleton, given: Mapping[str, int]) -> dict[str, int]:
    """A size for each symbolic dimension, at which the whole graph makes sense.

    Args:
        skeleton: the graph.
        given: sizes that the user or the SLA names; they win.

    Returns:
        The first combination of common sizes that strict shape inference accepts: batches of one, image sizes for
        inputs of rank 4, sequence lengths elsewhere.

    Raises:
        ModelError: `given` names no symbol of the graph or a size below 1, or no combination fits; the message says
            what to give.
    """
    unknown = sorted(set(given) - set(skeleton.symbols))
    if unknown:
        have = ", ".join(skeleton.symbols) or "none"
        raise ModelError(f"expected a symbolic dimension of the inputs ({have}), came {unknown[0]!r}")
    for name, size in given.items():
        if size < 1:
            raise ModelError(f"expected a size of at least 1 for dimension {name!r}, came {size}")
    reason = ""
    for dims in itertools.islice(_candidates(skeleton, given), _MAX_TRIES):
        try:
            skeleton.types(dims)
        except ModelError as error:
            reason = str(error)
        else:
            return dims
    wanted = " ".join(f"--dim {name}=SIZE" for name in skeleton.symbols if name not in given)
    raise ModelError(f"no usual input size fits this model; give {wanted or 'other sizes'} ({reason})")


def dims_of_shapes(skeleton: Skeleton, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """What concrete input shapes say about the symbols.

    Raises:
        ModelError: an input is unknown, or a shape does not match the declared one.
    """
    dims: dict[str, int] = {}
    for name, shape in shapes.items():
        declared = skeleton.inputs.get(name)
        if declared is None:
            raise ModelError(f"expected a graph input ({', '.join(skeleton.inputs)}), came {name!r}")
        if len(declared) != len(shape):
            raise ModelError(f"input {name!r} has {len(declared)} dimensions, came {len(shape)}")
        for want, size in zip(declared, shape, strict=True):
            fixed = want if isinstance(want, int) else dims.setdefault(str(want.value), size)
            if fixed != size or size < 1:
                raise ModelError(f"input {name!r} expects {_text(declared)}, came [{', '.join(map(str, shape))}]")
    return dims


def _text(declared: tuple[int | ir.SymbolicDim, ...]) -> str:
    return "[" + ", ".join(str(d) if isinstance(d, int) else str(d.value) for d in declared) + "]"


def _candidates(skeleton: Skeleton, given: Mapping[str, int]) -> Iterator[dict[str, int]]:
    """Bindings in order of how usual they are; each symbol belongs to the first input that shows it."""
    images: list[tuple[str, str]] = []
    sides: list[str] = []
    lengths: list[str] = []
    fixed = dict(given)
    for dims in skeleton.inputs.values():
        names = [None if isinstance(dim, int) else str(dim.value) for dim in dims]
        open_names = [name for name in names if name is not None and name not in fixed and name not in lengths]
        if names and names[0] in open_names:
            fixed[str(names[0])] = 1
        rest = [name for name in names[1:] if name in open_names]
        if len(names) == 4 and len(set(rest[-2:])) == 2 and names[-2:] == rest[-2:]:
            images.append((str(rest[-2]), str(rest[-1])))
            rest = rest[:-2]
            fixed.update(dict.fromkeys(images[-1], 0))
        elif len(names) == 4 and rest and rest[-1] in names[-2:]:
            sides.append(str(rest.pop()))
            fixed[sides[-1]] = 0
        lengths.extend(str(name) for name in rest)
    choices = [
        *(([dict(zip(pair, size, strict=True)) for size in (*_IMAGE_SIZES, *_IMAGE_SIZES_LATE)]) for pair in images),
        *(([{name: size} for size in _SIDES]) for name in sides),
        *(([{name: size} for size in _LENGTHS]) for name in lengths),
    ]
    for combination in itertools.product(*choices):
        merged = dict(fixed)
        for part in combination:
            merged.update(part)
        yield {name: merged[name] for name in skeleton.symbols}
