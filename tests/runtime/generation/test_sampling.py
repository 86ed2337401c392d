"""Which token comes next, against plain definitions of each rule."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flagsplit.runtime.generation.options import GenerationOptions
from flagsplit.runtime.generation.sampling import TokenRule, choose, draw, uniform
from flagsplit.runtime.generation.testing import tiny_facts


def rule(**options: object) -> TokenRule:
    return TokenRule.of(tiny_facts(), GenerationOptions(**options))  # type: ignore[arg-type]


def some_logits(seed: int, rows: int = 1, size: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, size)).astype(np.float32) * 3


def plain_draw(logits: np.ndarray, options: GenerationOptions, at: float) -> set[int]:
    """The tokens that may be drawn, by definition; `at` 0 and nearly 1 must give some of them."""
    chances = np.exp(logits.astype(np.float64) / options.temperature)
    order = np.argsort(-chances, kind="stable")
    if options.top_k:
        order = order[: options.top_k]
    kept, mass = list[int](), 0.0
    for token in order:
        kept.append(int(token))
        mass += chances[token]
        if (
            options.top_p < 1 and mass >= options.top_p * chances[order].sum()
        ):  # rounding may leave no room for the last
            break
    return set(kept)


@given(
    st.integers(0, 1000), st.integers(0, 40), st.floats(0.05, 1), st.floats(0.1, 5), st.floats(0, 1, exclude_max=True)
)
def test_only_likely_tokens_are_drawn(seed: int, top_k: int, top_p: float, temperature: float, at: float) -> None:
    options = GenerationOptions(temperature=temperature, top_k=top_k, top_p=top_p)
    logits = some_logits(seed)[0]
    assert draw(logits, options, at) in plain_draw(logits, options, at)


@pytest.mark.parametrize("options", [{}, {"top_k": 3}, {"top_p": 0.8}, {"top_k": 5, "top_p": 0.5}])
def test_tokens_come_as_often_as_they_are_likely(options: dict[str, float]) -> None:
    given_options = GenerationOptions(temperature=1.5, **options)  # type: ignore[arg-type]
    logits = some_logits(4)[0]
    allowed = sorted(plain_draw(logits, given_options, 0.5))
    chances = np.exp(logits[allowed].astype(np.float64) / 1.5)
    found = np.array([draw(logits, given_options, (at + 0.5) / 4000) for at in range(4000)])
    assert set(found) <= set(allowed)
    shares = np.array([(found == token).mean() for token in allowed])
    assert np.abs(shares - chances / chances.sum()).max() < 1e-3


@pytest.mark.parametrize("top_p", [0.3, 0.999])
def test_a_large_vocabulary_needs_no_full_sort_and_gives_the_same(top_p: float) -> None:
    logits = some_logits(1, 1, 5000)[0]
    options = GenerationOptions(temperature=1.0, top_p=top_p)
    allowed = plain_draw(logits, options, 0.5)
    drawn = {draw(logits, options, at) for at in np.linspace(0, 1, 300, endpoint=False)}
    assert drawn <= allowed
    assert draw(logits, options, 0.0) == int(np.argmax(logits))


def test_batch_mates_and_order_change_nothing() -> None:
    rules = [rule(), rule(temperature=1.0, seed=5), rule(temperature=0.5, top_k=4, seed=6), rule(suppress=(3, 9))]
    logits = some_logits(7, 4)
    together = choose(logits.copy(), rules, [[7] * row for row in range(4)])
    alone = [choose(logits[[row]], [rules[row]], [[7] * row])[0] for row in range(4)]
    assert together == alone
    assert choose(logits[::-1].copy(), rules[::-1], [[7] * row for row in (3, 2, 1, 0)]) == together[::-1]


def test_random_numbers_depend_on_seed_and_number_alone() -> None:
    found = [uniform(seed, number) for seed in (0, 1, 2**63 - 1) for number in range(200)]
    assert len(set(found)) == len(found)
    assert all(0 <= each < 1 for each in found)
    assert 0.45 < np.mean(found) < 0.55
    assert uniform(1, 7) == uniform(1, 7) == 0.8119842644885967


def test_suppressed_tokens_are_never_taken() -> None:
    facts = tiny_facts(suppressed=(5,), begin_suppressed=(6,))
    logits = np.zeros((1, 32), np.float32)
    logits[0, [5, 6, 7, 8]] = [9, 8, 7, 6]
    rules = [TokenRule.of(facts, GenerationOptions(suppress=(7, 99)))]
    assert choose(logits.copy(), rules, [[]]) == [8]
    assert choose(logits.copy(), rules, [[7]]) == [6]


def test_the_first_of_equals_is_taken() -> None:
    assert choose(np.zeros((1, 32), np.float32), [rule()], [[]]) == [0]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_gives_no_token(value: float) -> None:
    logits = np.full((2, 32), value, np.float32)
    logits[1] = 0
    assert choose(logits, [rule(), rule()], [[], []]) == [-1, 0]
    assert choose(np.full((1, 32), value, np.float32), [rule(temperature=1.0)], [[]]) == [-1]


@pytest.mark.parametrize("temperature", [5e-324, 1e-308, 1e-30])
def test_next_to_no_temperature_takes_the_likeliest(temperature: float) -> None:
    logits = np.array([3, -np.inf, 20, -5], np.float32)
    for options in (GenerationOptions(temperature=temperature), GenerationOptions(temperature=temperature, top_p=0.5)):
        assert draw(logits, options, 0.9) == 2
