"""Beam search against all continuations there are, and against a plain list of candidates."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.runtime.generation.driver import Driver, alone, request

from flagsplit.runtime.generation.beams import BeamSearch
from flagsplit.runtime.generation.options import GenerationOptions
from flagsplit.runtime.generation.sampling import TokenRule
from flagsplit.runtime.generation.sequential import generate
from flagsplit.runtime.generation.testing import HashModel, hidden, tiny_facts

Logits = dict[tuple[int, ...], np.ndarray]
STOP = 0


def tree(seed: int, vocabulary: int, depth: int) -> Logits:
    """Logits after every sequence of tokens that is not too long."""
    random = np.random.default_rng(seed)
    return {
        tokens: random.standard_normal(vocabulary).astype(np.float32) * 2
        for length in range(depth)
        for tokens in itertools.product(range(vocabulary), repeat=length)
    }


def log_chances(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    return wide - math.log(np.exp(wide).sum())


def search(logits: Logits, vocabulary: int, beams: int, limit: int, penalty: float) -> tuple[tuple[int, ...], str]:
    facts = tiny_facts(vocabulary=vocabulary)
    rule = TokenRule.of(facts, GenerationOptions(beams=beams, length_penalty=penalty))
    found = BeamSearch(rule, limit)
    while found.live:
        before = found.live
        parents = found.advance(np.stack([logits[each.tokens] for each in found.live]))
        assert [before[at].tokens for at in parents] == [each.tokens[:-1] for each in found.live]
    return found.best


def score(logits: Logits, tokens: tuple[int, ...], stops: bool, penalty: float) -> float:
    ended = (*tokens, STOP) if stops else tokens
    total = sum(log_chances(logits[ended[:at]])[token] for at, token in enumerate(ended))
    return float(total / max(1, len(tokens)) ** penalty)


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("seed", range(8))
def test_with_beams_for_all_continuations_it_finds_the_best(seed: int, penalty: float) -> None:
    """As many beams as there are continuations, fewer than 17: three tokens, up to three long, have 15."""
    logits = tree(seed, 3, 4)
    every = [
        (score(logits, tokens, stops, penalty), tokens, "stop" if stops else "length")
        for length in range(4)
        for tokens in itertools.product((1, 2), repeat=length)
        for stops in ([True] if length < 3 else [False])
    ]
    assert len(every) == 15
    _, tokens, reason = max(every)
    assert search(logits, 3, 16, 3, penalty) == (tokens, reason)


def plain_search(logits: Logits, vocabulary: int, beams: int, limit: int) -> tuple[tuple[int, ...], str]:
    """Whisper's rules as they are told, on lists."""
    live: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    ended: list[tuple[float, tuple[int, ...]]] = []
    for _ in range(limit):
        grown = [
            (-(total + log_chances(logits[tokens])[token]), at * vocabulary + token, (*tokens, token))
            for at, (total, tokens) in enumerate(live)
            for token in range(vocabulary)
        ]
        live = []
        for minus, _, tokens in sorted(grown):
            if tokens[-1] == STOP:
                ended.append((-minus, tokens[:-1]))
            else:
                live.append((-minus, tokens))
            if len(live) == beams or len(ended) == beams:
                break
        if len(ended) == beams:
            live = []
            break
    marked = [(total / max(1, len(tokens)), tokens, "stop") for total, tokens in ended]
    marked += [(total / len(tokens), tokens, "length") for total, tokens in live[: beams - len(ended)]]
    best = max(marked, key=lambda each: each[0])
    return best[1], best[2]


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10_000), st.integers(3, 5), st.integers(1, 4), st.integers(1, 4))
def test_it_goes_as_a_plain_list_of_candidates(seed: int, vocabulary: int, beams: int, limit: int) -> None:
    logits = tree(seed, vocabulary, limit)
    assert search(logits, vocabulary, beams, limit, 1.0) == plain_search(logits, vocabulary, beams, limit)


def test_slots_follow_their_candidates() -> None:
    """Through a step model that is given only the newest tokens, and copies: the same as from all tokens."""
    facts = tiny_facts(vocabulary=6)
    for number in range(12):
        wanted = GenerationOptions(beams=4, max_tokens=9)
        found = list(generate(HashModel(4, facts), hidden(number), options=wanted))
        rule = TokenRule.of(facts, wanted)
        expected = BeamSearch(rule, 9)
        while expected.live:
            probe = HashModel(1, facts)
            logits = []
            for each in expected.live:
                probe.open(0, hidden(number))
                logits.append(probe.step([0], [np.array([1, *each.tokens], np.int64)])[0])
                probe.close_slot(0)
            # Tokens are hashed one by one, so a prompt put in at once is the same as token by token.
            expected.advance(np.stack(logits))
        assert tuple(found) == expected.best[0]


def test_nothing_left_to_take_ends_it() -> None:
    facts = tiny_facts(vocabulary=3, stop_tokens=(0,), begin_suppressed=(0, 1, 2))
    found = BeamSearch(TokenRule.of(facts, GenerationOptions(beams=2)), 5)
    with np.errstate(invalid="ignore"):
        found.advance(np.zeros((1, 3), np.float32))
    assert found.live == []
    assert found.best == ((), "length")


def test_searches_share_steps_with_streams_that_do_not() -> None:
    driver = Driver(HashModel(8, stop_share=20))
    asked = [request(number, beams=3 if number % 2 else 1, max_tokens=12) for number in range(4)]
    for each in asked:
        driver.submit(each)
    driver.run()
    for each in asked:
        assert driver.outcomes[each.stream_id].tokens == alone(each, driver.model)
