"""Subtitles: what is shown can be read, in the form that players take."""

import re
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from flagsplit.apps.speech.subtitles import clock_text, cues, subtitles
from flagsplit.apps.speech.words import Word


def spoken(text: str, word_s: float = 0.4, from_s: float = 0.0) -> list[Word]:
    return [Word(word, from_s + i * word_s, from_s + (i + 1) * word_s, "phone") for i, word in enumerate(text.split())]


def test_srt() -> None:
    words = spoken("Ever tried.", from_s=3_599.0) + spoken("Fail better & <again>.", from_s=3_601.5)
    assert subtitles(words, "srt") == (
        "1\n00:59:59,000 --> 00:59:59,800\nEver tried.\n\n2\n01:00:01,500 --> 01:00:03,100\nFail better & <again>.\n\n"
    )


def test_times_for_people() -> None:
    times = [0.04, 59.96, 3_599.96, 7_190.4]
    assert [clock_text(each) for each in times] == ["0:00:00.0", "0:01:00.0", "1:00:00.0", "1:59:50.4"]


def test_vtt() -> None:
    assert subtitles(spoken("Fail & <again>."), "vtt") == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.200\nFail &amp; &lt;again&gt;.\n\n"
    )
    assert subtitles([], "vtt") == "WEBVTT\n\n"
    assert subtitles([], "srt") == ""


def test_a_sentence_ends_a_cue() -> None:
    words = spoken("It was the best of times in a way. It was the worst of times.", 0.2)
    assert [cue.text for cue in cues(words)] == ["It was the best of times in a way.", "It was the worst of times."]


@given(st.lists(st.text("abcdefgh.", min_size=1, max_size=12), max_size=60), st.floats(0.1, 2))
def test_every_word_is_shown_once_and_can_be_read(texts: list[str], word_s: float) -> None:
    found = cues(spoken(" ".join(texts), word_s))
    assert " ".join(cue.text for cue in found) == " ".join(texts)
    for cue, following in pairwise(found):
        assert cue.end_s <= following.start_s
    assert all(len(cue.text) <= 84 and (cue.end_s - cue.start_s <= 7 or " " not in cue.text) for cue in found)
    lines = [line for line in subtitles(spoken(" ".join(texts), word_s), "srt").splitlines() if line]
    assert all(re.fullmatch(r"[\d:,]+ --> [\d:,]+", line) or len(line) <= 60 for line in lines)
