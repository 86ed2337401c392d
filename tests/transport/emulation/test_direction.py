"""Turns and marks of one direction, against the plainest way to say the same."""

import math
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from flagsplit.transport.emulation.direction import Direction, Marks
from flagsplit.transport.emulation.pacer import LinkShape


@settings(deadline=None)
@given(
    data=st.binary(max_size=200),
    pieces=st.lists(st.integers(1, 40), min_size=1, max_size=20),
    flips=st.lists(st.integers(0, 220), max_size=5),
    cut=st.none() | st.integers(0, 220),
)
def test_marks_hit_the_bytes_that_they_name(data: bytes, pieces: list[int], flips: list[int], cut: int | None) -> None:
    """However the bytes are divided, the same ones are changed, and nothing comes after the cut."""
    marks = Marks()
    for flip in flips:
        marks.flip(flip)
    if cut is not None:
        marks.cut(cut)
    came, is_cut, start, turn = b"", False, 0, 0
    while start < len(data) and not is_cut:
        size = pieces[turn % len(pieces)]
        changed, is_cut = marks.apply(data[start : start + size])
        came += changed
        start, turn = start + size, turn + 1
    expected = bytearray(data[:cut])
    for flip in flips:
        if flip < len(expected):
            expected[flip] ^= 0xFF
    assert came == bytes(expected)
    assert is_cut == (cut is not None and cut < len(data))


def test_marks_count_from_when_they_are_set() -> None:
    marks = Marks()
    assert marks.apply(b"abc") == (b"abc", False)
    marks.flip(0)
    marks.cut(1)
    marks.cut(1)
    assert marks.apply(b"def") == (b"\x9b", True)
    assert marks.apply(b"ghi") == (b"", True)
    assert marks.apply(b"jkl") == (b"jkl", False)


def test_a_direction_that_is_stalled_or_has_no_rate_takes_nothing() -> None:
    direction = Direction(LinkShape(1e6), "0")
    assert direction.next_at() == math.inf
    turn = object()
    direction.hold(turn, 2.0)  # type: ignore[arg-type]
    assert direction.next_at() == 2.0
    direction.release(1.0)
    assert not direction.takes(1.0)
    direction.release(2.0)
    assert direction.takes(2.0)
    direction.stalled = True
    assert not direction.takes(2.0)
    assert direction.next_at() == math.inf
    direction.stalled = False
    direction.pacer.shape = LinkShape(0.0)
    assert not direction.takes(2.0)
    assert direction.next_at() == math.inf


def test_held_turns_come_back_in_the_order_of_their_times() -> None:
    direction = Direction(LinkShape(math.inf), "0")
    times = [random.Random(3).uniform(0, 10) for _ in range(50)]
    for time_s in times:
        direction.hold(time_s, time_s)  # type: ignore[arg-type]
    direction.release(math.inf)
    came: list[object] = list(direction.ready)
    assert came == sorted(times)
