"""Shapes and states of Core ML, from the words of the command line to the answers of the saved package."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tests.apps.models import Array, answers_of

import flagsplit
from flagsplit.apps.cli.main import main
from flagsplit.apps.rebuild import rebuild
from flagsplit.errors import ConfigError, InputError, PolicyError
from flagsplit.runtime.bundle import Bundle
from flagsplit.splitter.sla import parse_sla
from flagsplit.targets.interface import LoadOptions
from flagsplit.targets.mobile.coreml.stateful import open_stateful
from flagsplit.targets.segment_table import read_table

pytestmark = pytest.mark.usefixtures("own_folders")

Said = Callable[..., tuple[int, str, str]]

WIDTH, SLOTS = 16, 5
_ATTENTION = f"""g (float[1, T, {WIDTH}] x) => (float[1, T, {WIDTH}] y) {{
    q = MatMul(x, wq)
    k = MatMul(x, wk)
    kt = Transpose <perm = [0, 2, 1]> (k)
    s = MatMul(q, kt)
    p = Softmax <axis = 2> (s)
    v = MatMul(p, x)
    y = Tanh(v)
}}"""
_STEP = f"""g (float[1, {WIDTH}] x, float[{SLOTS}, 1] slot, float[1, {SLOTS}] hidden, float[{SLOTS}, {WIDTH}] past_key)
=> (float[1, {WIDTH}] y, float[{SLOTS}, {WIDTH}] present_key) {{
    k = MatMul(x, wk)
    kept = Sub(one, slot)
    old = Mul(past_key, kept)
    put = Mul(slot, k)
    present_key = Add(old, put)
    turned = Transpose <perm = [1, 0]> (present_key)
    q = MatMul(x, wq)
    scores = MatMul(q, turned)
    masked = Add(scores, hidden)
    shares = Softmax(masked)
    y = MatMul(shares, present_key)
}}"""


def _saved(text: str, path: Path) -> Path:
    model: onnx.ModelProto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    rng = np.random.default_rng(0)
    for name in ("wq", "wk"):
        array = (rng.standard_normal((WIDTH, WIDTH)) / 4).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    if "Sub(one" in text:
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(1, np.float32), "one"))
    onnx.save(model, path)
    return path


@pytest.fixture
def attention(tmp_path: Path) -> Path:
    return _saved(_ATTENTION, tmp_path / "attention.onnx")


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Said:
    """Runs a command of flagsplit: its exit status and what it printed."""

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["flagsplit", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


def _x(length: int) -> dict[str, Array]:
    return {"x": np.random.default_rng(length).standard_normal((1, length, WIDTH)).astype(np.float32)}


def _assert_near(came: Array, wanted: Array, atol: float) -> None:
    np.testing.assert_allclose(np.asarray(came, np.float32), np.asarray(wanted, np.float32), rtol=0, atol=atol)


def _check(bundle: Bundle, model: Path, lengths: tuple[int, ...], wrong: tuple[int, ...], why: str) -> None:
    with flagsplit.connect(bundle, run_targets={"phone": "coreml"}) as session:
        for length in lengths:
            answer = session.run(_x(length))
            assert answer.report.basis == "emulated"
            _assert_near(answer["y"], answers_of(model, _x(length))["y"], 1e-5)
        for length in wrong:
            with pytest.raises(InputError, match=why):
                session.run(_x(length))


@pytest.mark.slow
def test_a_range(attention: Path, said: Said, tmp_path: Path) -> None:
    output = str(tmp_path / "ranged.flagsplit")
    words = ["--tiers", "phone", "--target", "phone=coreml", "--dim", "T=2..300@24", "-o", output]
    choices = ["--choice", "coreml.shapes=ranged", "--choice", "coreml.precision=fp32"]
    code, out, err = said("build", str(attention), *words, *choices, "--json")
    assert not code, err
    notes = json.loads(out)["notes"]
    assert "coreml takes T 2..300 on tier phone" in notes
    assert any("beside the accelerator" in note and "1764, confidence medium" in note for note in notes)
    bundle = flagsplit.open(output)
    assert (bundle.facts.nominal_dims, bundle.facts.dim_ranges) == ({"T": 24}, {"T": (2, 300)})
    _check(bundle, attention, (2, 24, 131, 300), (1, 301), "expected T from 2 to 300")
    report = flagsplit.verify(bundle, random=1, dims={"T": 77})
    assert (report.wrong, report.unchecked, report.checked) == (0, (), 2)
    again = tmp_path / "again.flagsplit"
    rebuild(bundle, parse_sla({}), again)
    _check(flagsplit.open(again), attention, (3,), (301,), "expected T from 2 to 300")


@pytest.mark.slow
def test_a_list(attention: Path, said: Said, tmp_path: Path) -> None:
    output = str(tmp_path / "listed.flagsplit")
    words = ["--tiers", "phone,cloud", "--target", "phone=coreml", "--dim", "T=8,24,100", "-o", output]
    choices = ["--choice", "coreml.shapes=enumerated", "--choice", "coreml.precision=fp32"]
    code, out, err = said("build", str(attention), *words, *choices, "--json")
    assert not code, err
    notes = json.loads(out)["notes"]
    assert "coreml takes T 8,24,100 on tier phone" in notes
    assert not any("beside" in note for note in notes)
    bundle = flagsplit.open(output)
    assert bundle.facts.dim_ranges == {"T": (8, 100)}
    assert bundle.facts.dim_sizes == {"T": [8, 24, 100]}
    _check(bundle, attention, (8, 24, 100), (9, 101), "expected T")
    report = flagsplit.verify(bundle, random=1, dims={"T": 8})
    assert report.wrong == 0
    again = tmp_path / "again.flagsplit"
    rebuild(bundle, parse_sla({"use_tiers": ["phone"]}), again)
    assert flagsplit.open(again).facts.dim_sizes == {"T": [8, 24, 100]}


def test_ranged_shapes_run_beside_the_accelerator(attention: Path, said: Said) -> None:
    def runs(*words: str) -> set[tuple[str, str, str]]:
        code, out, _ = said("why", str(attention), "MatMul", "--target", "coreml", "--dim", "T=24", *words, "--json")
        assert not code
        return {(row["runs"], row["source"], row["confidence"]) for row in json.loads(out)["verdicts"]}

    assert {where for where, _, _ in runs()} == {"accelerator"}
    assert {where for where, _, _ in runs("--choice", "coreml.shapes=enumerated")} == {"accelerator"}
    assert runs("--choice", "coreml.shapes=ranged") == {("cpu", "coremltools issue 1764", "medium")}

    def phone_s(shapes: str, **sizes: Any) -> float:
        report = flagsplit.plan(
            attention,
            "phone",
            devices={"phone": "iphone15pro"},
            dims={"T": 24},
            choices={"coreml": {"shapes": shapes}},
            thresholds=False,
            **sizes,
        )
        return report.planning.chosen.plan.predicted.latency_s

    listed = phone_s("enumerated", listed={"T": (8, 24)})
    assert listed == phone_s("fixed")
    assert phone_s("ranged", ranges={"T": (2, 300)}) > listed


@pytest.mark.parametrize(
    ("choices", "sizes", "why"),
    [
        ({"shapes": "ranged"}, {}, r"needs to know the sizes: give --dim SYMBOL=LOW..HIGH for an open dimension \(T\)"),
        ({"shapes": "enumerated"}, {"dims": {"T": 8}}, "give --dim SYMBOL=SIZE,SIZE"),
        ({"shapes": "ranged"}, {"listed": {"T": (8, 9)}}, "came 8,9; say it so, or choose coreml.shapes=enumerated"),
        ({"shapes": "enumerated"}, {"ranges": {"T": (8, 9)}}, "came 8..9; say it so, or choose coreml.shapes=ranged"),
        ({"shapes": "enumerated"}, {"listed": {"T": range(8, 200)}}, "at most 128 combinations of sizes, came 192"),
        ({"shapes": "enumerated"}, {"listed": {"T": (8, 9)}, "dims": {"T": 7}}, "which is none of its sizes 8, 9"),
        ({"shapes": "ranged"}, {"ranges": {"T": (8, 9)}, "listed": {"T": (8, 9)}}, "both a range and a list"),
        ({}, {"ranges": {"T": (8, 9)}}, "coreml takes fixed shapes only, and T of 'x' is open; choose coreml.shapes"),
        ({"states": "x:y", "shapes": "ranged"}, {"ranges": {"T": (8, 9)}}, "not both"),
        ({"states": "x:z"}, {"dims": {"T": 8}}, "no segment has both ends of the state 'x:z'"),
    ],
)
def test_what_does_not_go_together(
    attention: Path, tmp_path: Path, choices: dict[str, str], sizes: dict[str, Any], why: str
) -> None:
    with pytest.raises(flagsplit.FlagsplitError, match=why):
        flagsplit.build(
            attention,
            "phone",
            tmp_path / "none.flagsplit",
            targets={"phone": ["coreml"]},
            choices={"coreml": choices},
            **sizes,
        )


def test_a_target_of_fixed_shapes_beside_one_of_ranges(attention: Path, tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="litert takes fixed shapes only, and T of 'x' is open; build it a bundle"):
        flagsplit.build(
            attention,
            "phone",
            tmp_path / "none.flagsplit",
            targets={"phone": ["coreml", "litert"]},
            choices={"coreml": {"shapes": "ranged"}},
            ranges={"T": (2, 300)},
        )


@pytest.mark.slow
@pytest.mark.parametrize("states", ["auto", "past_key:present_key"])
def test_a_decoder_that_keeps_its_cache(said: Said, tmp_path: Path, states: str) -> None:
    """The twin with states, step by step, gives what ONNX Runtime does that is handed past and present."""
    model, output = _saved(_STEP, tmp_path / "step.onnx"), str(tmp_path / "step.flagsplit")
    words = ["--tiers", "phone,cloud", "--target", "phone=coreml", "--choice", f"coreml.states={states}", "-o", output]
    code, _, err = said("build", str(model), *words)
    assert not code, err
    bundle = flagsplit.open(output)
    (plan,) = (plan.name for plan in bundle.plans.pool.plans if set(plan.used_tiers) == {0})
    (step,) = bundle.plans.steps[plan]
    stored = bundle.stored(bundle.artifact(0, "coreml"))
    calls = read_table(stored.folder / "segments.json").segments[step.segment]
    assert calls.chip is not None, "what the runtime runs keeps nothing"
    kept = open_stateful(stored, step.segment, LoadOptions(threads=1))
    past = np.zeros((SLOTS, WIDTH), np.float32)
    for at in range(SLOTS):
        given: dict[str, Array] = {
            "x": np.random.default_rng(at).standard_normal((1, WIDTH)).astype(np.float32),
            "slot": np.eye(SLOTS, dtype=np.float32)[:, at : at + 1],
            "hidden": np.where(np.arange(SLOTS) <= at, 0, -1e4).astype(np.float32)[None],
        }
        wanted = answers_of(model, {**given, "past_key": past})
        _assert_near(kept.run(given)["y"], wanted["y"], 5e-3)
        with_both = {**given, "past_key": past}
        pure = bundle.load(0, step.segment, LoadOptions(threads=1, target="coreml"))
        _assert_near(pure.run(with_both)["y"], wanted["y"], 5e-3)
        past = np.asarray(wanted["present_key"], np.float32)
    kept.close()
    assert flagsplit.verify(bundle, random=1).wrong == 0


def test_a_list_in_a_bundle(attention: Path, tmp_path: Path) -> None:
    """Lists are for bundles without chips too, and say what is wrong with a request."""
    flagsplit.build(attention, "phone", tmp_path / "listed.flagsplit", listed={"T": [4, 2]})
    bundle = flagsplit.open(tmp_path / "listed.flagsplit")
    assert bundle.facts.nominal_dims == {"T": 4}
    with flagsplit.connect(bundle, {}) as session:
        assert session.run(_x(2))["y"].shape == (1, 2, WIDTH)
        with pytest.raises(InputError, match="expected T of 2, 4, came 3; list it when building"):
            session.run(_x(3))
    with pytest.raises(ConfigError, match="none of its sizes"):
        flagsplit.build(attention, "phone", tmp_path / "none.flagsplit", listed={"T": [4, 2]}, dims={"T": 3})


@pytest.mark.slow
def test_a_range_across_a_cut(attention: Path, tmp_path: Path) -> None:
    """The boundary tensor is as long as the request, and the cloud takes it from there."""
    flagsplit.build(
        attention,
        "phone,cloud",
        tmp_path / "cut.flagsplit",
        sla={"use_tiers": ["phone", "cloud"]},
        targets={"phone": ["coreml"]},
        choices={"coreml": {"shapes": "ranged", "precision": "fp32"}},
        ranges={"T": (2, 300)},
        dims={"T": 24},
    )
    bundle = flagsplit.open(tmp_path / "cut.flagsplit")
    assert any(set(plan.used_tiers) == {0, 1} for plan in bundle.plans.pool.plans)
    with flagsplit.connect(bundle, run_targets={"phone": "coreml"}) as session:
        for length in (2, 24, 131):
            answer = session.run(_x(length))
            assert [tier.tier for tier in answer.report.tiers if tier.segments] == ["phone", "cloud"]
            _assert_near(answer["y"], answers_of(attention, _x(length))["y"], 1e-5)
