"""Models for the tests of `flagir`: hand-written text, the onnx package's light models, random DAGs; running them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime as ort

from flagsplit.flagir import canonicalize, violations

Array = npt.NDArray[Any]

LIGHT_FOLDER = Path(onnx.__file__).parent / "backend/test/data/light"
LIGHT_SMALL = ("squeezenet", "inception_v1", "shufflenet", "resnet50")
LIGHT_OTHERS = ("bvlc_alexnet", "zfnet512", "vgg19", "inception_v2", "densenet121")


def light_path(name: str) -> Path:
    return LIGHT_FOLDER / f"light_{name}.onnx"


def parse(body: str, opset: int = 17, imports: str = "") -> onnx.ModelProto:
    """A model from ONNX text, `g (inputs) => (outputs) <initializers> { nodes }`."""
    ir_version = 8 if opset <= 17 else 11
    model: onnx.ModelProto = onnx.parser.parse_model(
        f'<ir_version: {ir_version}, opset_import: ["" : {opset}{imports}]> {body}'
    )
    return model


def canonical(proto: onnx.ModelProto) -> ir.Model:
    copied = type(proto)()
    copied.CopyFrom(proto)  # renaming a value renames the tensor of the proto that it came from
    model = ir.from_proto(copied)
    canonicalize(model)
    assert violations(model) == ()
    return model


def session(proto: onnx.ModelProto, *, optimize: bool = True) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_EXTENDED if optimize else level.ORT_DISABLE_ALL
    return ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(proto: onnx.ModelProto, inputs: Mapping[str, Array], *, optimize: bool = True) -> list[Array]:
    found: list[Array] = session(proto, optimize=optimize).run(None, dict(inputs))
    return found


def inputs_for(proto: onnx.ModelProto, dims: Mapping[str, int] | None = None, seed: int = 0) -> dict[str, Array]:
    """Random inputs; symbolic dimensions from `dims`, else 2."""
    rng = np.random.default_rng(seed)
    weights = {tensor.name for tensor in proto.graph.initializer}
    found: dict[str, Array] = {}
    for info in proto.graph.input:
        if info.name in weights:
            continue
        kind = info.type.tensor_type
        shape = [dim.dim_value or (dims or {}).get(dim.dim_param, 2) for dim in kind.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        if dtype.kind == "f":
            found[info.name] = np.asarray(rng.standard_normal(shape)).astype(dtype)
        else:
            found[info.name] = np.asarray(rng.integers(0, 2, shape)).astype(dtype)
    return found


def assert_close(found: Sequence[Array], wanted: Sequence[Array], relative: float = 1e-5) -> None:
    """Equal shapes and dtypes, and values within `relative` of the largest magnitude; 0 means bit for bit."""
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        if relative == 0 or other.dtype.kind != "f":
            np.testing.assert_array_equal(one, other)
        else:
            scale = float(np.abs(other).max(initial=0)) or 1.0
            np.testing.assert_allclose(one, other, rtol=0, atol=relative * scale)


def assert_same_answers(proto: onnx.ModelProto, dims: Mapping[str, int] | None = None) -> ir.Model:
    """Canonicalize a copy: it is canonical and valid, keeps outputs' names, and ORT finds the same answers."""
    inputs = inputs_for(proto, dims)
    model = canonical(proto)
    made = ir.to_proto(model)
    onnx.checker.check_model(made, full_check=True)
    assert [value.name for value in made.graph.output] == [value.name for value in proto.graph.output]
    assert_close(run(made, inputs), run(proto, inputs))
    return model


class _Builder:
    """Grows a DAG over tensors of shape [N, channels, 8, 8]."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.batch: int | str = "N" if seed % 2 else 1
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.channels = {"x": 3}
        self._count = 0

    def name(self) -> str:
        self._count += 1
        return f"v{self._count}"

    def weight(self, *shape: int) -> str:
        return self.constant(np.asarray(self.rng.standard_normal(shape)).astype(np.float32) / 3)

    def constant(self, array: Array) -> str:
        self.weights.append(onnx.numpy_helper.from_array(array, self.name()))
        return self.weights[-1].name

    def add(self, op: str, inputs: Sequence[str], outputs: int = 1, **attributes: Any) -> list[str]:
        names = [self.name() for _ in range(outputs)]
        self.nodes.append(onnx.helper.make_node(op, inputs, names, name=f"n{len(self.nodes)}", **attributes))
        return names

    def keep(self, name: str, channels: int) -> None:
        self.channels[name] = channels

    def pick(self) -> str:
        names = list(self.channels)
        recent = names[-6:] if self.rng.random() < 0.8 else names
        return str(self.rng.choice(recent))

    def step(self) -> None:
        kind = self.rng.choice(
            [
                "conv",
                "conv",
                "depthwise",
                "matmul",
                "unary",
                "unary",
                "binary",
                "concat",
                "split",
                "reshape",
                "if",
                "topk",
                "pool",
            ]
        )
        source = self.pick()
        channels = self.channels[source]
        if kind == "conv":
            made = int(self.rng.integers(2, 6))
            (out,) = self.add("Conv", [source, self.weight(made, channels, 3, 3)], pads=[1, 1, 1, 1])
            if self.rng.random() < 0.5:
                scale = [self.constant(np.abs(self.rng.standard_normal(made)).astype(np.float32) + 0.5) for _ in "abcd"]
                (out,) = self.add("BatchNormalization", [out, *scale])
            if self.rng.random() < 0.5:
                (out,) = self.add("Relu", [out])
            self.keep(out, made)
        elif kind == "depthwise":
            weight = self.weight(channels, 1, 3, 3)
            self.keep(self.add("Conv", [source, weight], pads=[1, 1, 1, 1], group=channels)[0], channels)
        elif kind == "matmul":
            self.keep(self.add("MatMul", [source, self.weight(8, 8)])[0], channels)
        elif kind == "unary":
            self.keep(self.add(str(self.rng.choice(["Sigmoid", "Tanh", "Neg"])), [source])[0], channels)
        elif kind == "binary":
            same = [name for name, size in self.channels.items() if size == channels]
            other = str(self.rng.choice(same)) if self.rng.random() < 0.7 else self.weight(1)
            self.keep(self.add("Add", [source, other])[0], channels)
        elif kind == "concat" and channels <= 6:
            other = self.pick()
            if self.channels[other] <= 6:
                self.keep(self.add("Concat", [source, other], axis=1)[0], channels + self.channels[other])
        elif kind == "split" and channels >= 2:
            sizes = [channels // 2, channels - channels // 2]
            for name, size in zip(
                self.add("Split", [source, self.constant(np.array(sizes))], 2, axis=1), sizes, strict=True
            ):
                self.keep(name, size)
        elif kind == "reshape":
            (shape,) = self.add("Shape", [source])
            (batch,) = self.add("Slice", [shape, self.constant(np.array([0])), self.constant(np.array([1]))])
            (flat,) = self.add("Concat", [batch, self.constant(np.array([-1]))], axis=0)
            (matrix,) = self.add("Reshape", [source, flat])
            self.keep(self.add("Reshape", [self.add("Exp", self.add("Sigmoid", [matrix]))[0], shape])[0], channels)
        elif kind == "if":
            self._branch(source, channels)
        elif kind == "topk":
            values, _ = self.add("TopK", [source, self.constant(np.array([8]))], 2)
            self.keep(values, channels)
        elif kind == "pool":
            out = self.add("MaxPool", [source], kernel_shape=[3, 3], pads=[1, 1, 1, 1])[0]
            self.keep(out, channels)

    def _branch(self, source: str, channels: int) -> None:
        (total,) = self.add("ReduceSum", [source], keepdims=0)
        (condition,) = self.add("Greater", [total, self.constant(np.array(0, np.float32))])
        shape = [self.batch, channels, 8, 8]
        branches = {}
        for key, op in (("then_branch", "Relu"), ("else_branch", "Tanh")):
            out = onnx.helper.make_tensor_value_info("made", onnx.TensorProto.FLOAT, shape)
            branches[key] = onnx.helper.make_graph([onnx.helper.make_node(op, [source], ["made"])], key, [], [out])
        self.keep(self.add("If", [condition], **branches)[0], channels)

    def model(self) -> onnx.ModelProto:
        read = {name for node in self.nodes for name in node.input}
        branches = [attribute.g for node in self.nodes for attribute in node.attribute if attribute.HasField("g")]
        read |= {name for branch in branches for node in branch.node for name in node.input}
        leaves = [name for name in self.channels if name not in read and name != "x"]
        inner = [name for name in self.channels if name in read and name != "x"]
        outputs = [*leaves, *inner[len(inner) // 2 :][:1]]
        infos = {
            name: onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [self.batch, size, 8, 8])
            for name, size in self.channels.items()
        }
        graph = onnx.helper.make_graph(
            self.nodes, "random", [infos["x"]], [infos[name] for name in outputs], self.weights
        )
        return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)


def random_model(seed: int) -> onnx.ModelProto:
    """A random DAG of 5 to 45 nodes over images of 8 x 8; odd seeds have a symbolic batch `N`."""
    builder = _Builder(seed)
    size = 5 + seed % 8 * 5
    while len(builder.nodes) < size:
        builder.step()
    return builder.model()


def with_weights(proto: onnx.ModelProto, **shapes: Sequence[int]) -> onnx.ModelProto:
    """Add an initializer of small random numbers for each name."""
    rng = np.random.default_rng(1)
    for name, shape in shapes.items():
        array = np.asarray(rng.standard_normal(shape)).astype(np.float32) / 4
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return proto
