"""What is mapped of a program, what streams, and the modelled time."""

import numpy as np
import pytest
from tests.targets.edge.edgetpu.test_facts import PICTURE, op, small

from flagsplit.targets.edge.edgetpu.facts import INVOCATION_S, LINK_BYTES_PER_S, SRAM_BYTES
from flagsplit.targets.edge.edgetpu.mapping import mapping_of, work_of
from flagsplit.targets.tflite.program import Operator, Program, Tensor


def test_the_first_operator_that_is_not_mapped_ends_it() -> None:
    first = op("TANH", [PICTURE], 1, 6, 6, 8)
    stops = op("HARD_SWISH", [first.outputs[0]], 1, 6, 6, 8)
    later = op("TANH", [stops.outputs[0]], 1, 6, 6, 8)
    found = mapping_of(Program([PICTURE], later.outputs, [first, stops, later]))
    assert (found.operators, found.mapped) == (3, 1)
    assert found.stopped is not None
    assert (found.stopped.at, found.stopped.code) == (1, "HARD_SWISH")
    assert "has no HARD_SWISH" in found.stopped.refusal.reason
    assert found.seconds["cpu"] > 0
    assert (found.input_bytes, found.output_bytes) == (6 * 6 * 8, 6 * 6 * 8)


def test_all_of_it_is_mapped() -> None:
    first = op("TANH", [PICTURE], 1, 6, 6, 8)
    turned = op("TRANSPOSE", [first.outputs[0], Tensor((4,), "int32", np.array([0, 3, 1, 2], np.int32))], 1, 8, 6, 6)
    found = mapping_of(Program([PICTURE], turned.outputs, [first, turned]))
    assert (found.mapped, found.stopped, found.seconds["cpu"]) == (2, None, 0)
    assert list(found.cautions) == ["TRANSPOSE"]
    assert found.total == pytest.approx(INVOCATION_S, rel=0.02)


def _dense(mebibytes: int) -> Program:
    rows = 1024 * mebibytes
    weights = Tensor((rows, 1024), "int8", np.zeros((rows, 1024), np.int8))
    x, y = small(1, 1024), small(1, rows)
    return Program([x], [y], [Operator("FULLY_CONNECTED", (x, weights, None), (y,))])


def test_parameters_that_the_memory_holds_do_not_stream() -> None:
    found = mapping_of(_dense(7))
    assert (found.parameter_bytes, found.streamed_bytes) == (7 << 20, 0)
    assert found.total < 1e-3


def test_parameters_beyond_it_stream_at_each_run() -> None:
    found = mapping_of(_dense(64))
    assert found.streamed_bytes == (64 << 20) - SRAM_BYTES
    assert found.seconds["stream"] == found.streamed_bytes / LINK_BYTES_PER_S
    assert found.total > 0.19


def test_a_constant_that_two_read_is_held_once() -> None:
    weights = Tensor((8, 8), "int8", np.ones((8, 8), np.int8))
    first = Operator("FULLY_CONNECTED", (small(1, 8), weights, None), (small(1, 8),))
    second = Operator("FULLY_CONNECTED", (first.outputs[0], weights, None), (small(1, 8),))
    assert mapping_of(Program(first.inputs[:1], second.outputs, [first, second])).parameter_bytes == 64  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("operator", "work"),
    [
        (op("CONV_2D", [PICTURE, small(4, 3, 3, 8, data=1), None], 1, 4, 4, 4), 4 * 4 * 4 * 9 * 8),
        (op("DEPTHWISE_CONV_2D", [PICTURE, small(1, 3, 3, 8, data=1), None], 1, 4, 4, 8), 4 * 4 * 8 * 9),
        (
            op("TRANSPOSE_CONV", [None, small(4, 2, 2, 8, data=1), PICTURE], 1, 12, 12, 4),
            6 * 6 * 8 * 4 * 4,
        ),
        (op("TANH", [PICTURE], 1, 6, 6, 8), 6 * 6 * 8),
    ],
)
def test_work_is_counted(operator: Operator, work: int) -> None:
    assert work_of(operator) == work
