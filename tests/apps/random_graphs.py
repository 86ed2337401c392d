"""Small random graphs, and an engine that runs parts of them with faults of its own."""

import tempfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from tests.apps.models import Array
from tests.targets.faulty_chip import spoil

from flagsplit import flagir
from flagsplit.apps.bisection import Suspect
from flagsplit.apps.deviation import Tolerance
from flagsplit.apps.part_engines import NodeLine
from flagsplit.flagir import Segment
from flagsplit.flagir.opset import IR_VERSION, OPSET
from flagsplit.flagir.passes.infer_shapes import InferShapes
from flagsplit.flagir.segments import segment_of
from flagsplit.targets.onnx_engine import open_onnx

SIZE = 4
FP32 = Tolerance("norm", 1e-4)
_ONE = ("Tanh", "Sigmoid", "Softplus", "Neg", "Exp", "Softmax", "Transpose")
_TWO = ("Add", "Sub", "Mul", "Max", "MatMul", "Concat")


def random_graph(seed: int) -> ir.Model:
    """4 to 16 nodes over matrices; every value that nobody reads is an output."""
    rng = np.random.default_rng(seed)
    values, lines, read = ["x", "w"], list[str](), set[str]()
    for at in range(int(rng.integers(4, 17))):
        pool = values[-5:] if at else ["x"]
        kind = str(rng.choice([*_ONE, *_TWO]))
        first, second = str(rng.choice(pool)), str(rng.choice(values))
        taken = [first] if kind in _ONE else [first, second]
        read.update(taken)
        text = f"{kind}({', '.join(taken)})"
        if kind == "Concat":
            text = f"Concat <axis = 0> ({first}, {second})"
            lines.append(f"[n{at}a] c{at} = {text}")
            lines.append(f"[n{at}] v{at} = MatMul(k, c{at})")
        elif kind == "Exp":
            lines.append(f"[n{at}a] c{at} = Tanh({first})")
            lines.append(f"[n{at}] v{at} = Exp(c{at})")
        else:
            lines.append(f"[n{at}] v{at} = {text}")
        values.append(f"v{at}")
    outputs = [name for name in values[2:] if name not in read]
    ends = ", ".join(f"float[{SIZE}, {SIZE}] {name}" for name in outputs)
    return model_of(f"(float[{SIZE}, {SIZE}] x) => ({ends})", lines, seed)


def model_of(ends: str, lines: Collection[str], seed: int = 0) -> ir.Model:
    """A canonical graph; `w` and `k` are weights of 4 x 4 and 4 x 8."""
    body = "\n".join(lines)
    proto = onnx.parser.parse_model(f'<ir_version: {IR_VERSION}, opset_import: ["" : {OPSET}]> g {ends} {{ {body} }}')
    rng = np.random.default_rng(seed)
    for name, width in (("w", SIZE), ("k", 2 * SIZE)):
        array = np.asarray(rng.standard_normal((SIZE, width))).astype(np.float32) / 2
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    model = ir.serde.deserialize_model(proto)
    if any("Constant" in line for line in lines):
        flagir.canonicalize(model)
    else:  # it is canonical but for types, and there are hundreds of them
        InferShapes()(model)
        flagir.check(model)
    return model


def whole(model: ir.Model) -> NodeLine:
    return NodeLine(model, segment_of(model, [node.name or "" for node in model.graph]))


def suspect(model: ir.Model, allowed: Tolerance = FP32, blocks: Mapping[str, str] | None = None) -> Suspect:
    """The whole graph as a segment that is suspected."""
    line = whole(model)
    given: dict[str, Array] = {"x": np.random.default_rng(7).standard_normal((SIZE, SIZE)).astype(np.float32)}
    expected = Engine(model).run(line.segment, given)
    return Suspect(line, given, expected, allowed, blocks or {})


@dataclass(eq=False)
class Engine:
    """ONNX Runtime on parts of a graph, with faults.

    Attributes:
        model: the graph.
        factors: of a part's nodes: by the value that one makes, what it is multiplied by.
        runs: how many parts were run.
    """

    model: ir.Model
    factors: Callable[[Segment], Mapping[str, float]] = field(default=lambda _: {})
    runs: int = 0

    def run(self, part: Segment, given: Mapping[str, Array]) -> dict[str, Array]:
        self.runs += 1
        if not part.outputs:
            return {}
        factors = self.factors(part)
        data = flagir.to_bytes(flagir.extract(self.model, part))
        with tempfile.NamedTemporaryFile() as file:
            file.write(spoil(data, factors) if factors else data)
            file.flush()
            loaded = open_onnx(Path(file.name), None, "exact", 1)
        return loaded.run({name: given[name] for name in part.inputs})
