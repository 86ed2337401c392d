"""Bundles of generative programs: every plan against the linked model, and what a decoder gets from each."""

import json
import random
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.flagir.models import Array
from tests.flagir.programs import oracle
from tests.flagir.programs.made import program_of

import flagsplit
from flagsplit.apps.groundwork import BuildOptions
from flagsplit.apps.pipeline import build
from flagsplit.apps.program_plans import LINKED_HIDDEN
from flagsplit.apps.rebuild import rebuild
from flagsplit.errors import BundleError, ConfigError, PolicyError
from flagsplit.flagir.codecs import NO_CODEC
from flagsplit.flagir.frontends.any_model import Source
from flagsplit.flagir.programs import Program
from flagsplit.runtime.bundle import Bundle
from flagsplit.runtime.program_parts import PARTS_NAME, ProgramFolder, ProgramParts
from flagsplit.splitter.problem import Problem
from flagsplit.splitter.sla import parse_sla
from flagsplit.targets.interface import LoadOptions

pytestmark = pytest.mark.slow

HOST = LoadOptions(threads=1)
FAMILIES: dict[str, Callable[[np.random.Generator], oracle.Made]] = {
    "moonshine": oracle.moonshine_like,
    "whisper": oracle.whisper_like,
    "llama": oracle.llama_like,
}


def made(family: str, seed: int = 0) -> Program:
    """A small program; decoders have at least two layers."""
    found = program_of(FAMILIES[family](np.random.default_rng(seed)), [1, 4])
    return made(family, seed + 50) if family == "llama" and found.facts.layers == 1 else found


def every_cut(seed: int) -> Callable[[Problem], Mapping[str, Sequence[int]]]:
    """Placements that rise along the blocks, cut anywhere, and some that go back and forth."""

    def extra(problem: Problem) -> Mapping[str, Sequence[int]]:
        rng, blocks, tiers = random.Random(seed), len(problem.graph.blocks), len(problem.tiers)
        rows = [sorted(rng.randrange(tiers) for _ in range(blocks)) for _ in range(4)]
        rows += [[rng.randrange(tiers) for _ in range(blocks)] for _ in range(3)]
        return {f"extra-{at}": row for at, row in enumerate(rows)}

    return extra


def built(program: Program, folder: Path, tiers: str = "phone,cloud", **more: Any) -> Bundle:
    """Its bundle, opened."""
    options = {"expected_tokens": 6, "max_tokens": 12, **more.pop("options", {})}
    sla = parse_sla(more.pop("sla", {}))
    path = folder / "program.flagsplit"
    build(Source(program), tiers.split(","), path, sla=sla, options=BuildOptions(**options), **more)
    return flagsplit.open(path, cache=folder / "cache")


def request(bundle: Bundle, seed: int) -> dict[str, Array]:
    """Inputs of the linked model."""
    rng, (tensor,) = np.random.default_rng(seed), bundle.inputs
    shape = [size if isinstance(size, int) else bundle.facts.nominal_dims[size] for size in tensor.shape]
    if tensor.dtype == "int64":
        return {tensor.name: rng.integers(6, 10, shape)}
    return {tensor.name: rng.standard_normal(shape).astype(np.float32)}


def sizes_of(program: Program) -> dict[str, int]:
    """Nominal sizes that the small encoders take."""
    return {"audio": {"samples": 4000}, "text": {"prompt_tokens": 3}}.get(program.facts.input, {})


def run_steps(bundle: Bundle, steps: Iterator[Any] | Sequence[Any], values: dict[str, Array]) -> dict[str, Array]:
    """All values after some steps of a plan."""
    values = dict(values)
    for step in steps:
        values |= bundle.load(step.tier, step.segment, HOST).run({name: values[name] for name in step.inputs})
    return values


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tiers", ["phone,cloud", "phone,edge,cloud"])
def test_every_plan_makes_the_tokens_of_the_linked_model(tmp_path: Path, family: str, tiers: str) -> None:
    program = made(family)
    bundle = built(program, tmp_path, tiers, options={"dims": sizes_of(program), "extra_plans": every_cut(3)})
    assert bundle.program is not None
    assert bundle.program.facts == program.facts
    whole, inputs = bundle.load_whole(HOST), request(bundle, 1)
    tokens = whole.run(inputs)["tokens"]
    for plan in bundle.plans.pool.plans:
        found = run_steps(bundle, bundle.plans.steps[plan.name], inputs)
        assert np.array_equal(found["tokens"], tokens), plan.name


@pytest.mark.parametrize("family", ["moonshine", "whisper"])
@pytest.mark.parametrize("seed", range(2))
def test_what_crosses_leads_to_the_hidden_state(tmp_path: Path, family: str, seed: int) -> None:
    program = made(family, seed)
    bundle = built(program, tmp_path, options={"dims": sizes_of(program), "extra_plans": every_cut(seed)})
    parts = bundle.program
    assert parts is not None
    inputs = request(bundle, seed)
    whole = parts.load_hidden("all-cloud", HOST)
    assert whole is not None
    hidden = whole.run(inputs)["hidden"]
    alone = parts.load("encode.onnx", HOST).run(inputs)["hidden"]
    assert np.allclose(hidden, alone, atol=1e-4)  # the same, but for what its open batch changes in rounding
    pooled = {plan.name for plan in bundle.plans.pool.plans}
    assert set(parts.plans) | set(parts.unserved) == pooled
    assert {"all-phone", "all-cloud", "phone+cloud-hidden"} <= set(parts.plans)
    for name, each in parts.plans.items():
        values = run_steps(bundle, each.before, inputs)
        boundary = {tensor.name: values[tensor.name] for tensor in each.boundary}
        assert all(str(boundary[t.name].dtype) == t.dtype for t in each.boundary)
        remainder = parts.load_hidden(name, HOST)
        found = boundary[each.boundary[0].name] if remainder is None else remainder.run(boundary)["hidden"]
        assert np.array_equal(found, hidden), name
        assert all(step.tier != each.loop_tier for step in each.before)
    at_hidden = parts.plan("phone+cloud-hidden")
    assert [tensor.name for tensor in at_hidden.boundary] == [LINKED_HIDDEN]
    assert at_hidden.hidden is None


def test_a_plan_with_a_codec_has_what_decodes(tmp_path: Path) -> None:
    program = made("moonshine")
    sla = {
        "keep_on": {"inputs": "phone"},
        "pins": {"encode.*": "phone", "prefill.*": "cloud"},
        "accuracy": {"every_cut": {"codecs": ["u8"]}},
    }
    bundle = built(program, tmp_path, sla=sla, links={"cloud": "1mbit/1ms"}, options={"dims": sizes_of(program)})
    parts = bundle.program
    assert parts is not None
    (plan,) = (p for p in bundle.plans.pool.plans if any(cut.codec != NO_CODEC for cut in p.cuts))
    each = parts.plan(plan.name)
    assert {tensor.name.rpartition(".")[2] for tensor in each.boundary} == {"payload", "scale", "zero_point"}
    inputs = request(bundle, 5)
    values = run_steps(bundle, each.before, inputs)
    decode = parts.load_hidden(plan.name, HOST)
    assert decode is not None
    found: Any = decode.run({tensor.name: values[tensor.name] for tensor in each.boundary})["hidden"]
    exact: Any = parts.load("encode.onnx", HOST).run(inputs)["hidden"]
    assert 0 < np.abs(found - exact).max() <= np.ptp(exact) / 255


def test_keys_and_values_apart_from_the_loop_serve_no_stream(tmp_path: Path) -> None:
    program = made("whisper")

    def apart(problem: Problem) -> Mapping[str, Sequence[int]]:
        return {"late": [1 if block.loops else 0 for block in problem.graph.blocks]}

    parts = built(program, tmp_path, options={"extra_plans": apart}).program
    assert parts is not None
    with pytest.raises(PolicyError, match="no stream can be served under plan 'late': keys and values of the hidden"):
        parts.plan("late")
    with pytest.raises(PolicyError, match="there are all-"):
        parts.plan("nothing")


def test_a_phone_with_a_chip_decodes_beside_it(tmp_path: Path) -> None:
    """Chips take no loops, so the plan of the phone alone is for its CPU, and the encoder is still the chip's."""
    program = made("moonshine")
    bundle = built(program, tmp_path, devices={"phone": "pixel8"}, options={"dims": sizes_of(program)})
    assert [artifact.target for artifact in bundle.facts.tiers[0].artifacts] == ["ort", "litert"]
    assert any(reason.startswith("all-phone runs on the CPU of phone") for reason in bundle.plans.reasons)
    (alone,) = bundle.plans.steps["all-phone"]
    assert bundle.artifact_for(0, alone.segment, "litert").target == "ort"
    inputs = request(bundle, 2)
    tokens = bundle.load_whole(HOST).run(inputs)["tokens"]
    assert np.array_equal(run_steps(bundle, [alone], inputs)["tokens"], tokens)
    assert bundle.program is not None
    (encode,) = next(parts.before for parts in bundle.program.plans.values() if parts.hidden is None)
    assert bundle.artifact_for(0, encode.segment, "litert").target == "litert"


def test_a_decoder_on_a_phone_with_a_chip(tmp_path: Path) -> None:
    sla = {"keep_on": {"inputs": "phone"}}
    bundle = built(made("llama"), tmp_path, devices={"phone": "pixel8"}, sla=sla)
    assert [plan.name for plan in bundle.plans.pool.plans] == ["all-phone"]
    assert [artifact.target for artifact in bundle.facts.tiers[0].artifacts] == ["ort"]
    with pytest.raises(PolicyError, match="not phone: takes fixed shapes"):
        built(
            made("llama"), tmp_path, devices={"phone": "pixel8"}, sla=sla, options={"targets": {"phone": ("litert",)}}
        )


def test_weights_are_stored_once(tmp_path: Path) -> None:
    for family in FAMILIES:
        program = made(family)
        folder = tmp_path / family
        folder.mkdir()
        bundle = built(program, folder, options={"dims": sizes_of(program)})
        large = {
            v.const_value.tobytes()
            for graph in program.graphs.values()
            for v in graph.graph.initializers.values()
            if v.const_value is not None and v.const_value.nbytes > 256
        }
        stored = (bundle.folder / "flagir/weights.bin").stat().st_size
        assert stored <= sum(map(len, large)) + 64 * len(large) + 4096


def test_the_program_comes_back_as_it_was(tmp_path: Path) -> None:
    program = made("llama")
    parts = built(program, tmp_path).program
    assert parts is not None
    again = parts.program()
    assert again.facts == program.facts
    assert again.tokenizer == program.tokenizer
    weights = again.graphs["step"].graph.initializers
    for name, value in program.graphs["step"].graph.initializers.items():
        came, given = weights[name].const_value, value.const_value
        assert came is not None
        assert given is not None
        assert np.array_equal(came.numpy(), given.numpy())


def test_the_layers_of_a_decoder_in_parts(tmp_path: Path) -> None:
    program = made("llama")
    sla = {"keep_on": {"inputs": "phone"}}
    bundle = built(program, tmp_path, sla=sla, links={"cloud": "10gbit/10us"}, devices={"phone": "raspberry-pi-5"})
    parts = bundle.program
    assert parts is not None
    assert parts.layer_plans is not None
    assert [plan.name for plan in bundle.plans.pool.plans] == ["all-phone"]
    divided = [plan.name for plan in parts.layer_plans.plans if len(plan.used_tiers) > 1]
    for name in divided:
        each = parts.plan(name)
        assert each.layers is not None
        assert each.loop_tier == 1
        assert [tensor.name for tensor in each.boundary] == ["rows"]
        first, rest = (parts.load(str(file), HOST) for file in (each.first, each.rest))
        assert {"rows", *program.facts.new_names} == {t.name for t in first.outputs} | {
            t.name for t in rest.outputs if t.name != "logits"
        }
        feeds = step_inputs(program)
        rows = first.run({tensor.name: feeds[tensor.name] for tensor in first.inputs})["rows"]
        found = rest.run({t.name: rows if t.name == "rows" else feeds[t.name] for t in rest.inputs})["logits"]
        whole = parts.load("step.onnx", HOST)
        assert np.array_equal(found, whole.run({t.name: feeds[t.name] for t in whole.inputs})["logits"])


def step_inputs(program: Program) -> dict[str, Array]:
    facts = program.facts
    cache = np.zeros((1, facts.kv_heads, 0, facts.head_size), np.float32)
    return {
        "tokens": np.array([[1, 4, 7]]),
        "positions": np.array([[0, 1, 2]]),
        "past_lengths": np.array([0]),
        "last": np.array([2]),
        **dict.fromkeys(facts.past_names, cache),
    }


def test_a_bundle_that_is_built_again_has_its_program(tmp_path: Path) -> None:
    program = made("whisper")
    bundle = built(program, tmp_path)
    again = tmp_path / "again.flagsplit"
    result = rebuild(bundle, parse_sla({"keep_on": {"inputs": "phone"}}), again)
    opened = flagsplit.open(again, cache=tmp_path / "cache")
    assert opened.program is not None
    assert opened.program.facts == program.facts
    assert opened.program.expected_tokens == 6
    assert "all-cloud" not in opened.program.plans
    (loop,) = (loop for block in result.planning.problem.graph.blocks for loop in block.loops)
    assert loop.trips == 7


def test_same_program_same_bytes(tmp_path: Path) -> None:
    program = made("whisper")
    first = built(program, tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    assert built(made("whisper"), other).digest == first.digest


def hurt(data: dict[str, Any], case: str) -> None:
    plan = data["plans"]["phone+cloud-hidden"]
    changes: dict[str, Callable[[], object]] = {
        "tier": lambda: plan.update(loop_tier=2),
        "negative": lambda: plan.update(loop_tier=-1),
        "segment": lambda: plan["before"][0].update(segment="0" * 16),
        "file": lambda: plan.update(hidden="nothing.onnx"),
        "outside": lambda: plan.update(hidden="../flagir/model.onnx"),
        "absolute": lambda: plan.update(hidden="/etc/passwd"),
        "boundary": lambda: plan["boundary"][0].update(name="nothing"),
        "halves": lambda: plan.update(first="step.onnx"),
        "text": lambda: plan.update(loop_tier="one"),
        "list": lambda: data.update(plans=[]),
    }
    changes[case]()


CASES = {
    "tier": "has its loop on tier 2, of 2",
    "negative": "damaged at plans.phone\\+cloud-hidden.loop_tier",
    "segment": "runs a segment '0000000000000000' that no tier has",
    "file": "lacks its graph 'nothing.onnx'",
    "outside": "outside its folder; refused",
    "absolute": "outside its folder; refused",
    "boundary": "needs 'nothing', which nothing makes",
    "halves": "is cut between layers without both parts",
    "text": "damaged at plans.phone\\+cloud-hidden.loop_tier",
    "list": "damaged at plans",
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return built(made("whisper"), tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("case", CASES)
def test_a_damaged_list_of_parts(tmp_path: Path, whole: Bundle, case: str) -> None:
    folder = tmp_path / "program"
    shutil.copytree(whole.folder / "program", folder)
    data = json.loads((whole.folder / PARTS_NAME).read_bytes())
    hurt(data, case)
    (folder / "parts.json").write_text(json.dumps(data))
    where = ProgramFolder(
        folder,
        whole.folder / "flagir/weights.bin",
        whole.tiers,
        [frozenset(whole.segments_of(tier)) for tier in range(2)],
        frozenset(tensor.name for tensor in whole.inputs),
    )
    with pytest.raises(BundleError, match=CASES[case]):
        ProgramParts(where)


def test_a_bundle_of_another_model_has_no_program(small_bundle: Path) -> None:
    assert flagsplit.open(small_bundle).program is None


def test_tokens_that_cannot_be(tmp_path: Path, small_model: Path) -> None:
    with pytest.raises(ConfigError, match="--expected-tokens 99: made-up makes at most 12"):
        built(made("whisper"), tmp_path, options={"expected_tokens": 99})
    options = BuildOptions(expected_tokens=5)
    with pytest.raises(ConfigError, match="--expected-tokens 5: the model has no loop"):
        build(Source(small_model), ["phone", "cloud"], tmp_path / "x.flagsplit", options=options)


def test_layers_are_planned_again_under_another_policy(tmp_path: Path) -> None:
    bundle = built(made("llama"), tmp_path, links={"cloud": "10gbit/10us"}, devices={"phone": "raspberry-pi-5"})
    assert bundle.program is not None
    assert set(bundle.program.plans) >= {"all-cloud", "all-phone"}
    again = tmp_path / "again.flagsplit"
    result = rebuild(bundle, parse_sla({"keep_on": {"inputs": "phone"}}), again)
    parts = flagsplit.open(again, cache=tmp_path / "cache").program
    assert result.layers is not None
    assert parts is not None
    assert "all-cloud" not in parts.plans
    assert parts.layer_plans is not None
    assert [plan.name for plan in parts.layer_plans.plans] == [plan.name for plan in result.layers.pool.plans]
