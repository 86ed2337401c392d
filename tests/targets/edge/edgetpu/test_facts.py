"""Every rule of the table has an operator that keeps it and one that breaks it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from flagsplit.targets.edge.edgetpu.facts import CAUTIONS, MAPPED, REPORTED, RULES, refusal_of
from flagsplit.targets.tflite.program import Operator, Tensor

SCALE = np.array([0.1], np.float32)


def small(*shape: int, data: Any = None, dtype: str = "int8") -> Tensor:
    """A tensor of 8 bits."""
    return Tensor(shape, dtype, None if data is None else np.broadcast_to(np.asarray(data, dtype), shape), SCALE)


def ints(*values: Any) -> Tensor:
    data = np.array(values, np.int32)
    return Tensor(data.shape, "int32", data)


def op(code: str, inputs: Sequence[Tensor | None], *shape: int, **options: Any) -> Operator:
    return Operator(code, tuple(inputs), (small(*shape),), options)


PICTURE = small(1, 6, 6, 8)
KERNEL, DEPTH = small(4, 3, 3, 8, data=1), small(1, 3, 3, 8, data=1)
BIAS = small(4, data=1, dtype="int32")

KEPT_AND_BROKEN: dict[str, list[tuple[Operator, Operator]]] = {
    "int8": [
        (op("TANH", [PICTURE], 1, 6, 6, 8), op("TANH", [small(1, 6, 6, 8, dtype="float32")], 1, 6, 6, 8)),
        (op("TANH", [PICTURE], 1, 6, 6, 8), op("TANH", [small(1, 6, 6, 8, dtype="int16")], 1, 6, 6, 8)),
    ],
    "inner": [(op("TANH", [PICTURE], 1, 6, 6, 8), op("TANH", [small(2, 6, 6, 8)], 2, 6, 6, 8))],
    "parameters": [
        (
            op("CONV_2D", [PICTURE, KERNEL, BIAS], 1, 4, 4, 4),
            op("CONV_2D", [PICTURE, small(4, 3, 3, 8), BIAS], 1, 4, 4, 4),
        ),
        (
            op("DEPTHWISE_CONV_2D", [PICTURE, DEPTH, None], 1, 4, 4, 8),
            op("DEPTHWISE_CONV_2D", [PICTURE, DEPTH, small(8, dtype="int8")], 1, 4, 4, 8),
        ),
    ],
    "dilation": [
        (
            op(code, [PICTURE, KERNEL, BIAS], 1, 2, 2, 4, dilationHFactor=2, dilationWFactor=2),
            op(code, [PICTURE, KERNEL, BIAS], 1, 2, 4, 4, dilationHFactor=2, dilationWFactor=1),
        )
        for code in ("CONV_2D", "DEPTHWISE_CONV_2D")
    ],
    "row": [
        (
            op("FULLY_CONNECTED", [small(1, 8), small(4, 8, data=1), BIAS], 1, 4),
            op("FULLY_CONNECTED", [small(3, 8), small(4, 8, data=1), BIAS], 3, 4),
        )
    ],
    "activation": [
        (
            op(code, [PICTURE, PICTURE], 1, 3, 3, 8, fusedActivationFunction=0),
            op(code, [PICTURE, PICTURE], 1, 3, 3, 8, fusedActivationFunction=1),
        )
        for code in ("AVERAGE_POOL_2D", "MAX_POOL_2D", "CONCATENATION")
    ],
    "zeros": [
        (
            op("CONCATENATION", [PICTURE, small(1, 6, 6, 1, data=0)], 1, 6, 6, 9),
            op("CONCATENATION", [PICTURE, small(1, 6, 6, 1, data=2)], 1, 6, 6, 9),
        ),
        (
            op("CONCATENATION", [PICTURE, PICTURE, PICTURE], 1, 6, 6, 24),
            op("CONCATENATION", [PICTURE, PICTURE, small(1, 6, 6, 1, data=0)], 1, 6, 6, 17),
        ),
    ],
    "reduced batch": [
        (op(code, [PICTURE, ints(1, 2)], 1, 8, keepDims=False), op(code, [PICTURE, ints(0, 1)], 6, 8, keepDims=False))
        for code in ("MEAN", "REDUCE_MAX", "REDUCE_MIN")
    ],
    "mean of channels": [
        (op("MEAN", [PICTURE, ints(3)], 1, 6, 6), op("MEAN", [small(1, 6, 6, 7), ints(3)], 1, 6, 6)),
        (op("MEAN", [small(1, 6, 6, 7), ints(1, 2)], 1, 7), op("MEAN", [small(1, 6, 6, 7), ints(-1)], 1, 6, 6)),
    ],
    "padded batch": [
        (
            op("PAD", [PICTURE, ints([0, 0], [1, 1], [0, 0], [0, 0])], 1, 8, 6, 8),
            op("PAD", [small(1, 8), ints([0, 1], [0, 0])], 2, 8),
        )
    ],
    "slope": [
        (
            op("PRELU", [PICTURE, small(1, 1, 1, 8, data=1)], 1, 6, 6, 8),
            op("PRELU", [PICTURE, small(1, 6, 1, 8, data=1)], 1, 6, 6, 8),
        )
    ],
    "softmax": [
        (op("SOFTMAX", [small(1, 16000)], 1, 16000), op("SOFTMAX", [small(1, 16001)], 1, 16001)),
        (op("SOFTMAX", [small(1, 1, 9)], 1, 1, 9), op("SOFTMAX", [small(1, 3, 9)], 1, 3, 9)),
    ],
    "squeeze": [(op("SQUEEZE", [small(1, 6, 8)], 6, 8), op("SQUEEZE", [small(6, 1, 8)], 6, 8))],
    "stride": [
        (
            op("STRIDED_SLICE", [PICTURE, ints(0, 0, 0, 0), ints(1, 3, 6, 8), ints(1, 1, 1, 1)], 1, 3, 6, 8),
            op("STRIDED_SLICE", [PICTURE, ints(0, 0, 0, 0), ints(1, 6, 6, 8), ints(1, 2, 1, 1)], 1, 3, 6, 8),
        )
    ],
    "split batch": [
        (op("SPLIT", [PICTURE], 1, 3, 6, 8, axis=1), op("SPLIT", [small(2, 8)], 1, 8, axis=0)),
    ],
    "turned batch": [
        (
            op("TRANSPOSE", [PICTURE, ints(0, 3, 1, 2)], 1, 8, 6, 6),
            op("TRANSPOSE", [PICTURE, ints(1, 0, 2, 3)], 6, 1, 6, 8),
        ),
    ],
}


def test_all_rules_are_tried() -> None:
    assert set(KEPT_AND_BROKEN) == {rule.name for rule in RULES}
    tried = {name: {broken.code for _, broken in pairs} for name, pairs in KEPT_AND_BROKEN.items()}
    for rule in RULES:
        assert rule.codes <= tried[rule.name] | {"FULLY_CONNECTED"}, rule.name


@pytest.mark.parametrize("name", KEPT_AND_BROKEN)
def test_a_rule(name: str) -> None:
    (rule,) = (each for each in RULES if each.name == name)
    for kept, broken in KEPT_AND_BROKEN[name]:
        assert rule.applies(kept)
        assert not rule.broken(kept)
        assert refusal_of(kept) is None
        assert rule.broken(broken)
        refusal = refusal_of(broken)
        assert refusal is not None
        assert refusal.source
        assert refusal.confidence in ("high", "medium", "low")


@pytest.mark.parametrize("code", ["HARD_SWISH", "BATCH_MATMUL", "PADV2", "DEPTH_TO_SPACE", *REPORTED])
def test_operators_that_are_not_mapped(code: str) -> None:
    refusal = refusal_of(op(code, [PICTURE, PICTURE], 1, 6, 6, 8))
    assert refusal is not None
    assert code in refusal.reason


@pytest.mark.parametrize("code", ["ADD", "MUL", "SUB", "MAXIMUM", "RELU6", "LOGISTIC", "QUANTIZE", "RESIZE_BILINEAR"])
def test_operators_that_are(code: str) -> None:
    assert refusal_of(op(code, [PICTURE], 1, 6, 6, 8)) is None


def test_cautions_are_about_operators_that_are_mapped() -> None:
    assert CAUTIONS.keys() <= MAPPED.keys()
    assert not MAPPED.keys() & REPORTED.keys()
