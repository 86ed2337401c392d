"""Where streams are put: what a step reads is what counts."""

import numpy as np
import pytest

from flagsplit.errors import InternalError
from flagsplit.targets.generation.banks import Banks, Sketched
from flagsplit.targets.generation.slot_cache import SlotCache


def banks(weights: int) -> Banks[Sketched]:
    """Arrays of a token or frame a number; weights are in numbers, too."""
    return Banks(lambda: SlotCache(16, {"past": (1, 1)}, {"cross": (1, 1)}), Sketched, 4 * weights)


def grow(made: Banks[Sketched], slot: int, tokens: int) -> None:
    assert made.reserve(slot, made.length(slot) + tokens)
    cache = made.of(slot).cache
    row = cache.rows([slot])
    value = np.full((1, 1, tokens, 1), slot, np.float32)
    cache.append(row, [0], [tokens], {"past": value})


def test_one_place_is_enough_while_weights_are_most_of_it() -> None:
    made = banks(100_000)
    for slot in range(16):
        made.add(slot, 10 * slot)
        grow(made, slot, 100 * (slot + 1))
    assert len(made.banks) == 1


def test_a_long_stream_does_not_make_all_others_long() -> None:
    made = banks(1000)
    for slot in range(8):
        made.add(slot, 30)
        grow(made, slot, 10)
    for _ in range(40):
        grow(made, 3, 20)
    assert [bank.cache.count for bank in made.banks] == [7, 1]
    assert made.of(0).cache.capacity == (16, 32)
    assert made.of(3).cache.capacity[0] >= 810
    assert (made.of(3).cache.past["past"][0, 0, :810] == 3).all()
    made.add(9, 30)
    assert made.of(9) is made.of(0)
    grow(made, 9, 700)
    assert made.of(9) is made.of(3), "it costs more to read the weights once more"
    for slot in (0, 1, 2, 4, 5):
        made.remove(slot)
    assert len(made.banks) == 2
    made.remove(9)
    made.remove(6)
    assert len(made.banks) == 1, "one that is alone pays no reading of its own"
    assert made.length(3) == 810
    assert made.length(7) == 10
    assert (made.of(7).cache.past["past"][made.of(7).cache.rows([7])[0], 0, :10] == 7).all()


def test_what_streams_held_is_freed_when_they_end() -> None:
    made = banks(10_000_000)
    for slot in range(16):
        made.add(slot, 200)
        grow(made, slot, 20)
    grow(made, 0, 1000)
    (bank,) = made.banks
    most = bank.cache.nbytes
    assert most > 16 * 4 * 1200
    for slot in range(15):
        made.remove(slot)
        used = 4 * max(1, bank.cache.count) * sum(max(16, each + 15) for each in bank.cache.longest(without=-1))
        assert bank.cache.nbytes <= 4 * used
        for left in range(slot + 1, 16):
            (row,) = bank.cache.rows([left])
            assert (bank.cache.past["past"][row, 0, :20] == left).all()
    assert bank.cache.nbytes < most / 20
    made.remove(15)
    assert bank.cache.nbytes < 1000
    made.add(3, 70)
    grow(made, 3, 300)
    assert (made.length(3), made.of(3).cache.capacity[1]) == (300, 80)


def test_a_copy_is_where_its_source_is() -> None:
    made = banks(100)
    for slot, frames in ((0, 10), (1, 2000)):
        made.add(slot, frames)
    assert len(made.banks) == 2
    made.copy(1, 0)
    assert made.of(0) is made.of(1)
    assert len(made.banks) == 1
    made.copy(0, 5)
    assert made.of(5).cache.count == 3
    made.clear()
    with pytest.raises(InternalError, match="slot 0 has no stream"):
        made.of(0)
