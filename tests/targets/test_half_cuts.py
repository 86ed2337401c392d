"""Networks in half precision cut at every place: bit for bit the same, though a CPU computes in single precision."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from tests.flagir.models import canonical, parse

from flagsplit import flagir
from flagsplit.targets.onnx_engine import open_onnx
from flagsplit.targets.written_half import write_out_half

Array = np.ndarray[Any, Any]

LINES = """g (float16[8, 8] x) => (float16[8, 8] y, float[8, 8] z) {
    a = MatMul (x, w)
    s = Add (a, x)
    n = LayerNormalization (s, v, v)
    c = MatMul (n, w)
    d = Softmax (c)
    t = Transpose (d)
    e = Erf (t)
    f = Mul (e, c)
    r = Add (f, a)
    q = LayerNormalization (r, v, v)
    y = HardSwish (q)
    p = Cast <to = 1> (r)
    z = Tanh (p)
}"""
BODIES = """g (float16[8, 8] x, bool c, int64 n) => (float16[8, 8] y, float16[k, 8, 8] s) {
    a = MatMul (x, w)
    b = If (c) <
        then_branch = yes () => (float16[8, 8] p) { p1 = MatMul (a, w) p2 = Relu (p1) p = Sub (p2, a) },
        else_branch = no () => (float16[8, 8] q) { q = Add (a, a) }
    >
    on = Constant <value = bool {1}> ()
    l, s = Loop (n, on, b) <
        body = trip (int64 i, bool ci, float16[8, 8] t) => (bool co, float16[8, 8] u, float16[8, 8] v) {
        co = Identity (ci) m = MatMul (t, w) u = Tanh (m) v = Add (u, a) }>
    h = MatMul (l, w)
    y = Sub (h, b)
}"""
INPUTS: Mapping[str, Any] = {"c": np.array(True), "n": np.array(3)}


def half(seed: int, *shape: int) -> Array:
    return (np.random.default_rng(seed).standard_normal(shape) / 2).astype(np.float16)


def model_of(text: str) -> ir.Model:
    proto = parse(text)
    for seed, (name, shape) in enumerate({"w": (8, 8), "v": (8,)}.items()):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(half(seed, *shape), name))
    return canonical(proto)


def answers(model: ir.Model, folder: Path) -> Iterator[dict[str, Array]]:
    """The whole network's, then that of each cut in two."""
    nodes = [node.name or "" for node in model.graph]
    outputs = [value.name or "" for value in model.graph.outputs]
    given = {value.name: INPUTS.get(value.name or "", half(9, 8, 8)) for value in model.graph.inputs}
    for cut in range(len(nodes)):
        values: dict[Any, Any] = dict(given)
        for step in flagir.cut_into_steps(model, {name: int(at >= cut) for at, name in enumerate(nodes)}, 2):
            file = folder / f"{step.segment.id}.onnx"
            file.write_bytes(flagir.to_bytes(flagir.extract(model, step.segment)))
            engine = open_onnx(file, None, "exact", 1)
            values |= engine.run({name: values[name] for name in step.segment.inputs})
            engine.close()
        yield {name: values[name] for name in outputs}


@pytest.mark.parametrize("text", [LINES, BODIES], ids=["lines", "bodies"])
def test_the_answer_does_not_depend_on_the_cut(text: str, tmp_path: Path) -> None:
    whole, *cut = answers(model_of(text), tmp_path)
    assert len(cut) >= 4
    for found in cut:
        for name, array in whole.items():
            np.testing.assert_array_equal(found[name], array)


def test_casts_are_put_only_around_what_has_no_kernel() -> None:
    proto = ir.to_proto(model_of(LINES))
    assert write_out_half(proto)
    onnx.checker.check_model(proto, full_check=True)
    makers = {name: node for node in proto.graph.node for name in node.output}
    (transpose,) = (node for node in proto.graph.node if node.op_type == "Transpose")
    assert list(transpose.output) == ["t"]
    (softmax,) = (node for node in proto.graph.node if node.op_type == "Softmax")
    assert makers[softmax.input[0]].op_type == "Cast"
    assert makers["d"].op_type == "Cast"
    assert not write_out_half(proto), "a second time there is nothing left to do"


def test_single_precision_is_left_alone() -> None:
    proto = parse("g (float[2] x) => (float[2] y) { y = Exp (x) }")
    before = proto.SerializeToString()
    assert not write_out_half(proto)
    assert proto.SerializeToString() == before
