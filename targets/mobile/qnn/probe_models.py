"""The one-operator models that the support table is made from: for each operator how it is called, at every rank.

An operator is probed with the attributes that models mostly have; other attributes that decide are its variants.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

from flagsplit.targets.interface import Array
from flagsplit.targets.mobile.qnn.table import DTYPES, OPSET

SHAPES: Mapping[int, tuple[int, ...]] = {1: (8,), 2: (4, 8), 3: (2, 4, 8), 4: (1, 4, 6, 8), 5: (1, 2, 4, 6, 8)}

_CAST_TO = tuple(onnx.TensorProto.DataType.Value(each) for each in "FLOAT16 DOUBLE INT8 UINT8 INT32 INT64 BOOL".split())

Shape = tuple[int, ...]
Constants = Callable[[Shape], Mapping[int, Array]]


@dataclass(frozen=True)
class Probe:
    """How an operator is called.

    Attributes:
        operator: its name.
        activations: how many inputs are of the shape and type that are probed; they come first.
        constants: inputs by position that are initializers, for a shape. Floats become the probed type.
        attributes: of the node, or a function of the shape that gives them.
        ranks: at which it means something.
        outputs: how many it has.
        values: range of the inputs.
        variants: attributes that are probed beside these at rank 4, or the only one there is.
    """

    operator: str
    activations: int = 1
    constants: Constants = lambda _: {}
    attributes: Mapping[str, Any] | Callable[[Shape], Mapping[str, Any]] = field(default_factory=dict)
    ranks: tuple[int, ...] = (1, 2, 3, 4, 5)
    outputs: int = 1
    values: tuple[float, float] = (-2.0, 2.0)
    variants: tuple[Mapping[str, Any], ...] = ()


def _numbers(*shape: int) -> Array:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def _ints(*values: int) -> Array:
    return np.array(values, np.int64)


def _many(names: str, **common: Any) -> Iterator[Probe]:
    for name in names.split():
        yield Probe(name, **common)


def _reductions() -> Iterator[Probe]:
    names = "L1 L2 LogSum LogSumExp Max Mean Min Prod Sum SumSquare"
    for name in names.split():
        yield Probe(f"Reduce{name}", constants=lambda _: {1: _ints(-1)}, values=(0.5, 1.5), variants=({"keepdims": 0},))
    for name in ("ArgMax", "ArgMin"):
        yield Probe(name, attributes={"axis": -1}, variants=({"keepdims": 0}, {"select_last_index": 1}))


def _windows(ranks: tuple[int, ...] = (3, 4, 5)) -> Iterator[Probe]:
    def kernel(shape: Shape) -> Mapping[str, Any]:
        return {"kernel_shape": [3] * (len(shape) - 2), "pads": [1] * 2 * (len(shape) - 2)}

    auto, ceil, wide = {"auto_pad": "SAME_UPPER"}, {"ceil_mode": 1}, {"dilations": [2, 2]}
    yield Probe("MaxPool", attributes=kernel, ranks=ranks, variants=(ceil, wide))
    yield Probe("AveragePool", attributes=kernel, ranks=ranks, variants=({"count_include_pad": 1}, ceil, wide))
    yield Probe("LpPool", attributes=kernel, ranks=ranks)
    yield from _many("GlobalAveragePool GlobalMaxPool GlobalLpPool", ranks=ranks)
    square = lambda s: {1: _numbers(s[1], s[1], *[3] * (len(s) - 2)), 2: _numbers(s[1])}  # noqa: E731
    yield Probe("Conv", constants=square, attributes=kernel, ranks=ranks, variants=(auto, wide, {"strides": [2, 2]}))
    yield Probe("ConvTranspose", constants=square, attributes=kernel, ranks=ranks, variants=({"strides": [2, 2]}, wide))


def _normalizations() -> Iterator[Probe]:
    per_channel = lambda s: {1: _numbers(s[1]), 2: _numbers(s[1])}  # noqa: E731
    last = lambda s: {1: _numbers(s[-1])}  # noqa: E731
    yield Probe(
        "BatchNormalization",
        constants=lambda s: {i: np.abs(_numbers(s[1])) + 0.1 for i in (1, 2, 3, 4)},
        ranks=(2, 3, 4, 5),
    )
    yield Probe("InstanceNormalization", constants=per_channel, ranks=(3, 4, 5))
    yield Probe("GroupNormalization", constants=per_channel, attributes={"num_groups": 2}, ranks=(3, 4, 5))
    yield Probe("LayerNormalization", constants=last, ranks=(2, 3, 4, 5))
    yield Probe("RMSNormalization", constants=last, ranks=(2, 3, 4, 5))
    yield Probe("LpNormalization", variants=({"p": 1},))
    yield Probe("LRN", attributes={"size": 3}, ranks=(3, 4, 5))
    yield Probe("MeanVarianceNormalization", ranks=(4,))


def _moves() -> Iterator[Probe]:
    yield Probe("Concat", activations=2, attributes={"axis": -1})
    yield Probe("Reshape", constants=lambda s: {1: _ints(-1, s[-1])})
    yield Probe("Flatten")
    yield Probe("Transpose", attributes=lambda s: {"perm": [*range(len(s))][::-1]})
    yield Probe("Unsqueeze", constants=lambda _: {1: _ints(0)})
    yield Probe("Squeeze", constants=lambda _: {1: _ints(0)}, ranks=(4, 5))
    yield Probe("Expand", constants=lambda s: {1: _ints(2, *s)})
    yield Probe("Tile", constants=lambda s: {1: _ints(*[2] * len(s))})
    yield Probe("Slice", constants=lambda _: {1: _ints(1), 2: _ints(7), 3: _ints(-1), 4: _ints(2)})
    yield Probe("Split", attributes={"axis": -1, "num_outputs": 2}, outputs=2)
    pads = lambda s: {1: _ints(*[*[0] * (len(s) - 1), 1] * 2)}  # noqa: E731
    yield Probe("Pad", constants=pads, variants=({"mode": "edge"}, {"mode": "reflect"}, {"mode": "wrap"}))
    yield Probe("Gather", constants=lambda _: {1: _ints(0, 3, 2)}, attributes={"axis": -1})
    yield Probe("GatherElements", constants=lambda s: {1: np.zeros(s, np.int64)}, attributes={"axis": -1})
    yield Probe("GatherND", constants=lambda _: {1: np.zeros((1, 1), np.int64)})
    yield Probe(
        "ScatterElements",
        constants=lambda s: {1: np.zeros(s, np.int64), 2: _numbers(*s)},
        attributes={"axis": 0},
        ranks=(1, 4),
    )
    yield Probe("ScatterND", constants=lambda s: {1: np.zeros((1, 1), np.int64), 2: _numbers(1, *s[1:])})
    yield Probe("DepthToSpace", attributes={"blocksize": 2}, ranks=(4,), variants=({"mode": "CRD"},))
    yield Probe("SpaceToDepth", attributes={"blocksize": 2}, ranks=(4,))
    yield Probe("Trilu", ranks=(2, 3, 4, 5), variants=({"upper": 0},))
    yield Probe("ReverseSequence", constants=lambda s: {1: np.full(s[1], s[0], np.int64)}, ranks=(2, 3, 4))
    yield Probe("Shape")
    yield Probe("Size")
    yield Probe("EyeLike", ranks=(2,))
    yield Probe("NonZero")
    yield Probe(
        "OneHot", constants=lambda _: {1: _ints(4), 2: np.array([0, 1], np.float32)}, values=(0, 4), ranks=(1, 2, 3)
    )
    yield Probe(
        "CumSum", constants=lambda _: {1: _ints(1)[0]}, ranks=(2, 3, 4, 5), variants=({"exclusive": 1}, {"reverse": 1})
    )
    yield Probe("TopK", constants=lambda _: {1: _ints(3)}, outputs=2, variants=({"largest": 0},))
    doubled = lambda s: {2: np.array([1, 1, *[2] * (len(s) - 2)], np.float32)}  # noqa: E731
    yield Probe("Resize", constants=doubled, ranks=(3, 4, 5), variants=tuple(_ways_to_resize()))
    grid = lambda s: {1: np.tanh(_numbers(s[0], 5, 5, 2))}  # noqa: E731
    yield Probe("GridSample", constants=grid, ranks=(4,), variants=({"mode": "nearest"}, {"align_corners": 1}))


def _ways_to_resize() -> Iterator[Mapping[str, Any]]:
    for place in "half_pixel align_corners asymmetric pytorch_half_pixel".split():
        for rounded in "round_prefer_floor round_prefer_ceil floor ceil".split():
            yield {"mode": "nearest", "coordinate_transformation_mode": place, "nearest_mode": rounded}
        for mode in ("linear", "cubic"):
            yield {"mode": mode, "coordinate_transformation_mode": place}


def _products() -> Iterator[Probe]:
    yield Probe("MatMul", constants=lambda s: {1: _numbers(s[-1], 5)})
    yield Probe(
        "Gemm", constants=lambda s: {1: _numbers(s[-1], 5), 2: _numbers(5)}, ranks=(2,), variants=({"alpha": 0.5},)
    )
    yield Probe("Einsum", activations=2, attributes={"equation": "...ij,...ij->...ij"}, ranks=(2, 3, 4, 5))
    yield Probe(
        "LSTM",
        constants=lambda s: {1: _numbers(1, 16, s[-1]), 2: _numbers(1, 16, 4)},
        attributes={"hidden_size": 4},
        ranks=(3,),
        outputs=3,
    )
    yield Probe(
        "GRU",
        constants=lambda s: {1: _numbers(1, 12, s[-1]), 2: _numbers(1, 12, 4)},
        attributes={"hidden_size": 4},
        ranks=(3,),
        outputs=2,
    )
    yield Probe(
        "RNN",
        constants=lambda s: {1: _numbers(1, 4, s[-1]), 2: _numbers(1, 4, 4)},
        attributes={"hidden_size": 4},
        ranks=(3,),
        outputs=2,
    )
    yield Probe("Attention", activations=3, ranks=(4,))


def probes() -> Sequence[Probe]:
    """All of them, in a fixed order."""
    return (
        *_many("Abs Ceil Cos Elu Erf Exp Floor HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Mish"),
        *_many("Neg Not Relu Round Selu Celu Shrink Sigmoid Sign Sin Sinh Cosh Asinh Softplus Softsign Tan Tanh"),
        *_many("Atan ThresholdedRelu Hardmax Dropout", values=(-2.0, 2.0)),
        *_many("Acos Asin Atanh", values=(-0.9, 0.9)),
        *_many("Log Sqrt Reciprocal", values=(0.5, 4.0)),
        Probe("Acosh", values=(1.5, 4.0)),
        *_many("Add Sub Mul Max Min Sum Mean And Or Xor Equal Greater GreaterOrEqual Less LessOrEqual", activations=2),
        *_many("BitwiseAnd BitwiseOr BitwiseXor", activations=2, values=(0, 9)),
        Probe("BitwiseNot", values=(0, 9)),
        *_many("Div Pow", activations=2, values=(1.0, 3.0)),
        Probe("Mod", activations=2, attributes={"fmod": 1}, values=(1.0, 3.0)),
        Probe("Gelu", variants=({"approximate": "tanh"},)),
        Probe("LogSoftmax", variants=({"axis": 1},)),
        Probe("Softmax", variants=({"axis": 1},)),
        Probe("PRelu", constants=lambda s: {1: _numbers(s[-1])}),
        Probe("Where", activations=2),
        Probe("Cast", attributes={"to": 1}, variants=tuple({"to": int(each)} for each in _CAST_TO)),
        Probe("Clip", constants=lambda _: {1: np.array(-1, np.float32), 2: np.array(1, np.float32)}),
        *_reductions(),
        *_windows(),
        *_normalizations(),
        *_moves(),
        *_products(),
    )


def build(probe: Probe, rank: int, dtype: str, variant: Mapping[str, Any] | None = None) -> onnx.ModelProto:
    """The model of a probe.

    Args:
        probe: what.
        rank: of its activations.
        dtype: NumPy name of their element type.
        variant: attributes that replace or join its own.
    """
    shape = SHAPES[rank]
    own = probe.attributes(shape) if callable(probe.attributes) else probe.attributes
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    names = [f"x{at}" for at in range(probe.activations)]
    inputs = [onnx.helper.make_tensor_value_info(name, kind, shape) for name in names]
    if probe.operator == "Where":
        names = ["condition", *names]
        inputs.insert(0, onnx.helper.make_tensor_value_info("condition", onnx.TensorProto.BOOL, shape))
    given = probe.constants(shape)
    weights = []
    for at, array in given.items():
        names += [""] * (at + 1 - len(names))
        names[at] = f"w{at}"
        as_probed = array.astype(dtype) if array.dtype == np.float32 and _follows(probe, at) else np.asarray(array)
        weights.append(onnx.numpy_helper.from_array(as_probed, names[at]))
    made = [f"y{at}" for at in range(probe.outputs)]
    attributes = {**own, **(variant or {})}
    if "auto_pad" in attributes:
        attributes.pop("pads", None)
    node = onnx.helper.make_node(probe.operator, names, made, name="probed", **attributes)
    outputs = [onnx.ValueInfoProto(name=name) for name in made]
    graph = onnx.helper.make_graph([node], "probe", inputs, outputs, weights)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=11)
    return onnx.shape_inference.infer_shapes(model, strict_mode=True)


def _follows(probe: Probe, at: int) -> bool:
    """Whether a constant is of the probed type, rather than of one that the standard fixes."""
    schema = onnx.defs.get_schema(probe.operator, OPSET)
    return schema.inputs[min(at, len(schema.inputs) - 1)].type_str == schema.inputs[0].type_str


def dtypes_of(probe: Probe) -> list[str]:
    """The element types that the standard allows for the first activation, of those that the NPU may have."""
    schema = onnx.defs.get_schema(probe.operator, OPSET)
    first = schema.inputs[1 if probe.operator == "Where" else 0]
    written = {"float32": "float"}
    return [name for name in DTYPES if f"tensor({written.get(name, name)})" in first.types]


def feeds_of(probe: Probe, model: onnx.ModelProto) -> dict[str, Array]:
    """Inputs for a probe's model, the same each time."""
    rng = np.random.default_rng(1)
    low, high = probe.values
    feeds: dict[str, Array] = {}
    for value in model.graph.input:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        kind = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        drawn = rng.uniform(low, high, shape)
        if kind == np.bool_:
            feeds[value.name] = drawn > (low + high) / 2
        else:
            feeds[value.name] = (np.abs(drawn) if kind.kind == "u" else drawn * (1 if kind.kind == "f" else 3)).astype(
                kind
            )
    return feeds
