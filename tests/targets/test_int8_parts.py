"""Parts that become int8 by themselves: what the rest of the model makes of them counts, too."""

import json
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import pytest
from tests.targets.tflite.int8_parts import canonical

from flagsplit.errors import ConfigError, ModelError
from flagsplit.flagir import Segment, extract
from flagsplit.targets.chip_parts import ChipPart
from flagsplit.targets.int8_parts import Int8Parts, int8_parts
from flagsplit.targets.interface import Array, CompileOptions
from flagsplit.targets.part_samples import with_samples

WEIGHTS = ", ".join(f"{value:.3f}" for value in np.random.default_rng(0).standard_normal(64))
CONSTANTS = f"float[8,8] w = {{{WEIGHTS}}}, float[1] far = {{300}}"
BODY = "p = MatMul(x, w) h = Add(p, far) d = Sub(h, far) y = Relu(d)"


def samples(count: int = 12) -> list[Mapping[str, Array]]:
    random = np.random.default_rng(1)
    return [{"x": random.standard_normal((1, 8)).astype(np.float32)} for _ in range(count)]


def model() -> ir.Model:
    return canonical(BODY, "float[1,8] x", "float[1,8] y", CONSTANTS)


def first(whole: ir.Model) -> ChipPart:
    """The nodes up to `h`, whose values differ little from each other."""
    (end,) = (at for at, node in enumerate(whole.graph) if node.op_type == "Add")
    nodes = list(whole.graph)[: end + 1]
    segment = Segment("first", tuple(node.name or "" for node in nodes), ("x",), (nodes[-1].outputs[0].name or "",))
    return ChipPart("first", extract(whole, segment))


def quantized(part: ChipPart) -> Int8Parts:
    return int8_parts([part], real_samples=True, min_cosine=0.999, target="litert")


def told(*, rest: bool) -> ChipPart:
    whole = model()
    (part,) = with_samples(whole, [first(whole)], CompileOptions(samples=samples(), real_samples=True), rest)
    return part


def test_the_rest_is_what_depends_on_the_part() -> None:
    part = told(rest=True)
    assert part.rest is not None
    assert [node.op_type for node in part.rest.model.graph] == ["Sub", "Relu"]
    assert set(part.rest.samples[0]) == set()
    for sample, expected in zip(samples(), part.rest.expected, strict=True):
        wanted = np.maximum(sample["x"] @ np.array([float(each) for each in WEIGHTS.split(", ")]).reshape(8, 8), 0)
        np.testing.assert_allclose(expected["y"].astype(np.float32), wanted, atol=1e-3)


def test_a_part_that_looks_well_and_ruins_the_answers_does_not_pass() -> None:
    alone = quantized(told(rest=False))
    assert float(alone.told["int8_cosine"]) > 0.999
    assert json.loads(alone.told["in_float"]) == {}
    made = quantized(told(rest=True))
    assert float(made.told["int8_cosine"]) >= 0.999
    assert len(json.loads(made.told["in_float"])) == 1  # the sum, whose step is as large as what is left of it


def test_where_nothing_is_near_enough_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flagsplit.targets.int8_parts._TIGHTENED", 1)
    with pytest.raises(ModelError, match=r"segment first cannot be int8: cosine 0\.9999\d* at its outputs leaves 0"):
        quantized(told(rest=True))


def test_a_part_at_the_end_has_no_rest() -> None:
    whole = model()
    part = ChipPart("all", extract(whole, Segment("all", tuple(n.name or "" for n in whole.graph), ("x",), ("y",))))
    (found,) = with_samples(whole, [part], CompileOptions(samples=samples(2), real_samples=True), rest=True)
    assert found.rest is None
    assert len(found.samples) == 2


def test_without_samples_nothing_is_told() -> None:
    whole = model()
    (found,) = with_samples(whole, [first(whole)], CompileOptions(), rest=True)
    assert (found.rest, list(found.samples)) == (None, [])


@pytest.mark.parametrize("rest", [False, True])
def test_int8_needs_real_samples(rest: bool) -> None:
    with pytest.raises(ConfigError, match="real inputs"):
        int8_parts([told(rest=rest)], real_samples=False, min_cosine=0.9, target="litert")
