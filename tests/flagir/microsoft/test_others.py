"""Operators that only changed their domain, where rewrites happen, and what is refused."""

from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from tests.flagir.microsoft.vendor import assert_rewritten, floats, integers, scalar, vendor_model
from tests.flagir.models import assert_close, assert_same_answers, canonical, inputs_for, parse, random_model, run

from flagsplit.errors import ModelError
from flagsplit.flagir import canonicalize
from flagsplit.flagir.passes.microsoft import REWRITES
from flagsplit.flagir.passes.microsoft.rewrite import RewriteMicrosoft

IMPORTS = ', "com.microsoft" : 1'


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge"])
@pytest.mark.parametrize("shape", [(4,), (1, 4)])
def test_pad(mode: str, shape: tuple[int, ...]) -> None:
    value = scalar(3.0) if mode == "constant" else None
    inputs = [floats(3, 4), np.array([1, 0, 0, 2]).reshape(shape), value]
    assert_rewritten("Pad", inputs, constants=[1], mode=mode)


def test_unique() -> None:
    assert_rewritten("Unique", [integers(12, low=0, high=4).astype(np.float32)], outputs=3)


@pytest.mark.parametrize("upper", [0, 1])
def test_trilu(upper: int) -> None:
    assert_rewritten("Trilu", [floats(3, 4, 4), scalar(1, np.int64)], upper=upper)


def test_gather_nd() -> None:
    assert_rewritten("GatherND", [floats(3, 4, 2), integers(5, 2, dtype=np.int64, low=0, high=3)], open_dims=False)


BODIES = {
    "branch": """g (bool c, float[2, N] x) => (float[2, N] y) { r = Relu(x)
        y = If (c) <then_branch = t () => (float[2, N] a) { a = com.microsoft.QuickGelu <alpha = 1.5> (r) },
            else_branch = e () => (float[2, N] b) { s = com.microsoft.FusedMatMul <transB = 1> (r, r)
                b = com.microsoft.FusedMatMul <transA = 1> (s, r) }> }""",
    "loop": """g (int64 n, float[2, 2] x) => (float[2, 2] y, float[k, 2, 2] z) {
        go = Constant <value = bool {1}> ()
        y, z = Loop (n, go, x) <body = b (int64 i, bool ci, float[2, 2] v) => (bool co, float[2, 2] w, float[2, 2] u) {
            co = Identity(ci) w = com.microsoft.FusedMatMul <transA = 1, alpha = 0.5> (v, x)
            u = com.microsoft.Gelu(w) }> }""",
    "behind a branch": """g (bool c, float[2, 3] x) => (y) {
        r = If (c) <then_branch = t () => (a) { a = com.microsoft.Gelu(x) },
            else_branch = e () => (b) { b = Neg(x) }>
        y = com.microsoft.FusedMatMul <transA = 1, alpha = 2.0> (r, r) }""",
    "many in a row": """g (float[N, M] x) => (y) <float[3] s = {1, 2, 3}, int64[3] t = {0, -1, 3}> {
        a = com.microsoft.Gelu(x) b = Reshape(a, t) c = com.microsoft.SkipSimplifiedLayerNormalization(b, b, s)
        d = com.microsoft.FusedMatMul <transA = 1> (c, c) e = com.microsoft.QuickGelu(d)
        y = com.microsoft.FusedMatMul <transB = 1, alpha = 3.0> (e, e) }""",
    "results that are read inside": """g (bool c, float[2] x) => (float[2] y, float[2] z) { z = com.microsoft.Gelu(x)
        y = If (c) <then_branch = t () => (float[2] a) { a = com.microsoft.Gelu(z) },
            else_branch = e () => (float[2] b) { b = Neg(z) }> }""",
}


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("opset", [13, 17, 21])
def test_bodies_and_chains(name: str, opset: int) -> None:
    model = assert_same_answers(parse(BODIES[name], opset, IMPORTS), {"M": 6})
    assert {node.domain for node in ir.traversal.RecursiveGraphIterator(model.graph)} == {""}


@pytest.mark.parametrize("seed", range(0, 12, 3))
def test_what_the_optimizer_makes_of_a_random_model(seed: int, tmp_path: Path) -> None:
    """Optimized by the engine and rewritten, it answers as the original does."""
    proto = random_model(seed)
    inputs = inputs_for(proto)
    optimized = optimize(proto, tmp_path, ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED)
    assert_close(run(ir.to_proto(canonical(optimized)), inputs), run(proto, inputs, optimize=False))


QUANTIZED = """g (float[N, 4, 8, 8] x) => (float[N, 8, 1, 1] y)
    <float s = {0.05}, uint8 z = {128}, float ws = {0.01}, int8 wz = {0}, float bs = {0.0005}, int32 bz = {0}> {
    xq = QuantizeLinear(x, s, z) xd = DequantizeLinear(xq, s, z)
    wd = DequantizeLinear(w, ws, wz) bd = DequantizeLinear(b, bs, bz)
    c = Conv <pads = [1, 1, 1, 1]> (xd, wd, bd) cq = QuantizeLinear(c, s, z) cd = DequantizeLinear(cq, s, z)
    vd = DequantizeLinear(v, ws, wz)
    e = Conv <pads = [1, 1, 1, 1]> (cd, vd, bd) eq = QuantizeLinear(e, s, z) ed = DequantizeLinear(eq, s, z)
    a = Add(cd, ed) aq = QuantizeLinear(a, s, z) ad = DequantizeLinear(aq, s, z)
    l = LeakyRelu(ad) lq = QuantizeLinear(l, s, z) ld = DequantizeLinear(lq, s, z)
    k = Concat <axis = 1> (ld, cd) kq = QuantizeLinear(k, s, z) kd = DequantizeLinear(kq, s, z)
    ud = DequantizeLinear(u, ws, wz)
    f = Conv(kd, ud, bd) fq = QuantizeLinear(f, s, z) fd = DequantizeLinear(fq, s, z)
    p = GlobalAveragePool(fd) pq = QuantizeLinear(p, s, z) y = DequantizeLinear(pq, s, z)
}"""


def test_what_the_optimizer_makes_of_a_quantized_model(tmp_path: Path) -> None:
    """Channels come last in it and QLinear operators are everywhere; a step of the result is 0.05."""
    proto = parse(QUANTIZED)
    # Seven bits: two products of eight may not fit the 16-bit sums of processors without VNNI, where ORT saturates.
    arrays = {
        "w": integers(8, 4, 3, 3, dtype=np.int8, low=-60, high=60),
        "v": integers(8, 8, 3, 3, dtype=np.int8, low=-40, high=40),
        "u": integers(8, 16, 1, 1, dtype=np.int8, low=-60, high=60),
        "b": integers(8, dtype=np.int32, low=-100, high=100),
    }
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in arrays.items())
    optimized = optimize(proto, tmp_path, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)
    assert {"QLinearAdd", "QLinearLeakyRelu", "QLinearConcat"} <= {node.op_type for node in optimized.graph.node}
    inputs = inputs_for(proto)
    (found,) = run(ir.to_proto(canonical(optimized)), inputs, optimize=False)
    (wanted,) = run(proto, inputs, optimize=False)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=0.051)
    assert np.abs(wanted).max() > 1


def optimize(proto: onnx.ModelProto, folder: Path, level: ort.GraphOptimizationLevel) -> onnx.ModelProto:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = level
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(folder / "optimized.onnx")


def test_a_type_that_nothing_tells_is_refused() -> None:
    proto = parse("g (float[2] x) => (y) { y = com.microsoft.QuickGelu <alpha = 2.0> (x) }", imports=IMPORTS)
    model = ir.from_proto(proto)
    model.graph.inputs[0].type = None
    with pytest.raises(ir.passes.PassError) as caught:
        ir.passes.Sequential(RewriteMicrosoft())(model)
    assert isinstance(caught.value.__cause__, ModelError)


@pytest.mark.parametrize("op", sorted(op for _, op in REWRITES))
def test_a_node_without_inputs_is_refused(op: str) -> None:
    """Whatever a file says, it is an error of ours."""
    proto, _ = vendor_model(op, [floats(2, 3, 4)], num_heads=2)
    del proto.graph.node[0].input[:]
    with pytest.raises(ModelError):
        canonical(proto)


@pytest.mark.parametrize("op", sorted(op for _, op in REWRITES))
@pytest.mark.parametrize("rank", [0, 1, 5])
def test_a_node_with_odd_inputs_is_refused_or_rewritten(op: str, rank: int) -> None:
    proto, _ = vendor_model(op, [floats(*(2, 3, 2, 2, 2)[:rank])] * 3, num_heads=2, bits=4, block_size=16)
    with suppress(ModelError):
        canonicalize(ir.from_proto(proto))


def test_what_was_saved_for_one_processor_is_refused() -> None:
    imports = IMPORTS + ', "com.microsoft.nchwc" : 1'
    text = "g (float[1, 16, 4, 4] x) => (y) { y = com.microsoft.nchwc.ReorderOutput <channels = 16> (x) }"
    with pytest.raises(ModelError, match=r"nchwc\.ReorderOutput \(1\).*ORT_ENABLE_EXTENDED"):
        canonical(parse(text, imports=imports))
