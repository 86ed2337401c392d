"""Answers of workers against the outputs that the bundle declares, by themselves and at a session."""

from dataclasses import replace

import numpy as np
import pytest
from tests.runtime.lone import GRAPH, Lone, X, facts

from flagsplit.errors import ProtocolError
from flagsplit.runtime.answer_check import check_answer
from flagsplit.runtime.events import Deliver, Note
from flagsplit.runtime.manifest import Tensor
from flagsplit.runtime.session_machine import SessionMachine
from flagsplit.transport.channel import Received
from flagsplit.transport.messages import Chunk, HopTiming, Open, PeerAddress, TensorHeader
from flagsplit.transport.tensors import chunks_of

_BOXES = Tensor(name="boxes", dtype="float32", shape=["batch", "found", 4])
_COUNT = Tensor(name="count", dtype="int64", shape=[])


def _header(name: str, dtype: str, *shape: int) -> TensorHeader:
    return TensorHeader(name, dtype, shape, int(np.prod(shape)) * np.dtype(dtype).itemsize)


@pytest.mark.parametrize(
    "header",
    [
        _header("boxes", "float32", 2, 17, 4),
        _header("boxes", "float32", 0, 0, 4),
        _header("count", "int64"),
        _header("something between", "bool", 3),
    ],
)
def test_what_fits(header: TensorHeader) -> None:
    check_answer([_BOXES, _COUNT], {}, [header])


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (_header("boxes", "float64", 2, 17, 4), "expected float32 [batch, found, 4], came float64 [2, 17, 4]"),
        (_header("boxes", "float32", 2, 4, 17), "came float32 [2, 4, 17]"),
        (_header("boxes", "float32", 17, 4), "came float32 [17, 4]"),
        (_header("boxes", "float32", 2, 17, 4, 1), "came float32 [2, 17, 4, 1]"),
        (_header("boxes", "float32"), "came float32 []"),
        (_header("count", "int64", 1), "expected int64 [], came int64 [1]"),
    ],
)
def test_what_does_not(header: TensorHeader, expected: str) -> None:
    with pytest.raises(ProtocolError, match=f"^output '{header.name}': ") as caught:
        check_answer([_BOXES, _COUNT], {}, [_header("count", "int64"), header])
    assert expected in str(caught.value)


def test_an_output_may_have_another_name_under_a_plan() -> None:
    check_answer([_COUNT], {"count": "count~lossy"}, [_header("count", "bool", 7)])
    with pytest.raises(ProtocolError, match="output 'count'"):
        check_answer([_COUNT], {"count": "count~lossy"}, [_header("count~lossy", "bool", 7)])


class _Asking(Lone):
    """A session whose best plan has the cloud make the output."""

    def __init__(self) -> None:
        super().__init__()
        declared = Tensor(name="v3", dtype="int64", shape=["n"])
        self.facts = replace(facts(by_cloud=(2, 2, 2, 2), alone=(0, 0, 0, 0)), declared=(declared,))
        self.machine = SessionMachine(self.facts, {"cloud": PeerAddress("tcp://cloud:1")}, "5" * 32)
        self.up("cloud")

    def answer(self, dtype: str, *shape: int) -> None:
        (opened,) = self.sent(Open)
        assert isinstance(opened, Open)
        trace = (*opened.trace, HopTiming("cloud", "0.1.2.3", 0, 1, 0, 0))
        tensors = (_header("v3", dtype, *shape),)
        back = replace(opened, hop=2, tensors=tensors, trace=trace, inline_crc32=None, payload=b"")
        value = GRAPH.answer(X["x"])["v3"].astype(dtype).reshape(shape)
        said: list[Open | Chunk] = [back, *chunks_of(back, [value.data.cast("B")])]
        for message in said:
            self.tell(Received("cloud", message))


def test_a_session_takes_an_answer_as_declared() -> None:
    asking = _Asking()
    asking.submit()
    asking.answer("int64", 5)
    (answer,) = (said for said in asking.said if isinstance(said, Deliver))
    assert (answer.report.plan, answer.report.attempts) == ("by_cloud", 1)


@pytest.mark.parametrize(("dtype", "shape"), [("float64", (5,)), ("int64", (1, 5)), ("int64", (5, 1))])
def test_a_session_does_without_a_worker_whose_answer_is_of_another_kind(dtype: str, shape: tuple[int, ...]) -> None:
    asking = _Asking()
    asking.submit()
    asking.answer(dtype, *shape)
    assert any(isinstance(said, Note) and "output 'v3': expected int64 [n]" in said.text for said in asking.said)
    asking.ran()
    (answer,) = (said for said in asking.said if isinstance(said, Deliver))
    assert (answer.report.plan, answer.report.attempts) == ("alone", 2)
    assert np.array_equal(answer.outputs["v3"], GRAPH.answer(X["x"])["v3"])
