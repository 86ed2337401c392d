"""What is computed twice becomes one node; what only looks alike stays."""

import pytest
from tests.flagir.models import assert_same_answers, canonical, parse

HALF = "Split <axis = 0, num_outputs = 2>"


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("a = Neg (x) b = Neg (x) y = Add (a, b)", ["Neg", "Add"]),
        ("a = Neg (x) b = Neg (x) c = Abs (a) d = Abs (b) y = Add (c, d)", ["Neg", "Abs", "Add"]),
        ("a = Softmax <axis = 0> (x) b = Softmax <axis = 1> (x) y = Add (a, b)", ["Softmax", "Softmax", "Add"]),
        ("a = Sub (x, k) b = Sub (k, x) y = Add (a, b)", ["Sub", "Sub", "Add"]),
        ("a = LeakyRelu <alpha = 0.1> (x) b = LeakyRelu <alpha = 0.2> (x) y = Add (a, b)", ["LeakyRelu"] * 2 + ["Add"]),
        (f"p, q = {HALF} (x) r, s = {HALF} (x) y = Concat <axis = 0> (p, s)", ["Split", "Concat"]),
        ("a = Neg (x) y = Neg (x)", ["Neg"]),
        ("a = Neg (x) b = Neg (x) c = Sub (a, b) y = Neg (x)", ["Neg"]),
    ],
)
def test_what_is_left(body: str, left: list[str]) -> None:
    text = f"g (float[2, 2] x) => (float[2, 2] y) <float[2, 2] k = {{1.0, 2.0, 3.0, 4.0}}> {{ {body} }}"
    model = assert_same_answers(parse(text, opset=23))
    assert [node.op_type for node in model.graph] == left


def test_random_nodes_stay_two() -> None:
    draws = "a = RandomNormal <shape = [2]> () b = RandomNormal <shape = [2]> ()"
    model = canonical(parse(f"g (float[2] x) => (float[2] y) {{ {draws} c = Sub (a, b) y = Mul (c, x) }}", opset=23))
    assert [node.op_type for node in model.graph].count("RandomNormal") == 2
