"""Random small models with loops, through the whole pipeline: every placement gives the bits of the whole model."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from tests.apps.models import Array

import flagsplit
from flagsplit.apps.groundwork import BuildOptions
from flagsplit.apps.pipeline import build
from flagsplit.flagir.frontends.any_model import Source
from flagsplit.splitter.problem import Problem
from flagsplit.targets.interface import LoadOptions

pytestmark = pytest.mark.slow

HOST = LoadOptions(threads=1)
SIZE = 4
ONE = ("Tanh", "Sigmoid", "Neg", "Softmax")
TWO = ("Add", "Sub", "Mul", "MatMul")


def random_model(seed: int) -> ir.Model:
    """Nodes over square matrices and, among them, one to three loops that capture some, share weights, grow or stop."""
    rng = random.Random(seed)
    values, lines = ["x", "w"], list[str]()
    loops = set(rng.sample(range(8), rng.randint(1, 3)))
    for at in range(8):
        first, second = rng.choice(values[-3:]), rng.choice(values)
        if at in loops:
            lines.append(_loop(rng, at, first, second))
        elif rng.random() < 0.5:
            lines.append(f"[n{at}] v{at} = {rng.choice(ONE)} ({first})")
        else:
            lines.append(f"[n{at}] v{at} = {rng.choice(TWO)} ({first}, {second})")
        values.append(f"v{at}")
    weight = ", ".join(f"{rng.uniform(-0.5, 0.5):.3f}" for _ in range(SIZE * SIZE))
    square = f"float[{SIZE}, {SIZE}]"
    ends = ", ".join(f"{square} {name}" for name in values[-2:])
    text = f"""<ir_version: 11, opset_import: ["" : 23]> g ({square} x) => ({ends})
        <{square} w = {{{weight}}}, float[0, {SIZE}] none = {{}}, bool go = {{1}}, float low = {{-0.5}},
         int64 n0 = {{{rng.randint(0, 4)}}}, int64 n1 = {{{rng.randint(1, 4)}}}, int64[1] axis = {{0}}> {{
        {chr(10).join(lines)}
    }}"""
    return ir.from_proto(onnx.parser.parse_model(text))


def _loop(rng: random.Random, at: int, start: str, captured: str) -> str:
    """A loop over a matrix; some carry rows that grow, and some end when a number in them gets low."""
    square, more = f"float[{SIZE}, {SIZE}]", rng.random() < 0.5
    stop = (
        f"m{at} = ReduceMin <keepdims = 0> (u{at}) k{at} = Greater (m{at}, low)"
        if more
        else f"k{at} = Identity (c{at})"
    )
    body = f"""<body = b{at} (int64 i{at}, bool c{at}, {square} s{at}, float[R, {SIZE}] r{at})
        => (bool k{at}, {square} u{at}, float[R2, {SIZE}] q{at}) {{
            p{at} = MatMul (s{at}, w)
            u{at} = {rng.choice(("Add", "Mul", "MatMul"))} (p{at}, {captured})
            t{at} = ReduceSum <keepdims = 1> (u{at}, axis)
            q{at} = Concat <axis = 0> (r{at}, t{at})
            {stop}
        }}>"""
    return f"""[l{at}] a{at}, g{at} = Loop ({rng.choice(("n0", "n1"))}, go, {start}, none) {body}
        [z{at}] h{at} = ReduceSum <keepdims = 1> (g{at}, axis)
        [y{at}] v{at} = Add (a{at}, h{at})"""


def placements(seed: int) -> object:
    def extra(problem: Problem) -> Mapping[str, Sequence[int]]:
        rng, blocks, tiers = random.Random(seed), len(problem.graph.blocks), len(problem.tiers)
        return {f"extra-{i}": [rng.randrange(tiers) for _ in range(blocks)] for i in range(5)}

    return extra


@pytest.mark.parametrize("seed", range(6))
def test_every_placement_of_loops(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "m.flagsplit"
    trips = random.Random(seed).choice([0, 3])
    options = BuildOptions(extra_plans=placements(seed), expected_tokens=trips)  # type: ignore[arg-type]
    built = build(Source(random_model(seed)), ["phone", "edge", "cloud"], path, options=options)
    assert any(block.loops for block in built.planning.problem.graph.blocks)
    bundle = flagsplit.open(path, cache=tmp_path / "cache")
    given = {"x": np.random.default_rng(seed).standard_normal((SIZE, SIZE)).astype(np.float32)}
    expected = bundle.load_whole(HOST).run(given)
    for plan in bundle.plans.pool.plans:
        values: dict[str, Array] = dict(given)
        for step in bundle.plans.steps[plan.name]:
            values |= bundle.load(step.tier, step.segment, HOST).run({name: values[name] for name in step.inputs})
        for name, wanted in expected.items():
            assert np.array_equal(values[name], wanted, equal_nan=True), (plan.name, name)
