"""Where a segment goes wrong is found, whatever is wrong with it."""

import math
from collections.abc import Callable, Mapping

import numpy as np
import pytest
from tests.apps import random_graphs
from tests.apps.random_graphs import Engine, suspect

from flagsplit.apps.bisection import find_break, find_fault
from flagsplit.apps.deviation import EXACT, Tolerance, deviations, worst
from flagsplit.apps.fault import Cause, Fault
from flagsplit.errors import BundleError, InputError, ModelError
from flagsplit.flagir import Segment

LINE = "(float[4, 4] x) => (float[4, 4] v11)"
STEPS = ["[n0] v0 = MatMul(x, w)", *(f"[n{at}] v{at} = Tanh(v{at - 1})" for at in range(1, 12))]


@pytest.mark.slow
def test_a_fault_at_any_node_of_any_graph() -> None:
    """Of 260 graphs with one wrong node each, the node is named in all in which the outputs show it."""
    found, runs, kinds = 0, 0, set[str]()
    for seed in range(260):
        model = random_graphs.random_graph(seed)
        rng = np.random.default_rng([seed, 1])
        wrong = list(model.graph)[int(rng.integers(len(model.graph)))]
        value = wrong.outputs[0].name or ""
        factor = float(rng.choice([1.01, 0.5, -1.0, math.nan, math.inf]))
        case = suspect(model)
        target = Engine(model, lambda _, value=value, factor=factor: {value: factor})  # type: ignore[misc]
        came = target.run(case.line.segment, case.given)
        departs = any(each.departs for each in deviations(case.expected, came, case.allowed))
        fault = find_fault(case, Engine(model), target)
        if not departs:
            assert fault.cause is Cause.STORED
            continue
        assert fault.cause is Cause.NODE, (seed, fault)
        assert [node.name for node in fault.nodes] == [wrong.name], seed
        assert fault.output is not None
        assert fault.output.departs
        if math.isfinite(factor):
            assert fault.output.norm_relative == pytest.approx(abs(factor - 1), rel=1e-3)
        found, runs = found + 1, max(runs, target.runs)
        kinds.add(wrong.op_type)
    assert found >= 200
    assert len(kinds) > 8
    assert runs <= 16, "a binary search, and a few more"


def test_no_fault() -> None:
    model = random_graphs.random_graph(3)
    assert find_fault(suspect(model), Engine(model), Engine(model)).cause is Cause.STORED


def test_an_error_that_grows() -> None:
    model = random_graphs.model_of(LINE, STEPS)
    target = Engine(model, lambda _: {"": 1 + 3e-5})
    fault = find_fault(suspect(model), Engine(model), target)
    assert fault.cause is Cause.GRADUAL
    own = [row.output.norm_relative for row in fault.growth if row.output is not None]
    effects = [row.effect.norm_relative for row in fault.growth]
    assert len(effects) == len(own) > 2
    assert effects == sorted(effects)
    assert fault.growth[-1].node.name == "n11"
    at = [row.node for row in fault.growth].index(fault.nodes[-1])
    assert [row.effect.departs for row in fault.growth] == [False] * at + [True] * (len(fault.growth) - at)
    assert at > 0


@pytest.mark.parametrize("names", [("v4", "v5"), ("v6", "v7", "v8")])
def test_nodes_that_are_wrong_only_together(names: tuple[str, ...]) -> None:
    model = random_graphs.model_of(LINE, STEPS)
    fused = {f"n{name[1:]}" for name in names}

    def factors(part: Segment) -> Mapping[str, float]:
        return {names[-1]: 1.1} if fused <= set(part.nodes) else {}

    fault = find_fault(suspect(model), Engine(model), Engine(model, factors))
    assert fault.cause is Cause.TOGETHER
    assert {node.name for node in fault.nodes} == fused


def test_a_wrong_value_that_changes_nothing_misleads_nobody() -> None:
    """A mask of -3e38 that overflows is far from the reference all the way down, and right."""
    lines = [
        "[n0] v0 = Abs(x)",
        "[n1] v1 = Neg(v0)",
        "[n2] v2 = Mul(v1, huge)",
        *(f"[n{at}] v{at} = Tanh({'x' if at == 3 else f'v{at - 1}'})" for at in range(3, 10)),
        "[n10] v10 = Sigmoid(v2)",
        "[n11] v11 = Add(v10, v9)",
    ]
    lines.insert(0, "[h] huge = Constant <value = float {1e30}> ()")
    model = random_graphs.model_of(LINE, lines)
    fault = find_fault(suspect(model), Engine(model), Engine(model, lambda _: {"v2": 1e20, "v7": 1.2}))
    assert [node.name for node in fault.nodes] == ["n7"]
    assert fault.cause is Cause.NODE


def test_an_error_that_what_follows_makes_larger() -> None:
    """The node's own output is within the tolerance; what becomes of it is not."""
    lines = ["[n0] v0 = MatMul(x, w)", "[n1] v1 = Add(v0, big)", "[n2] v2 = Sub(v1, big)", "[n3] v11 = Tanh(v2)"]
    lines.insert(0, "[b] big = Constant <value = float {1000.0}> ()")
    model = random_graphs.model_of(LINE, lines)
    fault = find_fault(
        suspect(model, Tolerance("norm", 1e-3)), Engine(model), Engine(model, lambda _: {"v1": 1 + 1e-5})
    )
    assert fault.cause is Cause.NODE
    assert [node.name for node in fault.nodes] == ["n1"]
    assert fault.output is not None
    assert fault.effect is not None
    assert not fault.output.departs
    assert fault.effect.departs


def test_places_where_a_target_cannot_be_cut() -> None:
    model = random_graphs.model_of(LINE, STEPS)

    def factors(part: Segment) -> Mapping[str, float]:
        if part.nodes[-1] in ("n4", "n5", "n6"):
            raise ModelError("no tensors of that kind can leave the chip")
        return {"v6": 1.1}

    fault = find_fault(suspect(model), Engine(model), Engine(model, factors))
    assert fault.cause is Cause.TOGETHER
    assert [node.name for node in fault.nodes] == ["n4", "n5", "n6", "n7"]
    assert "no tensors of that kind" in fault.note


def test_the_node_with_which_a_target_breaks() -> None:
    model = random_graphs.model_of(LINE, STEPS)

    def alone(part: Segment) -> Mapping[str, float]:
        if "n5" in part.nodes:
            raise BundleError("the interpreter knows no Tanh of that kind")
        return {}

    def together(part: Segment) -> Mapping[str, float]:
        if {"n7", "n8"} <= set(part.nodes):
            raise InputError("no memory for both")
        return {}

    def uncompilable(part: Segment) -> Mapping[str, float]:
        raise ModelError("no compiler here")

    def search(factors: Callable[[Segment], Mapping[str, float]]) -> Fault:
        return find_break(suspect(model), Engine(model), Engine(model, factors))

    fault = search(alone)
    assert (fault.cause, [node.name for node in fault.nodes]) == (Cause.NODE, ["n5"])
    assert "knows no Tanh" in fault.note
    fault = search(together)
    assert (fault.cause, fault.nodes[-1].name) == (Cause.TOGETHER, "n8")
    assert search(uncompilable).cause is Cause.UNKNOWN
    assert search(lambda _: {}).cause is Cause.STORED


def test_what_cannot_be_compiled_again() -> None:
    model = random_graphs.model_of(LINE, STEPS)

    def factors(part: Segment) -> Mapping[str, float]:
        raise ModelError("no compiler here")

    fault = find_fault(suspect(model), Engine(model), Engine(model, factors))
    assert fault.cause is Cause.UNKNOWN
    assert "no compiler here" in fault.note


def test_bit_for_bit_blocks_are_not_divided() -> None:
    """Rounding inside a block may change where it is cut, so it is looked into only for an error that is larger."""
    model = random_graphs.model_of(LINE, STEPS)
    blocks = {f"n{at}": f"block{at // 4}" for at in range(12)}

    def rounds(part: Segment) -> Mapping[str, float]:
        whole_blocks = len(part.nodes) % 4 == 0
        wrong = {"v6": 1 + 3e-7} if "n6" in part.nodes else {}
        return wrong if whole_blocks else wrong | {"": 1 + 2e-7}

    fault = find_fault(suspect(model, EXACT, blocks), Engine(model), Engine(model, rounds))
    assert [node.name for node in fault.nodes] == ["n4", "n5", "n6", "n7"]
    assert "fuses" in fault.note
    fault = find_fault(suspect(model, EXACT, blocks), Engine(model), Engine(model, lambda _: {"v6": 1.01}))
    assert [node.name for node in fault.nodes] == ["n6"]
    assert fault.nodes[0].block == "block1"


def test_the_worst_of_several_outputs() -> None:
    expected = {"a": np.ones(4, np.float32), "b": np.ones(4, np.float32)}
    came = {"a": expected["a"] * np.float32(1.5), "b": expected["b"] * np.float32(1.1)}
    found = worst(deviations(expected, came, random_graphs.FP32))
    assert found is not None
    assert found.name == "a"
