"""Cutting: the steps of any placement, run one after another, are the model."""

import functools
import itertools

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from tests.flagir.models import Array, assert_close, canonical, inputs_for, light_path, parse, random_model, run

from flagsplit.flagir import Step, cut_into_steps, extract, read_model, to_bytes
from flagsplit.flagir.canonical import canonicalize

IF = """g (bool c, float[2] x) => (float[2] y, float[2] z) <float[2] k = {1.0, 2.0}> {
  a = Neg(x)
  b = Exp(x)
  y = If (c) <then_branch = t () => (float[2] o) { o = Add(a, k) },
      else_branch = e () => (float[2] o) { o = Mul(b, a) }>
  z = Tanh(y)
}"""
LOOP = """g (int64 n, float[2] x) => (float[2] y, float[m, 2] z) <float[2] k = {0.5, 2.0}> {
  go = Constant <value = bool {1}> ()
  r = Relu(x)
  s = Sigmoid(r)
  last, every = Loop (n, go, x) <body = b (int64 i, bool more, float[2] v) => (bool on, float[2] next, float[2] scan) {
    on = Identity(more)  sum = Add(v, s)  next = Mul(sum, k)  scan = Identity(next) }>
  y = Add(last, r)
  z = Neg(every)
}"""
CONSTANT_OUTPUT = """g (float[2] x) => (float[2] k, float[2] y) {
  k = Constant <value_floats = [1.0, 2.0]> ()
  a = Exp(x)
  y = Add(a, k)
}"""

MODELS = {
    **{f"random {seed}": functools.partial(random_model, seed) for seed in (*range(8), 13, 15)},
    "if": functools.partial(parse, IF),
    "loop": functools.partial(parse, LOOP),
    "constant output": functools.partial(parse, CONSTANT_OUTPUT),
}


def run_steps(model: ir.Model, steps: tuple[Step, ...], inputs: dict[str, Array], *, optimize: bool) -> list[Array]:
    """Run the segments in order; a step may only read what the inputs and the steps before it hold."""
    known = dict(inputs)
    for step in steps:
        proto = ir.to_proto(extract(model, step.segment))
        onnx.checker.check_model(proto)
        assert tuple(value.name for value in proto.graph.input) == step.segment.inputs
        assert tuple(value.name for value in proto.graph.output) == step.segment.outputs
        feed = {name: known[name] for name in step.segment.inputs}
        known.update(zip(step.segment.outputs, run(proto, feed, optimize=optimize), strict=True))
    return [known[value.name or ""] for value in model.graph.outputs]


def random_placement(model: ir.Model, rng: np.random.Generator, tiers: int) -> dict[str, int]:
    """Runs of nodes on one tier, with a few strays, so that tiers are visited more than once."""
    placement, tier = {}, 0
    for node in model.graph:
        if rng.random() < 0.25:
            tier = int(rng.integers(tiers))
        placement[node.name or ""] = tier
    return placement


def check_steps(model: ir.Model, steps: tuple[Step, ...], placement: dict[str, int]) -> None:
    ran = [name for step in steps for name in step.segment.nodes]
    assert sorted(ran) == sorted(placement)
    assert len(set(ran)) == len(ran)
    for step in steps:
        assert {placement[name] for name in step.segment.nodes} == {step.tier}
    assert all(one.tier != other.tier for one, other in itertools.pairwise(steps))


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_steps_in_a_row_are_the_model(name: str) -> None:
    """Bit for bit without ORT's graph optimizations; with them to 1e-6, for a fusion needs its nodes in one segment.

    ORT folds a BatchNormalization or a Mul into the Conv before it, and makes one Gemm of MatMul and Add.
    """
    model = canonical(MODELS[name]())
    proto = ir.to_proto(model)
    inputs = inputs_for(proto)
    plain, fused = run(proto, inputs, optimize=False), run(proto, inputs)
    before = to_bytes(model)
    rng = np.random.default_rng(len(name))
    for number in range(25):
        placement = random_placement(model, rng, tiers := 2 + number % 3)
        steps = cut_into_steps(model, placement, tiers)
        check_steps(model, steps, placement)
        assert_close(run_steps(model, steps, inputs, optimize=False), plain, relative=0)
        if number % 3 == 0:
            assert_close(run_steps(model, steps, inputs, optimize=True), fused, relative=1e-6)
    assert to_bytes(model) == before


@pytest.mark.slow
def test_a_real_network_cut_in_three() -> None:
    model = read_model(light_path("squeezenet"))
    canonicalize(model)
    nodes = [node.name or "" for node in model.graph]
    inputs = inputs_for(ir.to_proto(model))
    whole = run(ir.to_proto(model), inputs)
    rng = np.random.default_rng(5)
    for number in range(3):
        cuts = sorted(rng.choice(len(nodes), 2, replace=False))
        placement = {name: int(np.searchsorted(cuts, index, "right")) for index, name in enumerate(nodes)}
        if number:
            placement = random_placement(model, rng, 3)
        steps = cut_into_steps(model, placement, 3)
        check_steps(model, steps, placement)
        assert_close(run_steps(model, steps, inputs, optimize=True), whole, relative=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_a_monotone_placement_visits_each_tier_once(name: str) -> None:
    model = canonical(MODELS[name]())
    nodes = [node.name or "" for node in model.graph]
    for tiers in (2, 3, 4):
        placement = {node: index * tiers // len(nodes) for index, node in enumerate(nodes)}
        steps = cut_into_steps(model, placement, tiers)
        assert [step.tier for step in steps] == sorted(set(placement.values()))


def test_the_first_visit_is_to_tier_0_and_the_lift_turns_only_at_the_end() -> None:
    model = canonical(
        parse("g (float[2] x) => (float[2] e) { a = Neg(x) b = Exp(a) c = Abs(b) d = Tanh(c) e = Relu(d) }")
    )
    nodes = [node.name or "" for node in model.graph]
    steps = cut_into_steps(model, dict(zip(nodes, (2, 0, 1, 0, 2), strict=True)), 3)
    assert [step.tier for step in steps] == [2, 0, 1, 0, 2]


def test_equal_parts_of_different_plans_have_equal_ids() -> None:
    model = canonical(random_model(6))
    nodes = [node.name or "" for node in model.graph]
    half = len(nodes) // 2
    one = cut_into_steps(model, {name: int(index >= half) for index, name in enumerate(nodes)}, 2)
    other = cut_into_steps(model, {name: 2 * int(index >= half) for index, name in enumerate(nodes)}, 3)
    moved = cut_into_steps(model, {name: int(index > half) for index, name in enumerate(nodes)}, 2)
    assert [step.segment for step in one] == [step.segment for step in other]
    assert {step.segment.id for step in one}.isdisjoint(step.segment.id for step in moved)


def test_extract_takes_the_weights_that_are_needed_and_shares_them() -> None:
    model = canonical(
        parse(
            """g (float[2] x) => (float[2] y) <float[2] k = {1.0, 2.0}, float[2] l = {3.0, 4.0}> {
                a = Add(x, k) y = Mul(a, l) }"""
        )
    )
    first, second = cut_into_steps(model, {node.name or "": i for i, node in enumerate(model.graph)}, 2)
    left, right = extract(model, first.segment), extract(model, second.segment)
    assert set(left.graph.initializers) == {"k"}
    assert set(right.graph.initializers) == {"l"}
    assert left.graph.initializers["k"].const_value is model.graph.initializers["k"].const_value
