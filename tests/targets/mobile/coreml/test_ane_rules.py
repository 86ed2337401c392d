"""The table of rules: each falls on what it is about, and on nothing beside it."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from tests.targets.mobile.coreml.graphs import floats, node_of, parse

from flagsplit.targets.interface import SupportVerdict
from flagsplit.targets.mobile.coreml.ane_rules import RULES, off_accelerator, slow_there, verdict


def _rule_of(model: ir.Model, op_type: str) -> str:
    found = off_accelerator(node_of(model, op_type))
    return "" if found is None else found[0].id


def test_each_rule_says_where_it_is_from() -> None:
    assert len({rule.id for rule in RULES}) == len(RULES) == 16
    for rule in RULES:
        assert rule.says.endswith(".")
        assert rule.source
        assert rule.confidence in ("high", "medium", "low")
        assert rule.effect in ("cpu", "slower", "package")
        assert rule.price


@pytest.mark.parametrize(("width", "rule"), [(13, ""), (14, "kernel")])
def test_wide_kernels(width: int, rule: str) -> None:
    model = parse(
        "g (float[1, 3, 32, 32] x) => (float[1, 2, A, B] y) { y = Conv(x, w) }", {"w": floats(2, 3, 1, width)}
    )
    assert _rule_of(model, "Conv") == rule


@pytest.mark.parametrize(("size", "rule"), [(2048, ""), (2049, "argmax")])
def test_long_argmax(size: int, rule: str) -> None:
    model = parse(f"g (float[1, {size}] x) => (int64[1, 1] y) {{ y = ArgMax <axis = 1> (x) }}")
    assert _rule_of(model, "ArgMax") == rule


@pytest.mark.parametrize(("shape", "rule"), [("1, 2, 16384", ""), ("1, 2, 16385", "size"), ("65537, 1, 1", "size")])
def test_long_axes(shape: str, rule: str) -> None:
    assert _rule_of(parse(f"g (float[{shape}] x) => (float[{shape}] y) {{ y = Relu(x) }}"), "Relu") == rule


def test_what_never_runs_there() -> None:
    logic = parse("g (bool[2] a, bool[2] b) => (bool[2] y) { y = And(a, b) }")
    whole = parse("g (int64[2] a, int64[2] b) => (int64[2] y) { y = Add(a, b) }")
    product = parse("g (float[2, 3] x) => (float[1, 1] y) { y = ReduceProd(x) }")
    deep = parse(
        "g (float[1, 1, 4, 4, 4] x) => (float[1, 1, 3, 3, 3] y) { y = Conv(x, w) }", {"w": floats(1, 1, 2, 2, 2)}
    )
    assert _rule_of(logic, "And") == "fp16"
    assert _rule_of(whole, "Add") == "fp16"
    assert _rule_of(product, "ReduceProd") == "operators"
    assert _rule_of(deep, "Conv") == "3-d"


def test_look_ups() -> None:
    text = "g (int64[3] i) => (float[3, 8] y) { y = Gather(table, i) }"
    assert _rule_of(parse(text, {"table": floats(10, 8)}), "Gather") == "look-up"
    taken = parse("g (float[10, 8] x) => (float[2, 8] y) { y = Gather(x, i) }", {"i": np.array([1, 2])})
    assert _rule_of(taken, "Gather") == ""


def test_what_is_slow_there() -> None:
    text = "g (float[1, 1024, 2048] x) => (float[1, 1024, 4] y) { y = MatMul(x, w) }"
    model = parse(text, {"w": floats(2048, 4)})
    node = node_of(model, "MatMul")
    assert off_accelerator(node) is None
    assert {rule.id for rule, _ in slow_there(node)} == {"memory", "padding", "layout"}
    said = verdict(node)
    assert (said.supported, said.unit, said.confidence) == (True, "accelerator", "low")
    assert "'x' is of 4.0 MB in fp16" in said.reason
    assert "stored as 32" in said.reason
    operand, result = 1024 * 2048 * 4, 1024 * 4 * 4
    assert said.extra_bytes == {"x": operand + 2 * operand, "y": 1024 * 28 * 4 + 2 * result}
    plain = node_of(parse("g (float[1, 64] x) => (float[1, 64] y) { y = Relu(x) }"), "Relu")
    assert slow_there(plain) == ()
    assert verdict(plain) == SupportVerdict(True)


@pytest.mark.parametrize(("width", "stored"), [(1, 32), (31, 32), (33, 64), (112, 128)])
def test_padding(width: int, stored: int) -> None:
    """An array of NumPy of whole rows of 64 bytes tells how much is stored."""
    node = node_of(parse(f"g (float[2, 3, {width}] x) => (float[2, 3, {width}] y) {{ y = Relu(x) }}"), "Relu")
    rows = np.zeros((2, 3, -(-width * 2 // 64), 32), np.float16)
    assert rows.shape[-2] * rows.shape[-1] == stored
    moved = (rows.size - 2 * 3 * width) * 4
    assert verdict(node).extra_bytes == {"x": moved, "y": moved}


def test_the_table_of_the_documentation_is_this_one() -> None:
    text = (Path(__file__).parents[4] / "docs" / "coreml.md").read_text()
    rows = [line for line in text.split("## The Neural Engine")[1].splitlines() if line.startswith("| `")]
    assert rows == [
        f"| `{rule.id}` | {rule.says} | {rule.effect} | {rule.price} | {rule.source} | {rule.confidence} |"
        for rule in RULES
    ]
