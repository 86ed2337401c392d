"""A decoder step whose keys and values stay in the program, against the model that is handed them each time."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from tests.targets.mobile.coreml import programs
from tests.targets.mobile.coreml.graphs import difference, floats, parse

from flagsplit.errors import ModelError
from flagsplit.targets.chip_parts import ChipPart
from flagsplit.targets.interface import Array
from flagsplit.targets.mobile.coreml.choices import Choices
from flagsplit.targets.mobile.coreml.lower_part import lower_part
from flagsplit.targets.mobile.coreml.ranges import answers

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
