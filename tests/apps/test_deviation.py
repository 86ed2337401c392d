"""How far two tensors are apart, and whether that is too far."""

import math

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.apps.models import Array

from flagsplit import flagir
from flagsplit.apps.deviation import EXACT, Deviation, Tolerance, deviation, deviations
from flagsplit.flagir.codecs import BoundaryCut, codec_names, encoded_name
from flagsplit.flagir.codecs.apply import apply_codecs

NORM = Tolerance("norm", 1e-3)
NAN, INF = math.nan, math.inf


def one(expected: object, came: object, allowed: Tolerance = NORM, dtype: str = "float32") -> Deviation:
    return deviation("v", np.array(expected, dtype), np.array(came, dtype), allowed)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 30), st.floats(-30, 30), st.floats(-6, 0))
def test_figures(seed: int, size: float, error: float) -> None:
    rng = np.random.default_rng(seed)
    a = (rng.standard_normal((3, 5)) * 10.0**size).astype(np.float32)
    b = (a + a.astype(np.float64).std() * 10.0**error * rng.standard_normal((3, 5))).astype(np.float32)
    found = deviation("v", a, b, NORM)
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    assert found.norm_relative == pytest.approx(np.linalg.norm(wide_a - wide_b) / np.linalg.norm(wide_a), rel=1e-9)
    assert found.max_abs == np.abs(wide_a - wide_b).max()
    cosine = (wide_a * wide_b).sum() / np.linalg.norm(wide_a) / np.linalg.norm(wide_b)
    assert found.cosine == pytest.approx(cosine, abs=1e-12)
    assert found.differing == np.count_nonzero(a != b)
    assert found.departs == (found.norm_relative > NORM.limit)
    if found.first is not None:
        assert found.first.expected == a[found.first.index]
        assert found.first.came == b[found.first.index]


def test_what_is_not_finite() -> None:
    assert not one([NAN, INF, -INF, 1], [NAN, INF, -INF, 1]).departs
    assert not one([NAN, INF, 1.0], [NAN, INF, 1.0001]).departs
    for expected, came, note in (
        ([1, 2], [1, NAN], "1 elements are NaN, 0 expected"),
        ([1, 2], [INF, 2], "1 elements are infinite, 0 expected"),
        ([1, NAN], [1, 2], "0 elements are NaN, 1 expected"),
        ([1, INF], [1, -INF], "other sign"),
        ([INF, 1, 1], [1, INF, 1], "other sign or at other places"),
        ([NAN, 1, 1], [1, NAN, 1], "NaN is at other places"),
    ):
        for allowed in (NORM, Tolerance("norm", 1e9), Tolerance("cosine", 0.0)):
            found = one(expected, came, allowed)
            assert found.departs
            assert found.norm_relative == INF
            assert note in found.note


def test_the_first_element_that_is_off() -> None:
    expected = np.ones((2, 3), np.float32)
    came = expected.copy()
    came[0, 1] += np.float32(1e-6)
    came[1, 2] += 1
    found = deviation("v", expected, came, NORM)
    assert found.first is not None
    assert found.first.index == (1, 2), "the one before is within the tolerance"
    assert deviation("v", expected, came, EXACT).first == type(found.first)((0, 1), 1.0, float(came[0, 1]))


def test_zeros_and_large_numbers() -> None:
    assert one([0, 0, 0, 0], [0, 2e-3, 0, 0]).norm_relative == pytest.approx(1e-3)
    assert not one([0, 0, 0, 0], [0, 1e-3, 0, 0]).departs
    assert one([1, 1], [0, 0]).cosine == 0.0
    assert one([1e308, 1e308], [1e308, 1.1e308], dtype="float64").norm_relative == pytest.approx(0.1 / math.sqrt(2))
    assert one([], []).departs is False
    assert one(3.0, 3.5).first is not None


def test_whole_numbers_texts_and_shapes() -> None:
    wide = Tolerance("norm", 100)
    assert one([1, 2], [1, 3], wide, "int64").departs
    assert one([True, False], [True, True], wide, "bool").departs
    assert not one([1, 2], [1, 2], wide, "int64").departs
    assert one(["a"], ["b"], wide, "object").departs
    assert not one(["a"], ["a"], wide, "object").departs
    found = deviation("v", np.zeros(3, np.float32), np.zeros(4, np.float32), wide)
    assert found.departs
    assert found.note == "expected float32 [3], came float32 [4]"
    assert deviation("v", np.zeros(3, np.float32), np.zeros(3, np.float16), wide).departs


def test_half_precision_gets_a_step() -> None:
    expected = np.array([1, 1.5, 3], np.float16)
    assert not deviation("v", expected, np.nextafter(expected, np.float16(9)), Tolerance("norm", 0.0)).departs
    assert deviation("v", expected, expected * np.float16(1.01), Tolerance("norm", 0.0)).departs


def test_widened() -> None:
    assert Tolerance("norm", 0.1).widened(0.2).limit == pytest.approx(0.3)
    assert Tolerance("cosine", 1.0).widened(0.1).limit == pytest.approx(0.995)
    assert Tolerance("cosine", 0.9).widened(100).limit == 0.0
    assert EXACT.widened(1) == EXACT


def _encoded(x: Array, codec: str) -> tuple[dict[str, Array], Array]:
    """What a codec makes of `x`, and what is decoded."""
    import onnx_ir as ir

    dims = ", ".join(map(str, x.shape))
    text = f'<ir_version: 11, opset_import: ["" : 23]> g (float[{dims}] x) => (float[{dims}] y) {{ [n] y = Abs(x) }}'
    model = ir.serde.deserialize_model(onnx.parser.parse_model(text))
    flagir.write_placement(model, "p", ("a", "b"), {"n": 1})
    apply_codecs(model, [BoundaryCut("x", 0, 1, codec)])
    decode = next(node for node in model.graph if node.op_type.startswith("Decode"))
    encode = next(node for node in model.graph if node.op_type.startswith("Encode"))
    model.graph.outputs.extend([*encode.outputs, *decode.outputs])
    for plan in flagir.plans_on(model):
        model.remove_device_configuration(plan, cascade=True)
    session = ort.InferenceSession(flagir.to_bytes(model), providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_outputs()]
    made = dict(zip(names, session.run(names, {"x": x}), strict=True))
    decoded = made.pop(str(decode.outputs[0].name))
    made.pop("y")
    return made, decoded


@pytest.mark.parametrize("codec", codec_names()[1:])
@pytest.mark.parametrize("shape", [(3, 5, 7), (3, 1, 1), (5,), (2, 3), (1, 2, 3, 5)])
def test_encoded_values_are_compared_as_they_are_decoded(codec: str, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(len(shape))
    x = rng.standard_normal(shape).astype(np.float32)
    made, decoded = _encoded(x, codec)
    payload = encoded_name("x", codec, "payload")
    other, other_decoded = _encoded(np.asarray(x * np.float32(1 + 2e-4), np.float32), codec)
    (found,) = deviations(made, other, NORM)
    assert found.name == f"x as {codec}"
    assert found.max_abs == pytest.approx(float(np.abs(other_decoded - decoded).max()), abs=1e-12)
    assert not found.departs
    wrong, _ = _encoded(-2 * x, codec)
    (found,) = deviations(made, wrong, NORM)
    assert found.departs
    assert payload in {each.name for each in deviations(made, wrong, EXACT)}, "bit for bit as they travel"
    assert payload in made
    del other[payload]
    other[payload] = made[payload].reshape(-1)[:1].copy()
    if made[payload].size > 1:
        assert any(each.departs for each in deviations(made, other, NORM)), "another shape"
