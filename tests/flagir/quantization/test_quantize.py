"""Quantized models: what their graphs look like, what they answer, what the gate lets through."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from tests.flagir.models import canonical, parse
from tests.flagir.quantization.engine import Array, run

from flagsplit import flagir
from flagsplit.errors import ConfigError, ModelError
from flagsplit.flagir.quantization import Quantized, QuantizeOptions, cosine, quantize
from flagsplit.flagir.quantization.fold_batch_norm import fold_batch_norms, fold_channel_lines
from flagsplit.flagir.quantization.rules import SAME

_SMALL = """g (float[1, 3, 12, 12] x) => (float[1, 5] y) {
    a = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w1, b1)
    n = BatchNormalization (a, gamma, beta, mean, variance)
    r = Relu (n)
    p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)
    d = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1], group = 8> (p, w2)
    s = Sigmoid (d)
    m = Mul (d, s)
    c = Concat <axis = 1> (p, m, s)
    f = Flatten (c)
    z = MatMul (f, w3)
    y = Add (z, b3)
}"""


def _with(text: str, weights: Mapping[str, Array]) -> ir.Model:
    proto = parse(text)
    for name, array in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array, np.float32), name))
    return canonical(proto)


def _small() -> ir.Model:
    rng = np.random.default_rng(0)
    weights = {
        "w1": rng.standard_normal((8, 3, 3, 3)) * 0.3,
        "b1": rng.standard_normal(8),
        "gamma": rng.uniform(0.5, 2, 8),
        "beta": rng.standard_normal(8) * 0.1,
        "mean": rng.standard_normal(8),
        "variance": rng.uniform(0.5, 2, 8),
        "w2": rng.standard_normal((8, 1, 3, 3)) * 0.4,
        "w3": rng.standard_normal((24 * 36, 5)) * 0.05,
        "b3": rng.standard_normal(5),
    }
    return _with(_SMALL, weights)


def _pictures(count: int, seed: int = 0) -> list[dict[str, Array]]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal((1, 3, 12, 12)).astype(np.float32)} for _ in range(count)]


def _pairs(model: ir.Model) -> dict[str, tuple[float, int]]:
    """Scale and zero point of each value that a QuantizeLinear and a DequantizeLinear give back."""
    found = {}
    for node in model.graph:
        if node.op_type == "DequantizeLinear" and len(node.inputs) == 3:
            scale, zero = (value.const_value for value in node.inputs[1:3] if value is not None)
            assert scale is not None
            assert zero is not None
            found[node.outputs[0].name or ""] = (float(scale.numpy()), int(zero.numpy()))
    return found


def test_every_operator_of_a_small_network_becomes_int8() -> None:
    model = _small()
    before = flagir.to_bytes(model)
    made = quantize(model, _pictures(8), run, checks=_pictures(8, 1))
    assert flagir.to_bytes(model) == before
    assert all(each.int8 for each in made.nodes)
    assert made.cosine > 0.999
    assert made.worst <= made.cosine + 1e-9
    assert made.flops_int8 == 1
    ir.passes.common.CheckerPass(full_check=True)(made.model)
    answers = zip(run(model, _pictures(16, 2)), run(made.model, _pictures(16, 2)), strict=True)
    assert np.mean([cosine(a["y"], b["y"]) for a, b in answers]) > 0.998


def test_weights_are_int8_and_each_operator_reads_and_gives_int8() -> None:
    made = quantize(_small(), _pictures(8), run).model
    stored = {value.const_value.dtype for value in made.graph.initializers.values() if value.const_value is not None}
    large = [
        value.const_value.dtype.name
        for value in made.graph.initializers.values()
        if value.const_value is not None and value.const_value.size > 30
    ]
    assert set(large) == {"INT8"}
    assert ir.DataType.INT32 in stored
    for node in made.graph:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            continue
        makers = [value.producer() for value in node.inputs if value is not None and value.dtype == ir.DataType.FLOAT]
        fused = node.op_type in ("Relu", "Add")
        assert fused or all(maker is not None and maker.op_type == "DequantizeLinear" for maker in makers), node.name


def test_what_only_moves_numbers_keeps_scale_and_zero_point() -> None:
    made = quantize(_small(), _pictures(8), run).model
    pairs = _pairs(made)
    moving = [node for node in made.graph if node.op_type in SAME]
    assert {node.op_type for node in moving} >= {"MaxPool", "Concat"}
    for node in moving:
        reader = next(iter(node.outputs[0].uses())).node  # the QuantizeLinear
        after = pairs[next(iter(reader.outputs[0].uses())).node.outputs[0].name or ""]
        for value in node.inputs:
            if value is not None and value.dtype == ir.DataType.FLOAT:
                assert pairs[value.name or ""] == after


def test_the_answer_keeps_its_name_and_values_where_they_leave_int8() -> None:
    made = quantize(_small(), _pictures(4), run).model
    assert [value.name for value in made.graph.outputs] == ["y"]
    assert made.graph.outputs[0].producer().op_type == "DequantizeLinear"  # type: ignore[union-attr]


def test_batch_norms_are_folded_in_float64() -> None:
    model = _small()
    folded = model.clone()
    assert fold_batch_norms(folded) == 1
    assert all(node.op_type != "BatchNormalization" for node in folded.graph)
    for a, b in zip(run(model, _pictures(3)), run(folded, _pictures(3)), strict=True):
        np.testing.assert_allclose(a["y"], b["y"], rtol=1e-4, atol=1e-5)
    assert fold_batch_norms(folded) == 0


def _up(after: str) -> ir.Model:
    rng = np.random.default_rng(5)
    body = f"t = ConvTranspose <strides = [2, 2]> (x, w, b) {after}"
    text = f"g (float[1, 4, 5, 5] x) => (float[1, 6, 10, 10] y) {{ {body} }}"
    weights: dict[str, Array] = {"w": rng.standard_normal((4, 6, 2, 2)), "b": rng.standard_normal(6)}
    weights |= {
        "s": rng.standard_normal((6, 1, 1)),
        "wide": rng.standard_normal((6, 10, 1)),
        "v": rng.uniform(0.5, 2, 6),
    }
    return _with(text, {name: array for name, array in weights.items() if name in text})


@pytest.mark.parametrize(
    ("after", "left"),
    [
        ("y = Add (t, s)", ["ConvTranspose"]),
        ("y = BatchNormalization (t, v, b, b, v)", ["ConvTranspose"]),
        ("y = Mul (t, s)", ["ConvTranspose"]),
        ("m = Mul (s, t) y = Add (m, s)", ["ConvTranspose"]),
        ("y = Mul (t, wide)", ["ConvTranspose", "Mul"]),
        ("a = Add (s, t) y = BatchNormalization (a, v, b, b, v)", ["ConvTranspose"]),
        ("y = Add (t, wide)", ["ConvTranspose", "Add"]),
        ("a = Add (t, s) y = Add (a, t)", ["ConvTranspose", "Add", "Add"]),
    ],
)
def test_what_is_linear_in_a_channel_goes_into_the_weights(after: str, left: list[str]) -> None:
    model = _up(after)
    folded = model.clone()
    fold_channel_lines(folded)
    fold_batch_norms(folded)
    assert [node.op_type for node in folded.graph] == left
    given = [{"x": np.random.default_rng(1).standard_normal((1, 4, 5, 5)).astype(np.float32)}]
    for a, b in zip(run(model, given), run(folded, given), strict=True):
        np.testing.assert_allclose(a["y"], b["y"], rtol=1e-4, atol=1e-5)


def test_a_batch_norm_before_anything_is_quantized_as_a_product_and_a_sum() -> None:
    rng = np.random.default_rng(2)
    numbers = {"g": rng.uniform(0.5, 2, 4), "b": rng.standard_normal(4), "m": rng.standard_normal(4)}
    text = "g (float[1, 4, 5, 5] x) => (float[1, 4, 5, 5] y) { n = BatchNormalization (x, g, b, m, g) y = Relu (n) }"
    model = _with(text, numbers)
    samples = [{"x": rng.standard_normal((1, 4, 5, 5)).astype(np.float32)} for _ in range(4)]
    made = quantize(model, samples, run)
    assert [each.op_type for each in made.nodes] == ["Mul", "Add", "Relu"]
    assert all(each.int8 for each in made.nodes)
    assert made.cosine > 0.999


def test_a_sum_of_two_is_quantized_as_an_addition() -> None:
    model = _with("g (float[1, 4] x) => (float[1, 4] y) { s = Tanh (x) y = Sum (s, x) }", {})
    samples = [{"x": np.linspace(-1, 1, 4, dtype=np.float32).reshape(1, 4)}]
    made = quantize(model, samples, run)
    assert [each.int8 for each in made.nodes] == [True, True]
    assert "Add" in {node.op_type for node in made.model.graph}


def test_a_corrected_bias_takes_away_the_shift_of_rounded_weights() -> None:
    """Inputs of a mean far from 0 turn the weights' rounding errors into a shift of each channel."""
    rng = np.random.default_rng(3)
    text = "g (float[1, 16, 6, 6] x) => (float[1, 4, 6, 6] y) { y = Conv <kernel_shape = [1, 1]> (x, w, b) }"
    weights = rng.standard_normal((4, 16, 1, 1))
    weights[:, 0] = 40  # makes the steps of all others coarse
    model = _with(text, {"w": weights, "b": rng.standard_normal(4)})
    samples = [{"x": rng.normal(1.0, 0.1, (1, 16, 6, 6)).astype(np.float32)} for _ in range(8)]
    wanted = np.mean([made["y"] for made in run(model, samples)], axis=(0, 1, 3, 4))

    def shift(correct: bool) -> float:
        made = quantize(model, samples, run, QuantizeOptions(correct_bias=correct, min_cosine=-1.0)).model
        found = np.mean([each["y"] for each in run(made, samples)], axis=(0, 1, 3, 4))
        return float(np.abs(found - wanted).max())

    assert shift(correct=True) < shift(correct=False) / 3


_SENSITIVE = """g (float[1, 64] x) => (float[1, 8] y) {
    a = MatMul (x, w1)
    r = Relu (a)
    big = Mul (r, spread)
    back = Mul (big, gather)
    b = MatMul (back, w2)
    y = Add (b, b2)
}"""
"""`big` holds numbers of very different size of which all matter after `back`: no one scale is right for it."""


def _sensitive() -> tuple[ir.Model, list[dict[str, Array]]]:
    rng = np.random.default_rng(5)
    spread = np.logspace(0, 5, 64)
    weights = {
        "w1": rng.standard_normal((64, 64)) * 0.2,
        "spread": spread,
        "gather": 1 / spread,
        "w2": rng.standard_normal((64, 8)) * 0.2,
        "b2": rng.standard_normal(8),
    }
    samples = [{"x": rng.standard_normal((1, 64)).astype(np.float32)} for _ in range(12)]
    return _with(_SENSITIVE, weights), samples


def test_only_what_int8_ruins_goes_back_to_floating_point() -> None:
    model, samples = _sensitive()
    without = quantize(model, samples, run, QuantizeOptions(min_cosine=-1.0))
    assert without.cosine < 0.9
    made = quantize(model, samples, run)
    assert made.cosine >= 0.999
    names = {node.outputs[0].name: node.name for node in model.graph}
    floating = {each.node: each for each in made.nodes if not each.int8}
    assert names["big"] in floating
    assert "off a cosine" in floating[names["big"] or ""].reason
    assert {names["a"], names["r"]}.isdisjoint(floating)


def test_the_task_decides_too() -> None:
    """Cosines may be anything here; the largest of the outputs has to be the same one."""
    model, samples = _sensitive()

    def same_largest(pairs: Sequence[tuple[Mapping[str, Array], Mapping[str, Array]]]) -> float:
        return float(np.mean([wanted["y"].argmax() == came["y"].argmax() for wanted, came in pairs]))

    free = quantize(model, samples, run, QuantizeOptions(min_cosine=-1.0, task=same_largest, min_task=0.0))
    assert free.task is not None
    assert free.task < 1
    made = quantize(model, samples, run, QuantizeOptions(min_cosine=-1.0, task=same_largest, min_task=1.0))
    assert made.task == 1
    assert 0 < made.flops_int8 <= 1
    assert sum(each.int8 for each in made.nodes) < sum(each.int8 for each in free.nodes)


def test_nodes_that_are_to_stay_do() -> None:
    model, samples = _sensitive()
    first = next(iter(model.graph)).name or ""
    made = quantize(model, samples, run, QuantizeOptions(min_cosine=-1.0, kept={first: "the user says so"}))
    report = {each.node: each for each in made.nodes}
    assert not report[first].int8
    assert report[first].reason == "the user says so"


def test_a_model_that_int8_ruins_as_a_whole_is_refused() -> None:
    text = "g (float[1, 64] x) => (float[1, 64] y) { big = Mul (x, spread) y = Mul (big, gather) }"
    spread = np.logspace(0, 6, 64)
    model = _with(text, {"spread": spread, "gather": 1 / spread})
    samples = [{"x": np.random.default_rng(at).standard_normal((1, 64)).astype(np.float32)} for at in range(4)]
    with pytest.raises(ModelError, match="no node can be int8"):
        quantize(model, samples, run, QuantizeOptions(min_cosine=0.99999))


def test_the_outcome_is_the_same_every_time() -> None:
    def bytes_of(made: Quantized) -> bytes:
        return flagir.to_bytes(made.model)

    model, samples = _sensitive()
    assert bytes_of(quantize(model, samples, run)) == bytes_of(quantize(model, samples, run))


def test_samples_and_options_are_checked() -> None:
    model, samples = _sensitive()
    with pytest.raises(ConfigError, match="came none"):
        quantize(model, [], run)
    with pytest.raises(ConfigError, match="expected an observer"):
        quantize(model, samples, run, QuantizeOptions(observer="best"))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="least cosine"):
        quantize(model, samples, run, QuantizeOptions(min_cosine=2.0))
