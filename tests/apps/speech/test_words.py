"""Words: how they are compared, when they were said, and the error rate."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flagsplit.apps.speech.wer import WordErrors, word_errors
from flagsplit.apps.speech.words import normalized, timed
from flagsplit.errors import InputError

WORDS = st.lists(st.sampled_from(["a", "b", "c"]), max_size=7)


def test_normalized() -> None:
    text = "It was — the \u201cother way\u201d\u2014in short,, the period's well-known END\u2026 '10' Stra\u00dfe!"
    wanted = "it was the other way in short the period's well known end 10 stra\u00dfe"
    assert normalized(text) == wanted.split()
    assert normalized("don\u2019t") == ["don't"]
    assert normalized(" -- ... ") == []


def test_word_errors() -> None:
    assert word_errors("the cat sat", "the cat sat") == WordErrors(0, 0, 0, 3)
    assert word_errors("the cat sat on the mat", "The hat sat the mat now.") == WordErrors(1, 1, 1, 6)
    assert word_errors("the cat", "").rate == 1
    assert word_errors("", "").rate == 0
    assert word_errors("", "the").rate == float("inf")


def _least(said: tuple[str, ...], heard: tuple[str, ...]) -> int:
    """The definition of the edit distance, word by word."""
    if not said or not heard:
        return len(said) + len(heard)
    if said[0] == heard[0]:
        return _least(said[1:], heard[1:])
    return 1 + min(_least(said[1:], heard[1:]), _least(said[1:], heard), _least(said, heard[1:]))


@given(WORDS, WORDS)
def test_word_errors_are_the_fewest(said: list[str], heard: list[str]) -> None:
    found = word_errors(" ".join(said), " ".join(heard))
    assert found.substitutions + found.insertions + found.deletions == _least(tuple(said), tuple(heard))
    assert len(said) - found.deletions + found.insertions == len(heard)
    assert found.words == len(said)


def test_long_texts() -> None:
    text = " ".join(str(i) for i in range(50_000))
    assert word_errors(text, text + " more") == WordErrors(0, 1, 0, 50_000)
    with pytest.raises(InputError, match="up to 10000 words"):
        word_errors(text, " ".join(str(-i) + "x" for i in range(50_000)))


def test_times() -> None:
    words = timed([("abc", "phone"), ("abcdefg", "cloud"), ("abc", "cloud")], [(1.0, 7.0), (8.0, 14.0)])
    assert [(word.start_s, word.end_s) for word in words] == [(1.0, 4.0), (4.0, 11.0), (11.0, 14.0)]
    assert [word.where for word in words] == ["phone", "cloud", "cloud"]
    assert timed([("abc", ""), ("abc", "")], [(1.0, 2.1), (3.0, 4.0)])[1].start_s == 3.0
    words = timed([("abc", ""), ("abc", "")], [(1.0, 2.0), (3.0, 4.0)])
    assert [(word.start_s, word.end_s) for word in words] == [(1.0, 2.0), (3.0, 4.0)]
    words = timed([(text, "") for text in "No matter, try again.".split()], [(1.0, 2.0), (3.0, 3.8)])
    assert [word.start_s >= 3.0 for word in words] == [False, False, True, True]
    assert timed([], [(1.0, 2.0)]) == []


@given(
    st.lists(st.text("abc", min_size=1, max_size=9), min_size=1, max_size=20),
    st.lists(st.floats(0.01, 5), min_size=2, max_size=12),
)
def test_times_rise(words: list[str], lengths: list[float]) -> None:
    edges = [sum(lengths[:i]) for i in range(len(lengths) + 1)]
    speech = list(zip(edges[::2], edges[1::2], strict=False))
    found = timed([(word, "") for word in words], speech)
    assert [word.text for word in found] == words
    moments = [moment for word in found for moment in (word.start_s, word.end_s)]
    assert moments == sorted(moments)
    assert moments[0] == speech[0][0]
    assert moments[-1] == pytest.approx(speech[-1][1])
