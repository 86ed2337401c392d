"""Names that are too long to travel: shortened where nobody asks for them by name, refused when building elsewhere."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.apps import lossy
from tests.apps.conftest import Serve

import flagsplit
from flagsplit import flagir
from flagsplit.apps.plan_graphs import plan_reference
from flagsplit.apps.wire_names import check_ends, has_long_names, name_that_travels, shorten_names
from flagsplit.errors import ModelError
from flagsplit.flagir.codecs import read_encoded_name
from flagsplit.runtime.bundle import GRAPH_NAME
from flagsplit.runtime.codec_check import check_encoded
from flagsplit.targets.interface import LoadOptions
from flagsplit.transport.messages import MAX_NAME_BYTES

SUFFIXES = ("", ".u4_per_channel.zero_point_12.after_0123456789ab", ".fp16.payload", ".after_0123456789ab")
LONG = {"x": 256, "v": 300, "a": 5000, "b": 250, "c": 257, "d": 231, "q": 256, "p": 3}


def size_bytes(name: str) -> int:
    return len(name.encode())


@given(st.text("v/ä…😀", max_size=300), st.sampled_from(SUFFIXES))
def test_short_names_fit_and_say_what_the_long_ones_did(text: str, suffix: str) -> None:
    name = text + suffix
    short = name_that_travels(name)
    assert size_bytes(short) <= MAX_NAME_BYTES
    assert (short == name) == (size_bytes(name) <= MAX_NAME_BYTES)
    assert name_that_travels(short) == short
    assert short.endswith(suffix)
    if suffix.startswith((".u4", ".fp16")) and text:
        long_says, short_says = read_encoded_name(name), read_encoded_name(short)
        assert long_says is not None
        assert short_says is not None
        assert short_says.with_role("scale").endswith(long_says.with_role("scale")[-30:])
        assert (short_says.codec, short_says.role) == (long_says.codec, long_says.role)


def test_other_names_are_other_short_names() -> None:
    ends = ("head" * 100, "tail" * 100)
    names = [f"{ends[0]}{number}{ends[1]}" for number in range(2000)]
    assert len({name_that_travels(name) for name in names}) == len(names)


def long_names() -> dict[str, str]:
    """By short name, one of as many bytes as `LONG` says, some of them in the middle of a character of three."""
    return {name: name + "." * ((size - 1) % 3) + "…" * ((size - 1) // 3) for name, size in LONG.items()}


@pytest.mark.slow
@pytest.mark.usefixtures("own_folders")
@pytest.mark.parametrize("codec", ["none", "fp16", "u4_per_channel"])
def test_a_model_with_long_names_runs_split(serve: Serve, tmp_path: Path, codec: str) -> None:
    names = long_names()
    assert size_bytes(names["x"]) == size_bytes(names["q"]) == MAX_NAME_BYTES < size_bytes(names["v"])
    bundle = lossy.build_with(tmp_path, codec, names=names)
    steps = [step for steps in bundle.plans.steps.values() for step in steps]
    assert max(size_bytes(name) for step in steps for name in (*step.inputs, *step.outputs)) <= MAX_NAME_BYTES
    kept = flagir.read_model(bundle.folder / GRAPH_NAME)
    assert {names["v"], names["a"]} <= {value.name for node in kept.graph for value in node.outputs}
    inputs = {names["x"]: lossy.inputs_of(3)["x"]}
    with flagsplit.connect(bundle, serve(bundle)) as session:
        for plan in lossy.PLACES:
            answer = session.run(inputs, plan=plan)
            with plan_reference(bundle, plan, LoadOptions(threads=1)) as made:
                wanted = made.run(inputs)
            assert answer.keys() == wanted.keys() == {names["p"], names["q"], names["b"]}
            for name, array in wanted.items():
                np.testing.assert_array_equal(answer[name], array)


@pytest.mark.slow
@pytest.mark.usefixtures("own_folders")
@pytest.mark.parametrize(("what", "name"), [("input", "x"), ("output", "q")])
def test_ends_with_long_names_are_refused_when_building(tmp_path: Path, what: str, name: str) -> None:
    model = lossy.write_model(tmp_path / "m.onnx", {name: name * 257})
    with pytest.raises(
        ModelError, match=rf"graph {what} '{name * 40}'... has a name of 257 bytes, expected at most 256"
    ):
        flagsplit.build(model, "phone,cloud", tmp_path / "m.flagsplit", dims={"N": 1})


def test_a_short_name_that_is_taken() -> None:
    name = "v" * 300
    for taken in ("y", name_that_travels(name)):
        model = ir.from_proto(_pair(name, taken))
        check_ends(model)
        assert has_long_names(model)
        if taken == "y":
            shorten_names(model)
            assert not has_long_names(model)
            assert [value.name for node in model.graph for value in node.outputs] == [name_that_travels(name), "y"]
        else:
            with pytest.raises(ModelError, match="that flagsplit gives to a longer one"):
                shorten_names(model)


def _pair(name: str, last: str) -> onnx.ModelProto:
    nodes = [onnx.helper.make_node("Abs", ["x"], [name]), onnx.helper.make_node("Neg", [name], [last])]
    ends = [onnx.helper.make_tensor_value_info(each, onnx.TensorProto.FLOAT, [2]) for each in ("x", last)]
    return onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", ends[:1], ends[1:]))


def test_checks_read_short_names() -> None:
    name = name_that_travels("v" * 300 + ".u8_per_channel.check.after_0123456789ab")
    reason = check_encoded({name: np.array(2)})
    assert reason is not None
    assert reason.endswith("cannot travel as u8_per_channel: 2 of its numbers are NaN or infinite")
