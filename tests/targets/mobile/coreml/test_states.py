"""A decoder step whose keys and values stay in the program, against the model that is handed them each time."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from tests.targets.mobile.coreml import programs
from tests.targets.mobile.coreml.graphs import difference, floats, parse

from flagsplit.errors import BundleError, ConfigError, InputError, ModelError
from flagsplit.flagir.segments import segment_of
from flagsplit.targets.chip_parts import ChipPart
from flagsplit.targets.interface import Array, CompileOptions, LoadOptions
from flagsplit.targets.mobile.coreml.choices import Choices, read_choices
from flagsplit.targets.mobile.coreml.lower_part import lower_part
from flagsplit.targets.mobile.coreml.ranges import answers
from flagsplit.targets.mobile.coreml.stateful import open_stateful
from flagsplit.targets.mobile.coreml.states import states_of
from flagsplit.targets.mobile.coreml.target import CoremlTarget
from flagsplit.targets.mobile.mil import load_package
from flagsplit.targets.segment_table import read_table

HOST = LoadOptions(threads=1)
BIG = {"big": np.float32(1e6)}
SLOTS, WIDTH = 6, 16
STATES = {"keys": "new_keys", "values": "new_values"}
_STEP = f"""g (float[1, {WIDTH}] x, float[{SLOTS}, 1] slot, float[1, {SLOTS}] hidden,
   float[{SLOTS}, {WIDTH}] keys, float[{SLOTS}, {WIDTH}] values)
=> (float[1, {WIDTH}] y, float[{SLOTS}, {WIDTH}] new_keys, float[{SLOTS}, {WIDTH}] new_values) {{
    k = MatMul(x, wk)
    v = MatMul(x, wv)
    kept = Sub(one, slot)
    old_keys = Mul(keys, kept)
    put_key = Mul(slot, k)
    new_keys = Add(old_keys, put_key)
    old_values = Mul(values, kept)
    put_value = Mul(slot, v)
    new_values = Add(old_values, put_value)
    turned = Transpose <perm = [1, 0]> (new_keys)
    scores = MatMul(x, turned)
    masked = Add(scores, hidden)
    shares = Softmax(masked)
    read = MatMul(shares, new_values)
    y = Add(read, x)
}}"""


def _step() -> ir.Model:
    weights = {"wk": floats(WIDTH, WIDTH, seed=1, scale=0.3), "wv": floats(WIDTH, WIDTH, seed=2, scale=0.3)}
    return parse(_STEP, {**weights, "one": np.float32(1)})


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "worst"), [("fp32", 2e-3), ("fp16", 4e-3)])
def test_a_cache_that_stays(tmp_path: Path, precision: str, worst: float) -> None:
    """States are fp16 whatever is computed in; so is the error that they leave."""
    model = _step()
    lowered = lower_part(ChipPart("step", model), Choices(precision=precision), states=STATES)
    programs.write(tmp_path, {"step": lowered.program})
    step = programs.load(tmp_path).function("step")
    assert sorted(spec.name for spec in step.inputs) == ["hidden", "slot", "x"]
    assert [spec.name for spec in step.outputs] == ["y"]
    assert {spec.name: spec.dtype for spec in step.states} == {"keys": "float16", "values": "float16"}
    state = step.new_state()
    cache: dict[str, Array] = {name: np.zeros((SLOTS, WIDTH), np.float32) for name in STATES}
    for at in range(SLOTS):
        given = {
            "x": floats(1, WIDTH, seed=10 + at),
            "slot": np.eye(SLOTS, dtype=np.float32)[:, at : at + 1],
            "hidden": np.where(np.arange(SLOTS) <= at, 0, -1e4).astype(np.float32)[None],
        }
        (wanted,) = answers(model, [{**given, **cache}])
        made = step.run(given, state)
        assert difference(made["y"], wanted["y"]) <= worst
        cache = {before: wanted[after] for before, after in STATES.items()}
    for name, array in cache.items():
        assert difference(state[name], array) <= 2e-3


@pytest.mark.parametrize(
    ("states", "why"),
    [
        ({"keys": "y"}, "of one shape"),
        ({"keys": "nothing"}, "lacks one of them"),
    ],
)
def test_what_is_no_state(states: dict[str, str], why: str) -> None:
    with pytest.raises(ModelError, match=why):
        lower_part(ChipPart("step", _step()), Choices(precision="fp32"), states=states)


def test_a_step_gives_something() -> None:
    model = parse("g (float[4] s) => (float[4] t) { t = Neg(s) }")
    with pytest.raises(ModelError, match="at least one output"):
        lower_part(ChipPart("step", model), Choices(precision="fp32"), states={"s": "t"})


class Twins:
    """A decoder step as a build makes it: a function without states, and its twin with them.

    Args:
        folder: where to.
        choices: of the build.
        parts: positions of the nodes of each segment; one segment of all by default.
    """

    def __init__(self, folder: Path, choices: Mapping[str, str], parts: Sequence[Sequence[int]] = ()) -> None:
        model = self.model = _step()
        nodes = [node.name or "" for node in model.graph]
        self.segments = [segment_of(model, [nodes[at] for at in part]) for part in parts or [range(len(nodes))]]
        artifact = CoremlTarget().compile(model, self.segments, CompileOptions(choices=choices))
        self.stored = artifact.store(folder, folder / "weights.bin")
        self.table = read_table(folder / "segments.json")

    @property
    def weights_bytes(self) -> int:
        return (self.stored.folder / "segments.mlpackage/Data/com.apple.CoreML/weights/weight.bin").stat().st_size


def _given(at: int) -> dict[str, Array]:
    return {
        "x": floats(1, WIDTH, seed=10 + at),
        "slot": np.eye(SLOTS, dtype=np.float32)[:, at : at + 1],
        "hidden": np.where(np.arange(SLOTS) <= at, 0, -1e4).astype(np.float32)[None],
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("choices", "worst"),
    [({"precision": "fp32"}, 2e-3), ({"precision": "fp16"}, 4e-3), ({"precision": "mixed", "io": "fp16"}, 4e-3)],
)
def test_twins_of_one_package(tmp_path: Path, choices: dict[str, str], worst: float) -> None:
    """Both give what the model gives: one handed the cache each time, the other left to keep it."""
    states = ",".join(f"{before}:{after}" for before, after in STATES.items())
    both = Twins(tmp_path / "both", {**choices, "states": states})
    (segment,) = both.segments
    pure = CoremlTarget().load(both.stored, segment.id, HOST)
    kept = open_stateful(both.stored, segment.id, HOST)
    assert kept.states == STATES
    for _ in range(2):
        kept.reset()
        cache: dict[str, Array] = {name: np.zeros((SLOTS, WIDTH), np.float32) for name in STATES}
        for at in range(SLOTS):
            (wanted,) = answers(both.model, [{**_given(at), **cache}])
            made = kept.run(_given(at))
            assert list(made) == ["y"]
            assert difference(made["y"], wanted["y"]) <= worst
            assert difference(pure.run({**_given(at), **cache})["y"], wanted["y"]) <= worst
            cache = {before: wanted[after] for before, after in STATES.items()}
    kept.close()
    with pytest.raises(InputError, match="closed"):
        kept.run(_given(0))
    alone = Twins(tmp_path / "alone", choices)
    assert both.weights_bytes <= alone.weights_bytes + 256, "constants of the cache's own, no weight twice"


def test_the_table_tells_of_states(tmp_path: Path) -> None:
    both = Twins(tmp_path, {"precision": "fp32", "states": "keys:new_keys"})
    (calls,) = both.table.segments.values()
    assert calls.chip is not None
    assert calls.stateful is not None
    assert calls.stateful.function == f"{calls.chip.function}_stateful"
    assert {tensor.name for tensor in calls.stateful.inputs} == {"x", "slot", "hidden", "values"}
    assert {tensor.name for tensor in calls.stateful.outputs} == {"y", "new_values"}
    assert [state.model_dump() for state in calls.stateful.states] == [
        {"name": "keys", "becomes": "new_keys", "called": "keys", "dtype": "float16", "shape": [SLOTS, WIDTH]}
    ]
    function = load_package(tmp_path / calls.stateful.file).function(calls.stateful.function)
    assert [(spec.name, spec.dtype) for spec in function.states] == [("keys", "float16")]


@pytest.mark.slow
def test_a_state_of_one_segment_of_two(tmp_path: Path) -> None:
    """The keys are kept where both their ends are; the values, cut apart, are passed."""
    nodes = [node.name or "" for node in _step().graph]
    early = [at for at, node in enumerate(_step().graph) if node.outputs[0].name in ("k", "kept", "old_keys")]
    early += [
        at for at, node in enumerate(_step().graph) if node.outputs[0].name in ("put_key", "new_keys", "old_values")
    ]
    rest = [at for at in range(len(nodes)) if at not in early]
    parts = Twins(tmp_path, {"precision": "fp32", "states": "keys:new_keys"}, [early, rest])
    first, second = (parts.table.segments[segment.id] for segment in parts.segments)
    assert first.stateful is not None
    assert second.stateful is None
    with pytest.raises(BundleError, match="holds no states"):
        open_stateful(parts.stored, parts.segments[1].id, HOST)
    with pytest.raises(ModelError, match="no segment has both ends of the state 'values:new_values'"):
        Twins(tmp_path / "cut", {"precision": "fp32", "states": "values:new_values"}, [early, rest])


def test_states_by_name() -> None:
    """Pasts and presents of one shape; a cache that grows is none."""
    text = """g (float[1, 4] x, float[2, 4] past_key_values.0.key, float[2, 4] past_value, float[2, 4] past_grows)
    => (float[2, 4] present.0.key, float[2, 4] present_value, float[3, 4] present_grows, float[1, 4] y) {
        y = Relu(x)
    }"""
    names = ("past_key_values.0.key", "past_value", "past_grows", "present.0.key", "present_value", "present_grows")
    for at, name in enumerate(names):
        text = text.replace(name, f"v{at}")
    body = "v3 = Abs(v0) v4 = Abs(v1) v5 = Concat <axis = 0> (v2, x) }"
    model = parse(text.rstrip(" }\n") + "\n" + body)
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.name = dict(zip((f"v{at}" for at in range(6)), names, strict=True)).get(value.name or "", value.name)
    (found,) = states_of([ChipPart("step", model)], "auto")
    assert found == {"past_key_values.0.key": "present.0.key", "past_value": "present_value"}
    (found,) = states_of([ChipPart("step", model)], "past_value:present_value")
    assert found == {"past_value": "present_value"}
    with pytest.raises(ModelError, match="finds no input"):
        states_of([ChipPart("step", _step())], "auto")
    for wrong in ("keys", "keys:", ":new_keys", "keys:new_keys,"):
        with pytest.raises(ConfigError, match="expects INPUT:OUTPUT"):
            states_of([ChipPart("step", _step())], wrong)


def test_a_state_that_fp16_cannot_hold(tmp_path: Path) -> None:
    """Its samples tell; what is computed in fp32 is kept in fp16 all the same."""
    model = parse("g (float[4] x, float[4] s) => (float[4] y, float[4] t) { y = Add(x, s) t = Mul(s, big) }", BIG)
    segment = segment_of(model, [node.name or "" for node in model.graph])
    options = CompileOptions(choices={"precision": "fp32", "states": "s:t"})
    with pytest.raises(ModelError, match="'t' becomes larger than fp16 holds"):
        CoremlTarget().compile(model, [segment], options)


def test_a_state_of_a_half_precision_graph(tmp_path: Path) -> None:
    """There is nothing to convert."""
    model = parse("g (float16[4] x, float16[4] s) => (float16[4] y, float16[4] t) { y = Mul(x, s) t = Add(x, s) }")
    segment = segment_of(model, [node.name or "" for node in model.graph])
    artifact = CoremlTarget().compile(model, [segment], CompileOptions(choices={"states": "s:t"}))
    kept = open_stateful(artifact.store(tmp_path, tmp_path / "weights.bin"), segment.id, HOST)
    x = np.arange(4, dtype=np.float16)
    for times in range(3):
        np.testing.assert_array_equal(kept.run({"x": x})["y"], x * x * times)


def test_states_are_of_fixed_shapes() -> None:
    with pytest.raises(ConfigError, match="not both"):
        read_choices({"states": "auto", "shapes": "ranged"})
