"""What differs between two graphs, kind by kind."""

import pytest
from tests.flagir.models import canonical, parse

from flagsplit.flagir import write_placement
from flagsplit.flagir.diff import changes

BASE = "g (float[N, 2] x) => (float[N, 2] y) <float[2] w = {1.0, 2.0}> { a = Add (x, w) y = Softmax (a) }"


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (BASE, []),
        (BASE.replace("N", "M"), ["input x", "output y"]),
        (BASE.replace("2.0}", "3.0}"), ["weight w"]),
        (BASE.replace("Softmax (a)", "Softmax <axis = 0> (a)"), ["node y"]),
        (BASE.replace("Add", "Sub"), ["node a"]),
        (BASE.replace("y = Softmax (a)", "b = Relu (a) y = Softmax (b)"), ["node y", "node b"]),
        (BASE.replace("<float[2] w = {1.0, 2.0}>", "").replace("(x, w)", "(x, x)"), ["node a", "weight w"]),
        (BASE.replace("a = ", "b = ").replace("(a)", "(b)"), ["value a"]),
        (BASE.replace(" w", " v").replace("(x, w)", "(x, v)"), ["value w"]),
        (BASE.replace("a = Add", "b = Sub").replace("(a)", "(b)"), ["node a", "node y", "node b"]),
    ],
)
def test_each_kind_of_change_is_named(other: str, said: list[str]) -> None:
    found = changes(canonical(parse(BASE, opset=23)), canonical(parse(other, opset=23)))
    assert sorted(f"{change.what} {change.name}" for change in found) == sorted(said)


def test_plans_count() -> None:
    a, b, c = (canonical(parse(BASE, opset=23)) for _ in range(3))
    nodes = [node.name or "" for node in a.graph]
    write_placement(a, "p", ("phone", "cloud"), dict.fromkeys(nodes, 0))
    write_placement(b, "p", ("phone", "cloud"), {nodes[0]: 0, nodes[1]: 1})
    assert [str(change)[:7] for change in changes(a, b)] == ["plan p:"]
    assert [change.kind for change in changes(a, c)] == ["only in a"]
    assert [change.kind for change in changes(c, a)] == ["only in b"]
