"""Names of encoded tensors, and the count of what a codec would hide."""

import numpy as np
import onnx_ir as ir
import pytest
from tests.flagir.coded_graphs import CODECS, place
from tests.flagir.models import canonical, parse, run

from flagsplit.flagir import ValueType, cut_into_steps, extract, read_placement
from flagsplit.flagir.codecs import (
    BoundaryCut,
    EncodedName,
    add_checks,
    apply_codecs,
    encoded_name,
    encoded_types,
    name_what_is_lossy,
    read_encoded_name,
)

VALUES = ["v", "a/b.c:0", "v.u8.payload", "fp16", "Übergröße", "new\nline", "x.after_0123456789ab"]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("value", VALUES)
def test_names_say_what_they_are(codec: str, value: str) -> None:
    for role in (*encoded_types(codec, ValueType(ir.DataType.FLOAT, (2, 3))), "check"):
        name = encoded_name(value, codec, role)
        assert name == f"{value}.{codec}.{role}"
        for rest in ("", "_2", ".after_0123456789ab", "_12.after_0123456789ab"):
            made = EncodedName(value, codec, role, rest)
            assert read_encoded_name(name + rest) == made
            assert made.with_role("scale") == f"{value}.{codec}.scale{rest}"


@pytest.mark.parametrize(
    "name", ["", "v", "v.u8", "v.u8.at_1", ".u8.payload", "v.u9.scale", "v.u8.payload.x", "payload"]
)
def test_other_names_say_nothing(name: str) -> None:
    assert read_encoded_name(name) is None


def coded(codec: str, text: str, placement: list[int], *cuts: BoundaryCut) -> ir.Model:
    model = canonical(parse(text))
    place(model, placement, max(placement) + 1)
    apply_codecs(model, [BoundaryCut("h", 0, 1, codec), *cuts])
    add_checks(model)
    return model


CHAIN = "g (float[N, 3] x) => (float[N, 3] y) { h = Abs(x) y = Neg(h) }"


@pytest.mark.parametrize("codec", CODECS)
def test_the_count_is_made_where_the_value_is_encoded_and_never_read(codec: str) -> None:
    model = coded(codec, CHAIN, [0, 1])
    first, second = cut_into_steps(model, read_placement(model, "p"), 2)
    counted = codec != "fp16"
    assert (f"h.{codec}.check" in first.segment.outputs) == counted
    assert not any("check" in name for name in (*second.segment.inputs, *second.segment.outputs))
    for number, bad in ((np.nan, 2), (np.inf, 2), (-np.inf, 2), (3e38, 0), (1.0, 0)):
        x = np.full((4, 3), 3e38, np.float32)
        x[1, 1] = x[3, 2] = number
        made = run(ir.to_proto(extract(model, first.segment)), {"x": x})
        found = dict(zip(first.segment.outputs, made, strict=True))
        if counted:
            np.testing.assert_array_equal(found[f"h.{codec}.check"], np.int64(bad))


def test_an_empty_value_has_nothing_that_is_not_finite() -> None:
    model = coded("u8", CHAIN, [0, 1])
    first = cut_into_steps(model, read_placement(model, "p"), 2)[0].segment
    made = run(ir.to_proto(extract(model, first)), {"x": np.zeros((0, 3), np.float32)})
    assert dict(zip(first.outputs, made, strict=True))["h.u8.check"] == 0


def test_each_encode_has_one_and_a_loss_before_is_in_its_name() -> None:
    text = "g (float[2, 3] x) => (float[2, 3] y, float[2, 3] z) { h = Abs(x) a = Neg(h) y = Exp(a) z = Tanh(h) }"
    model = coded("u8", text, [0, 1, 2, 1], BoundaryCut("a", 1, 2, "u4_per_channel"))
    name_what_is_lossy(model)
    checks = [value.name or "" for node in model.graph for value in node.outputs if ".check" in (value.name or "")]
    assert len(checks) == 2
    assert checks[0] == "h.u8.check"
    read = read_encoded_name(checks[1])
    assert read is not None
    assert (read.value, read.codec, read.role) == ("a", "u4_per_channel", "check")


def test_a_model_with_such_a_name_goes_unchecked() -> None:
    text = "g (float[2, 3] x) => (float[2, 3] y, float[2, 3] z) { h = Abs(x) y = Neg(h) z = Abs(y) }"
    model = canonical(parse(text))
    next(iter(model.graph)).outputs[0].name = "h"
    model.graph.outputs[1].name = "h.u8.check"
    place(model, [0, 1, 1], 2)
    apply_codecs(model, [BoundaryCut("h", 0, 1, "u8")])
    add_checks(model)
    assert not any(node.op_type == "CountNotFinite" for node in model.graph)
