"""Streams in a memory of their own kind: arrays as long as the longest of them, which never take more than the budget.

Which streams come, how long they are and what they get is random; every one ends with the tokens of the sequential
loop, whoever is evicted for it.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.runtime.generation.driver import Driver, alone, request
from tests.targets.generation.meter import Meter

from flagsplit.runtime.generation.admission import SchedulerSettings
from flagsplit.runtime.generation.events import Generate, Refused, Tokens
from flagsplit.runtime.generation.options import GenerationOptions
from flagsplit.runtime.generation.testing import HashModel, hidden, tiny_facts
from flagsplit.targets.generation.banks import Banks, Sketched
from flagsplit.targets.generation.slot_cache import SlotCache

FACTS = tiny_facts(max_positions=400)


def model_of(meter: Meter, slots: int, weights: int, *, is_one: bool = False, stop_share: int = 2) -> HashModel:
    """A model with real arrays; if `is_one`, in one set with rows for all slots, as on a GPU."""

    def cache() -> SlotCache:
        forms = {"past.0": (1, 2), "past.1": (1, 2)}, {"cross.0": (1, 1), "cross.1": (1, 1)}
        rows = slots + 1 if is_one else 1
        return SlotCache(slots, *forms, zeros=meter.zeros, rows=rows, shrinks=not is_one)

    only = cache()
    rooms = Banks((lambda: only) if is_one else cache, Sketched, weights, 1 if is_one else 1 << 30)
    return HashModel(slots, FACTS, rooms=rooms, stop_share=stop_share)


WISHES = st.tuples(
    st.sampled_from("abc"),
    st.sampled_from([1, 5, 30, 200]),
    st.sampled_from([1, 10, 60, 250]),
    st.sampled_from([1, 4, 40, 130]),
    st.sampled_from([1, 1, 1, 3]),
    st.integers(0, 12),
)


@pytest.mark.slow
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.lists(WISHES, min_size=1, max_size=14),
    st.integers(3, 6),
    st.sampled_from([1.0, 1.1, 1.6, 3.0]),
    st.sampled_from([0, 500, 5000, 1 << 30]),
    st.booleans(),
    st.sampled_from([4, 32, 128]),
)
def test_every_stream_ends_within_the_budget(
    wishes: list[tuple[str, int, int, int, int, int]],
    slots: int,
    times: float,
    weights: int,
    is_one: bool,
    step_tokens: int,
) -> None:
    meter = Meter()
    model = model_of(meter, slots, weights, is_one=is_one)
    asked = [
        Generate(
            str(number),
            client,
            hidden(number, frames),
            tuple(1 + at % 30 for at in range(prompt)),
            options=GenerationOptions(max_tokens=most, beams=beams),
        )
        for number, (client, frames, most, prompt, beams, _) in enumerate(wishes)
    ]
    least = max(model.bytes_for(prompt + most, frames, beams) for _, frames, most, prompt, beams, _ in wishes)
    budget = int(least * times)
    driver = Driver(model, SchedulerSettings(budget, step_tokens, fair_after_s=0.05))
    for each, (*_, pause) in zip(asked, wishes, strict=True):
        for _ in range(pause):
            driver.step()
        driver.submit(each)
    driver.run(most=4000)
    for each in asked:
        outcome = driver.outcomes[each.stream_id]
        assert isinstance(outcome.last, Tokens)
        assert outcome.tokens == alone(each, model)
    assert 0 < meter.most <= budget
    assert model.rooms.nbytes == meter.now


def test_what_fits_to_the_last_byte_runs_and_one_more_is_refused() -> None:
    model = model_of(Meter(), 4, 1 << 30)
    need = model.bytes_for(1 + 200, 7)
    for budget, ends in ((need, True), (need - 1, False)):
        driver = Driver(model, SchedulerSettings(budget))
        outcome = driver.submit(request(0, frames=7, max_tokens=200))
        driver.run()
        assert isinstance(outcome.last, Tokens if ends else Refused)


@pytest.mark.parametrize("is_one", [False, True])
def test_a_long_stream_among_short_ones_counts_for_what_it_takes(*, is_one: bool) -> None:
    """By their own lengths all would fit three times; in arrays as long as the longest they do not fit at once."""
    meter = Meter()
    model = model_of(meter, 8, 1 << 30, is_one=is_one, stop_share=0)
    own = sum(16 * (16 + most) + 8 * 16 for most in (300, *[20] * 7))
    budget = max(3 * own, model.bytes_for(301, 3))
    driver = Driver(model, SchedulerSettings(budget))
    for number in range(24):
        driver.submit(request(number, frames=3, max_tokens=300 if number % 8 == 0 else 20))
    driver.run()
    assert all(isinstance(each.last, Tokens) for each in driver.outcomes.values())
    assert meter.most <= budget
    assert meter.most > 0.7 * budget, "what there is is used"


def test_a_wide_search_takes_its_rows_at_once_or_waits() -> None:
    meter = Meter()
    model = model_of(meter, 6, 1 << 30, stop_share=0)
    budget = model.bytes_for(40, 100, 4)
    driver = Driver(model, SchedulerSettings(budget))
    driver.submit(request(0, frames=100, max_tokens=30))
    driver.step()
    asked = request(1, "b", frames=100, max_tokens=30, beams=4)
    driver.submit(asked)
    driver.run()
    assert driver.outcomes["1"].tokens == alone(asked, model)
    assert driver.scheduler.counts.evictions == 0
    assert meter.most <= budget


def test_evictions_do_not_go_on_for_ever() -> None:
    """Forty streams of three clients in the room of two: each token is made once, prompts are put in again seldom."""
    meter = Meter()
    model = model_of(meter, 16, 2000, stop_share=0)
    random = np.random.default_rng(4)
    sizes = [(int(random.integers(1, 200)), int(random.integers(1, 120))) for _ in range(40)]
    budget = 2 * max(model.bytes_for(1 + most, frames) for frames, most in sizes)
    driver = Driver(model, SchedulerSettings(budget))
    for number, (frames, most) in enumerate(sizes):
        driver.submit(request(number, "abc"[number % 3], frames, max_tokens=most))
    driver.run(most=3000)
    tokens = sum(most for _, most in sizes)
    assert driver.scheduler.counts.tokens == tokens
    assert driver.scheduler.counts.prefilled < tokens
    assert meter.most <= budget
