"""The scheduler in virtual time: every stream's tokens are those of the sequential loop, whatever happens to others."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.runtime.generation.driver import STEP_S, Driver, alone, request

from flagsplit.runtime.generation.admission import SchedulerSettings
from flagsplit.runtime.generation.events import Generate, Refused, Tokens
from flagsplit.runtime.generation.options import GenerationOptions
from flagsplit.runtime.generation.stream import State
from flagsplit.runtime.generation.testing import HashModel, hidden, tiny_facts

ASKED: st.SearchStrategy[dict[str, object]] = st.builds(
    dict,
    client=st.sampled_from("abc"),
    frames=st.integers(1, 6),
    max_tokens=st.integers(1, 40),
    temperature=st.sampled_from([0.0, 0.0, 1.0]),
    beams=st.sampled_from([1, 1, 1, 3]),
    resumed=st.integers(0, 5),
    pause=st.integers(0, 4),
    cancels=st.integers(0, 60),
    late=st.booleans(),
    prompt=st.integers(1, 9),
)


def ask_of(number: int, wish: dict[str, object], model: HashModel) -> Generate:
    """A stream as wished for, that may have begun elsewhere."""
    seeking = wish["beams"] != 1
    options = GenerationOptions(
        max_tokens=int(str(wish["max_tokens"])),
        temperature=0.0 if seeking else float(str(wish["temperature"])),
        beams=int(str(wish["beams"])),
        seed=number,
    )
    prompt = tuple(range(1, 1 + int(str(wish["prompt"]))))
    asked = Generate(str(number), str(wish["client"]), hidden(number, int(str(wish["frames"]))), prompt, 0, options)
    before = [] if seeking else alone(asked, model)[: int(str(wish["resumed"]))]
    return replace(asked, tokens=(*prompt, *before), generated=len(before))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(ASKED, min_size=1, max_size=12),
    st.integers(3, 6),
    st.integers(450, 3000),
    st.sampled_from([1, 3, 8, 256]),
    st.sets(st.integers(0, 11), max_size=2),
    st.integers(0, 9),
)
def test_histories(
    wishes: list[dict[str, object]], slots: int, kv_bytes: int, step_tokens: int, poison: set[int], flaky: int
) -> None:
    """Streams come, are cancelled, evicted, late or make steps fail: the others never notice."""
    bad = {b"hidden" + hidden(number)["hidden"].tobytes()[:8] for number in poison}
    model = HashModel(slots, fails=lambda seen: any(each[:14] in bad for each in seen) or model.steps % 10 == flaky + 1)
    driver = Driver(model, SchedulerSettings(kv_bytes, step_tokens, fair_after_s=0.03))
    asked = [ask_of(number, wish, model) for number, wish in enumerate(wishes)]
    to_cancel = dict[int, list[str]]()
    steps = 0

    def go(count: int) -> None:
        nonlocal steps
        for _ in range(count):
            for stream_id in to_cancel.pop(steps, []):
                driver.cancel(stream_id)
            driver.step()
            steps += 1

    for number, (each, wish) in enumerate(zip(asked, wishes, strict=True)):
        go(int(str(wish["pause"])))
        driver.submit(replace(each, deadline=driver.now + 30 * STEP_S) if wish["late"] else each)
        if wish["cancels"]:
            to_cancel.setdefault(steps + int(str(wish["cancels"])), []).append(str(number))
    go(70)
    driver.run()

    for each in asked:
        outcome, expected = driver.outcomes[each.stream_id], alone(each, model)
        assert outcome.last is not None
        if isinstance(outcome.last, Tokens) and outcome.last.reason in ("stop", "length"):
            assert outcome.tokens == expected
        else:
            assert outcome.tokens == expected[: len(outcome.tokens)]
        if isinstance(outcome.last, Refused) and outcome.last.code == "bad-input":
            assert 10 * 50 * each.options.beams > kv_bytes
    assert model.open_slots == 0 or driver.step() or model.open_slots == 0
    assert model.kv_bytes == 0


def test_new_streams_join_at_the_next_step() -> None:
    driver = Driver(HashModel(4, stop_share=0))
    driver.submit(request(0, max_tokens=20))
    for _ in range(5):
        driver.step()
    driver.submit(request(1, max_tokens=20))
    driver.step()
    assert len(driver.outcomes["0"].tokens) == 6
    assert len(driver.outcomes["1"].tokens) == 1
    assert driver.scheduler.counts.batches == {1: 5, 2: 1}


def test_a_long_prompt_does_not_stop_those_that_generate() -> None:
    driver = Driver(HashModel(4, stop_share=0), SchedulerSettings(step_tokens=4))
    driver.submit(request(0, max_tokens=40))
    driver.step()
    driver.submit(Generate("1", "a", hidden(1), tuple(range(1, 31)), options=GenerationOptions(max_tokens=3)))
    while not driver.outcomes["1"].tokens:
        before = len(driver.outcomes["0"].tokens)
        driver.step()
        assert len(driver.outcomes["0"].tokens) == before + 1
    assert before == 10, "three tokens a step beside the other's one"


def test_a_small_client_is_not_starved_by_a_hungry_one() -> None:
    model = HashModel(4, stop_share=0)
    driver = Driver(model, SchedulerSettings(fair_after_s=0.05))
    for number in range(40):
        driver.submit(request(number, "hungry", max_tokens=50))
    for _ in range(3):
        driver.step()
    driver.submit(request(100, "small", max_tokens=5))
    driver.run(lambda: driver.outcomes["100"].last is not None)
    assert driver.now < 0.2
    driver.run()
    for number in range(40):
        assert driver.outcomes[str(number)].tokens == alone(request(number, max_tokens=50), model)
    assert driver.scheduler.counts.evictions == 1


def test_nobody_is_evicted_for_a_stream_that_would_not_fit_then_either() -> None:
    """The wide one comes first after an eviction, and would be evicted again and again."""
    driver = Driver(HashModel(6, stop_share=0), SchedulerSettings(kv_bytes=1700, fair_after_s=0.0))
    for number in range(2):
        driver.submit(request(number, "wide", max_tokens=20, beams=3))
    driver.step()
    driver.submit(Generate("2", "late", hidden(2, 900), (1,), options=GenerationOptions(max_tokens=60)))
    driver.run(most=500)
    assert [len(driver.outcomes[key].tokens) for key in "012"] == [20, 20, 60]
    assert driver.scheduler.counts.evictions < 10


def test_clients_get_equal_shares_whatever_they_ask_for() -> None:
    driver = Driver(HashModel(4, stop_share=0), SchedulerSettings(fair_after_s=0.0))
    for number in range(60):
        driver.submit(request(number, "a" if number % 3 else "b", max_tokens=10 if number % 3 else 30))
    driver.run(lambda: driver.now > 2.0)
    told = {"a": 0, "b": 0}
    for key, outcome in driver.outcomes.items():
        told["a" if int(key) % 3 else "b"] += len(outcome.tokens)
    assert abs(told["a"] - told["b"]) < 60, told


def test_a_stream_that_can_never_fit_is_refused_at_once() -> None:
    driver = Driver(HashModel(4), SchedulerSettings(kv_bytes=300))
    outcome = driver.submit(request(0, max_tokens=40))
    assert isinstance(outcome.last, Refused)
    assert (outcome.last.code, outcome.last.reason) == (
        "too-large",
        "it may need 413 bytes of cache, and the service has 300; ask for fewer tokens or give shorter input, or give "
        "the service more (--kv-mb)",
    )


def test_the_queue_has_an_end_and_says_when_to_come_again() -> None:
    driver = Driver(HashModel(1, stop_share=0), SchedulerSettings(max_waiting=3, max_waiting_of_client=2))
    driver.submit(request(0, max_tokens=10))
    driver.run(lambda: driver.outcomes["0"].last is not None)
    for number, client in enumerate("aabbcc", 1):
        driver.submit(request(number, client, max_tokens=10))
    refused = {key: o.last for key, o in driver.outcomes.items() if isinstance(o.last, Refused)}
    assert set(refused) == {"4", "5", "6"}
    assert all(each.code == "busy" and each.retry_after_s > 0 for each in refused.values())
    driver.run()
    late = replace(request(9), deadline=driver.now + 100)
    assert driver.submit(late).last is None


def test_many_may_come_at_once_while_there_are_slots() -> None:
    driver = Driver(HashModel(8, stop_share=0), SchedulerSettings(max_wait_s=0.5))
    driver.submit(request(0, max_tokens=60))
    driver.run()
    for number in range(1, 11):
        driver.submit(request(number, max_tokens=60))
        assert driver.scheduler.expected_wait_s("a") == pytest.approx(0 if number < 8 else 0.6 / 8 * (number - 7))
    driver.run()
    assert all(isinstance(outcome.last, Tokens) for outcome in driver.outcomes.values())


def test_a_stream_that_would_wait_beyond_its_deadline_is_refused_now() -> None:
    driver = Driver(HashModel(1, stop_share=0))
    driver.submit(request(0, max_tokens=40))
    driver.run()
    driver.submit(request(1, max_tokens=40))
    driver.step()
    outcome = driver.submit(replace(request(2), deadline=driver.now + 0.2))
    assert isinstance(outcome.last, Refused)
    assert outcome.last.code == "busy"
    assert 0.3 < outcome.last.retry_after_s < 0.5


def test_deadlines() -> None:
    driver = Driver(HashModel(1, stop_share=0))
    driver.submit(request(0, max_tokens=40, deadline_s=0.055))
    driver.submit(request(1, deadline_s=0.03))
    driver.run()
    first, second = (driver.outcomes[key].last for key in "01")
    assert isinstance(first, Tokens)
    assert (first.reason, len(driver.outcomes["0"].tokens)) == ("deadline", 6)
    assert isinstance(second, Refused)
    assert second.code == "deadline"


def test_draining_hands_back_those_that_wait_and_finishes_the_others() -> None:
    driver = Driver(HashModel(1, stop_share=0))
    driver.submit(request(0, max_tokens=5))
    driver.step()
    driver.submit(request(1))
    driver.hear(driver.scheduler.drain())
    assert isinstance(driver.submit(request(2)).last, Refused)
    driver.run()
    assert [getattr(driver.outcomes[key].last, "code", "done") for key in "012"] == ["done", "drain", "drain"]
    assert len(driver.outcomes["0"].tokens) == 5


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (Generate("0", "a", None), "expected hidden states, came none"),
        (Generate("0", "a", hidden(0, width=5)), r"expected hidden states \[1, frames, 2\], came \[1, 3, 5\]"),
        (Generate("0", "a", {"hidden": np.full((1, 2, 2), np.nan, np.float32)}), "no finite numbers"),
        (Generate("0", "a", hidden(0), (32,)), "expected tokens from 0 to 31, came 32"),
        (Generate("0", "a", hidden(0), tuple([1] * 65)), "expected at most 64 tokens, came 65"),
        (Generate("0", "a", hidden(0), (1,), 2), "2 of 1 tokens cannot have been generated"),
        (Generate("0", "a", hidden(0), options=GenerationOptions(beams=5)), "expected at most 4 beams"),
    ],
)
def test_streams_that_cannot_be(asked: Generate, reason: str) -> None:
    last = Driver(HashModel(4)).submit(asked).last
    assert isinstance(last, Refused)
    assert last.code == "bad-input"
    assert reason.replace("\\", "") in last.reason


def test_no_more_tokens_than_the_input_is_long() -> None:
    facts = tiny_facts(tokens_per_s=2.0)
    driver = Driver(HashModel(2, facts, stop_share=0))
    driver.submit(request(0, frames=3))
    driver.submit(replace(request(1, frames=3), input_s=1.0))
    driver.run()
    assert [len(driver.outcomes[key].tokens) for key in "01"] == [6, 2]


def test_a_stream_that_was_complete_already_ends_at_once() -> None:
    driver = Driver(HashModel(2))
    outcome = driver.submit(Generate("0", "a", hidden(0), (1, 5, 6), 2, GenerationOptions(max_tokens=2)))
    assert outcome.last == Tokens("0", 2, (), True, "length")


def test_a_name_that_is_taken_is_refused_and_the_stream_goes_on() -> None:
    driver = Driver(HashModel(2, stop_share=0))
    driver.submit(request(0, max_tokens=3))
    (refused,) = driver.scheduler.submit(request(0), 0.0)
    assert isinstance(refused, Refused)
    driver.run()
    assert len(driver.outcomes["0"].tokens) == 3


def rows(stream_id: str, position: int, count: int, generated: int = 0) -> Generate:
    """What the earlier part of a split program gives for some positions."""
    values = np.arange(position, position + count, dtype=np.float32)
    return Generate(stream_id, "a", None, (), generated, rows=np.stack([values, values], 1), position=position)


def test_rows_of_a_program_split_between_its_layers() -> None:
    facts = tiny_facts(kind="decoder-only", input="text")
    driver = Driver(HashModel(2, facts, stop_share=0), SchedulerSettings(step_tokens=4))
    token = list[tuple[int, ...]]()
    for position, count in ((0, 6), (6, 1), (7, 1)):
        outcome = driver.submit(rows("0", position, count, len(token)))
        driver.run()
        assert isinstance(outcome.last, Tokens)
        assert outcome.last.reason == ""
        token.append(outcome.last.tokens)
    assert len(driver.scheduler.in_state(State.PARKED)) == 1
    again = driver.submit(rows("1", 0, 8, 2))
    driver.run()
    assert again.tokens == [*token[2]], "all rows at once give the same"
    outcome = driver.submit(rows("0", 9, 1, 3))
    assert isinstance(outcome.last, Refused)
    assert outcome.last.code == "no-state"
    outcome = driver.submit(rows("2", 3, 1))
    assert isinstance(outcome.last, Refused)
    assert outcome.last.reason == "0 of 3 rows are here; send all again"


def test_parked_streams_make_way_and_are_forgotten_in_time() -> None:
    facts = tiny_facts(kind="decoder-only", input="text")
    driver = Driver(HashModel(2, facts, stop_share=0), SchedulerSettings(park_s=1.0))
    for stream_id in "012":
        driver.submit(rows(stream_id, 0, 2))
        driver.run()
        driver.now += 0.1
    assert [each.id for each in driver.scheduler.in_state(State.PARKED)] == ["1", "2"]
    driver.now += 0.85
    driver.step()
    assert [each.id for each in driver.scheduler.in_state(State.PARKED)] == ["2"]
    driver.now += 1
    driver.step()
    driver.step()
    assert driver.model.open_slots == 0


def fail_once(driver: Driver) -> None:
    driver.model.fails = lambda _: True
    driver.step()
    driver.model.fails = lambda _: False


def test_after_a_failure_streams_step_alone_once_and_then_together_again() -> None:
    driver = Driver(HashModel(4, stop_share=0))
    for number in range(3):
        driver.submit(request(number, max_tokens=20))
    driver.step()
    fail_once(driver)
    driver.run()
    assert driver.scheduler.counts.batches == {1: 3, 3: 19}
    assert all(
        outcome.tokens == alone(request(int(key), max_tokens=20), driver.model)
        for key, outcome in driver.outcomes.items()
    )


def test_a_stream_whose_steps_fail_again_and_again_is_given_up() -> None:
    driver = Driver(HashModel(4, stop_share=0))
    for number in range(2):
        driver.submit(request(number, max_tokens=40))
    for _ in range(4):
        for _ in range(5):
            driver.step()
        fail_once(driver)
    assert [getattr(driver.outcomes[key].last, "code", None) for key in "01"] == ["broken", "broken"]
