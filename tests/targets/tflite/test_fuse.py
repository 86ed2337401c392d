"""Operators taken together, and what must not be."""

from pathlib import Path

import numpy as np
import pytest
from tests.targets.mobile.litert.parts import graph, norm_relative, ran, reference, seeded

from flagsplit.targets.tflite.fuse import fuse
from flagsplit.targets.tflite.layout import settle_layouts
from flagsplit.targets.tflite.lower import lower_part


def _numbers(count: int) -> str:
    return ", ".join(f"{each:.3f}" for each in np.random.default_rng(count).standard_normal(count))


WEIGHTS = f"float[8,3,1,1] w = {{{_numbers(24)}}}, float[1,8,1,1] f = {{{_numbers(8)}}}"
NUMBERS = "float three = {3}, float zero = {0}, float six = {6}, float[1,8,1,1] s = {1, 2, 3, 4, 5, 6, 7, 8}"
SWISH = "a = Add(c, three) r = Clip(a, zero, six) p = Mul(c, r) y = Div(p, six)"

CASES = {
    "scale and shift": ("c = Conv(x, w) m = Mul(c, f) y = Add(m, s)", ["CONV_2D"]),
    "shift then scale": ("c = Conv(x, w) m = Add(s, c) y = Mul(m, f)", ["CONV_2D"]),
    "activation": ("c = Conv(x, w) m = Mul(c, f) y = Clip(m, zero, six)", ["CONV_2D"]),
    "nothing after the activation": ("c = Conv(x, w) r = Relu(c) y = Mul(r, f)", ["CONV_2D", "MUL"]),
    "one number": ("c = Conv(x, w) y = Mul(c, three)", ["CONV_2D"]),
    "read twice": ("c = Conv(x, w) m = Mul(c, f) y = Add(m, c)", ["CONV_2D", "MUL", "ADD"]),
    "swish": (f"c = Conv(x, w) {SWISH}", ["CONV_2D", "HARD_SWISH"]),
    "almost swish": (f"c = Conv(x, w) {SWISH.replace('three', 'six')}", ["CONV_2D", "ADD", "MUL", "DIV"]),
    "divided the wrong way": (
        "c = Conv(x, w) a = Add(c, three) r = Clip(a, zero, six) p = Mul(c, r) q = Add(p, six) y = Div(six, q)",
        ["CONV_2D", "ADD", "MUL", "ADD", "DIV"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_taken_together(name: str, tmp_path: Path) -> None:
    body, wanted = CASES[name]
    part = graph(body, "float[1,3,5,4] x", "float[1,8,5,4] y", f"{WEIGHTS}, {NUMBERS}")
    program = fuse(settle_layouts(lower_part(part)))
    assert [each.code for each in program.operators if each.code != "TRANSPOSE"] == wanted
    given = {"x": seeded((1, 3, 5, 4))}
    assert norm_relative(ran(part, tmp_path, given)["y"], reference(part, given)["y"]) < 1e-5
