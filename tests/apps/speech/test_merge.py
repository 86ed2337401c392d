"""Two windows that share some sound, against who knows what was said."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flagsplit.apps.speech.merge import seam
from flagsplit.apps.speech.words import Word

DICKENS = (
    "it was the best of times it was the worst of times it was the age of wisdom it was the age of foolishness "
    "it was the epoch of belief it was the epoch of incredulity it was the season of light"
).split()
WORD_S = 0.35


def merged(before: list[Word], after: list[Word], shared: tuple[float, float]) -> list[str]:
    kept, first = seam(before, after, shared)
    return [word.text for word in before[:kept] + after[first:]]


def at_pace(words: list[str]) -> list[Word]:
    return [Word(word, i * WORD_S, (i + 1) * WORD_S) for i, word in enumerate(words)]


def moved(words: list[Word], by_s: float) -> list[Word]:
    return [Word(word.text, word.start_s + by_s, word.end_s + by_s) for word in words]


def halves(said: list[Word], shared: tuple[float, float]) -> tuple[list[Word], list[Word]]:
    """What two windows hear: the words that are whole in them, and at their borders something else."""
    before = [word for word in said if word.end_s <= shared[1]]
    after = [word for word in said if word.start_s >= shared[0]]
    return before, after


@given(st.integers(0, 2**32), st.floats(-0.8, 0.8), st.booleans(), st.booleans())
def test_distinct_words_are_joined_whatever_the_times(seed: int, off_s: float, cut_end: bool, cut_start: bool) -> None:
    rng = random.Random(seed)
    said = at_pace([f"w{i}" for i in range(60)])
    start = rng.uniform(5, 12)
    shared = (start, start + rng.uniform(2.5, 5))
    before, after = halves(said, shared)
    if cut_end:
        before.append(Word("wo", before[-1].end_s, shared[1]))
    if cut_start:
        after.insert(0, Word("ord", shared[0], after[0].start_s))
    assert merged(before, moved(after, off_s), shared) == [word.text for word in said]


@given(st.floats(2, 9), st.floats(2.5, 5), st.floats(-0.3, 0.3))
def test_refrains_are_not_taken_for_one_another(start: float, length: float, off_s: float) -> None:
    said = at_pace(DICKENS)
    before, after = halves(said, (start, start + length))
    assert merged(before, moved(after, off_s), (start, start + length)) == DICKENS


@pytest.mark.parametrize("heard", ["belief belief", "relief", "bee leaf"])
def test_a_word_heard_otherwise_counts_once(heard: str) -> None:
    """Of a word in the shared sound, what one of the windows heard is taken; the others stay."""
    said = at_pace([f"w{i}" for i in range(30)])
    before, after = halves(said, (4.0, 7.0))
    wrong = [Word(heard, word.start_s, word.end_s) if word.text == "w18" else word for word in after]
    found = merged(before, wrong, (4.0, 7.0))
    assert [word for word in found if word.startswith("w")] == [f"w{i}" for i in range(30) if f"w{i}" in found]
    assert len(found) == 30


def test_case_and_punctuation_do_not_matter() -> None:
    before = at_pace("and so it ended. For go".split())
    after = moved(at_pace("so, It ended for good or evil.".split()), WORD_S)
    assert merged(before, after, (0.3, 2.2))[-4:] == ["for", "good", "or", "evil."]


def test_nothing_alike_is_cut_by_time() -> None:
    before, after = at_pace(["a", "b", "c", "d"]), moved(at_pace(["x", "y", "z"]), 2 * WORD_S)
    assert merged(before, after, (2 * WORD_S, 4 * WORD_S)) == ["a", "b", "c", "y", "z"]


def test_nothing_said() -> None:
    words = at_pace(["a", "b"])
    assert merged([], [], (0, 1)) == []
    assert merged([], moved(words, 5), (4, 5)) == ["a", "b"]
    assert merged(words, [], (4, 5)) == ["a", "b"]
