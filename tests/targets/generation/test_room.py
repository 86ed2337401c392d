"""The memory of caches under a limit: what a sketch promises is kept, and arrays never take more."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.targets.generation.meter import Meter

from flagsplit.errors import InternalError
from flagsplit.targets.generation.banks import Banks, Sketched
from flagsplit.targets.generation.slot_cache import SlotCache
from flagsplit.targets.generation.slot_checks import has_room

SLOTS = 5
PAST = {"past.0": (2, 3), "past.1": (2, 3)}
CROSS = {"cross.0": (1, 2), "cross.1": (1, 2), "cross.2": (1, 2)}
CHANGES = st.tuples(
    st.sampled_from(["add", "add", "reserve", "reserve", "remove", "copy", "truncate"]),
    st.integers(0, SLOTS - 1),
    st.integers(0, SLOTS - 1),
    st.integers(1, 150),
    st.integers(0, 150),
)


def banks(meter: Meter, limit: float, weights: int, most: int = 1 << 30) -> Banks[Sketched]:
    """Caches whose arrays are counted; if there may be only one, with rows for all slots."""
    rows = SLOTS + 1 if most == 1 else 1

    def cache() -> SlotCache:
        return SlotCache(SLOTS, PAST, CROSS, zeros=meter.zeros, rows=rows, shrinks=most > 1)

    only = cache()
    made = Banks(cache if most > 1 else lambda: only, Sketched, weights, most)
    made.limit = limit
    return made


def fill(made: Banks[Sketched], slot: int, value: float) -> None:
    """Write into all that a row has room for."""
    cache = made.of(slot).cache
    (row,) = cache.rows([slot])
    for array in cache.past.values():
        array[row, :, : cache.needs[row]] = value
    cache.lengths[row] = cache.needs[row]
    for array in cache.cross.values():
        array[row, :, : cache.frames[row]] = value


def check(made: Banks[Sketched], held: dict[int, tuple[int, int, float]]) -> None:
    """Every slot has its own values."""
    for slot, (tokens, frames, value) in held.items():
        cache = made.of(slot).cache
        (row,) = cache.rows([slot])
        assert (cache.needs[row], cache.frames[row]) == (tokens, frames)
        assert all((array[row, :, :tokens] == value).all() for array in cache.past.values())
        assert all((array[row, :, :frames] == value).all() for array in cache.cross.values())


def apply(room: Banks[Sketched], change: tuple[str, int, int, int, int], held: dict[int, object]) -> bool | None:
    """Whether there was room; None if the change makes no sense."""
    action, slot, other, tokens, frames = change
    if action == "add" and slot not in held:
        return room.add(slot, frames, tokens)
    if action == "reserve" and slot in held:
        return room.reserve(slot, tokens)
    if action == "copy" and slot in held and slot != other:
        return room.copy(slot, other)
    if action == "remove":
        room.remove(slot)
        return True
    if action == "truncate" and slot in held:
        room.truncate(slot, tokens)
        return True
    return None


@pytest.mark.slow
@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.lists(CHANGES, min_size=8, max_size=50),
    st.tuples(st.integers(1, 150), st.integers(0, 150), st.integers(1, SLOTS)),
    st.sampled_from([0, 1000, 20_000, 1 << 30]),
    st.sampled_from([1, 2, 1 << 30]),
)
def test_what_a_sketch_promises_is_kept(
    changes: list[tuple[str, int, int, int, int]], sized: tuple[int, int, int], weights: int, most: int
) -> None:
    meter = Meter()
    made = banks(meter, 0, weights, most)
    made.limit = limit = made.bytes_for(*sized)
    sketch, held, value = made.sketch(), dict[int, tuple[int, int, float]](), 0.0
    for number, change in enumerate(changes):
        if number % 7 == 0:
            sketch = made.sketch()
        known: dict[int, object] = {**held}
        counted = meter.now
        promised = apply(sketch, change, known)
        assert meter.now == counted, "a sketch allocates nothing"
        assert apply(made, change, known) == promised
        action, slot, other, tokens, frames = change
        if promised:
            value += 1
            if action == "add":
                fill(made, slot, value)
                held[slot] = (tokens, frames, value)
            elif action == "reserve":
                held[slot] = (max(tokens, held[slot][0]), held[slot][1], value)
                fill(made, slot, value)
            elif action == "copy":
                held[other] = held[slot]
            elif action == "remove":
                held.pop(slot, None)
            else:
                held[slot] = (min(tokens, held[slot][0]), *held[slot][1:])
            for each in held:
                drawn = sketch.of(each).cache
                drawn.lengths[drawn.rows([each])] = drawn.needs[drawn.rows([each])]
        check(made, held)
        assert made.nbytes == meter.now
        assert made.nbytes <= made.kv_bytes == sketch.kv_bytes <= limit
    assert meter.most <= limit


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    st.lists(CHANGES, max_size=40),
    st.integers(1, 150),
    st.integers(0, 150),
    st.integers(1, 3),
    st.sampled_from([0, 1000, 1 << 30]),
    st.sampled_from([1, 2, 1 << 30]),
)
def test_what_would_fit_alone_fits_when_all_others_are_gone(
    changes: list[tuple[str, int, int, int, int]], tokens: int, frames: int, beams: int, weights: int, most: int
) -> None:
    """Whatever shape arrays got before, and however streams grow: up to the last byte that was asked for."""
    meter = Meter()
    made = banks(meter, 0, weights, most)
    made.limit = made.bytes_for(tokens, frames, beams)
    held = dict[int, object]()
    for change in changes:
        if apply(made, change, held):
            held = {slot: None for slot in range(SLOTS) if slot in made._where}
    for slot in range(SLOTS):
        made.remove(slot)
    assert made.add(0, frames, 1)
    assert all(made.copy(0, beam) for beam in range(1, beams))
    for length in (tokens // 3 + 1, tokens // 2 + 1, tokens):
        for beam in range(beams):
            if length <= tokens:
                assert made.reserve(beam, length)
    assert meter.most <= made.limit
    assert not made.reserve(0, tokens + 200)


def test_there_is_room_again_in_arrays_that_were_made_too_large() -> None:
    """Four streams that were short leave rows behind; what is left of the limit is for one that gets long."""
    meter = Meter()
    made = banks(meter, 20_000, 1 << 30)
    for slot in range(4):
        assert made.add(slot, 40, 20)
    for slot in range(1, 4):
        made.remove(slot)
    assert made.reserve(0, 250)
    assert not made.reserve(0, 500)
    assert meter.most <= 20_000


def test_a_stream_goes_apart_rather_than_beyond_the_limit() -> None:
    """Steps would read less if it stayed; five rows as long as the longest would take more than there is."""
    meter = Meter()
    made = banks(meter, 48_000, 1 << 30)
    for slot in range(5):
        assert made.add(slot, 0, 16)
    assert made.reserve(0, 300)
    assert [bank.cache.count for bank in made.banks] == [4, 1]
    assert meter.most <= 48_000
    for slot in range(1, 4):
        made.remove(slot)
    assert len(made.banks) == 1, "together again: there is room"


def test_streams_stay_apart_while_there_is_no_room_for_them_together() -> None:
    """Two long ones and two short ones would be stepped together at once, if six rows could be long meanwhile."""
    meter = Meter()
    made = banks(meter, np.inf, 1000)
    for slot, tokens in ((0, 200), (1, 200), (2, 16), (3, 16), (4, 16)):
        assert made.add(slot, 0, tokens)
    assert [bank.cache.count for bank in made.banks] == [2, 3]
    made._weights_bytes, made.limit = 1 << 30, made.kv_bytes
    made.remove(4)
    assert [bank.cache.count for bank in made.banks] == [2, 2]
    made.limit = 4 * made.limit
    made.remove(3)
    assert [bank.cache.count for bank in made.banks] == [3]


@pytest.mark.parametrize("most", [1, 1 << 30])
def test_a_limit_that_comes_later_frees_what_is_kept(most: int) -> None:
    meter = Meter()
    made = banks(meter, np.inf, 1 << 30, most)
    assert made.add(0, 20, 90)
    assert made.add(1, 20, 16)
    made.remove(0)
    used = made.bytes_for(16, 20)
    made.confine(used)
    assert meter.now <= used
    made.remove(1)
    made.confine(0)
    assert meter.now == 0


def test_without_a_limit_arrays_have_room_to_grow() -> None:
    made = banks(Meter(), np.inf, 1 << 30)
    for slot in range(3):
        assert made.add(slot, 0, 64)
    assert made.of(0).cache.shape == (4, 64, 0)
    assert made.reserve(0, 65)
    assert made.of(0).cache.shape == (4, 80, 0)


def test_no_room_is_no_fault_of_the_streams() -> None:
    has_room(there_was=True)
    with pytest.raises(InternalError, match="more than their limit"):
        has_room(there_was=False)
