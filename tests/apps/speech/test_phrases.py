"""Phrases between times, as openai-whisper cuts them, and the words in them."""

from hypothesis import given
from hypothesis import strategies as st

from flagsplit.apps.speech.phrases import Made, phrases_of
from flagsplit.apps.speech.quality import Quality, compression_ratio
from flagsplit.apps.speech.subtitles import cues
from flagsplit.apps.speech.words import Phrase, timed_in
from flagsplit.runtime.generation.testing import tiny_facts

FIRST = 16
FACTS = tiny_facts(first_timestamp_token=FIRST, timestamp_s=0.5, vocabulary=80)
SECONDS = 20.0


@st.composite
def grammatical(draw: st.DrawFn) -> list[int]:
    """Tokens as the rules of timestamps let a model make them, cut off anywhere."""
    at = draw(st.integers(0, 3))
    found = [FIRST + at]
    for _ in range(draw(st.integers(0, 4))):
        found += draw(st.lists(st.integers(2, 9), min_size=1, max_size=4))
        at += draw(st.integers(1, 6))
        found.append(FIRST + at)
        if draw(st.booleans()):
            at += draw(st.integers(0, 2))
            found.append(FIRST + at)
        else:
            break
    return found[: draw(st.integers(1, len(found)))]


def published(tokens: list[int]) -> tuple[list[tuple[float, float, list[int]]], float | None]:
    """The part of `transcribe` in openai-whisper that makes segments: those with text, and where it goes on."""
    is_time = [token >= FIRST for token in tokens]
    single_timestamp_ending = is_time[-2:] == [False, True]
    consecutive = [at + 1 for at in range(len(tokens) - 1) if is_time[at] and is_time[at + 1]]
    segments, seek = [], None
    if consecutive:
        slices = [*consecutive, len(tokens)] if single_timestamp_ending else consecutive
        last_slice = 0
        for current_slice in slices:
            sliced = tokens[last_slice:current_slice]
            segments.append(((sliced[0] - FIRST) * 0.5, (sliced[-1] - FIRST) * 0.5, sliced))
            last_slice = current_slice
        if not single_timestamp_ending:
            seek = (tokens[last_slice - 1] - FIRST) * 0.5
    else:
        times = [token for token in tokens if token >= FIRST]
        duration = (times[-1] - FIRST) * 0.5 if times and times[-1] != FIRST else SECONDS
        segments.append((0.0, duration, tokens))
    found = [(start, end, [token for token in part if token < FIRST]) for start, end, part in segments]
    return [each for each in found if each[2]], seek


@given(grammatical())
def test_phrases_are_the_published_ones(tokens: list[int]) -> None:
    made: list[Made] = [(token, "phone") for token in tokens]
    found, rest = phrases_of(made, FACTS, SECONDS)
    wanted, seek = published(tokens)
    shown = [(each.start_s, each.end_s, [token for token, _ in each.made]) for each in found if each.made]
    if len(wanted) == 1 and seek is None and rest is None and wanted[0][0] == 0.0:
        # Where no phrase follows another, theirs begins with the window and ours with its first time.
        wanted = [((tokens[0] - FIRST) * 0.5, *wanted[0][1:])]
    assert shown == wanted
    assert (None if rest is None else rest.start_s) == seek


def test_times_beyond_the_sound_are_its_end() -> None:
    (phrase,), rest = phrases_of([(FIRST + 2, "phone"), (5, "cloud"), (FIRST + 60, "cloud")], FACTS, 7.0)
    assert (phrase.start_s, phrase.end_s, phrase.made, rest) == (1.0, 7.0, ((5, "cloud"),), None)


QUALITY = Quality(0.0, -0.2, 0.01, 1.1)


def test_words_lie_in_their_phrase() -> None:
    phrase = Phrase(1.0, 5.0, 4, QUALITY)
    words = timed_in(phrase, [("Ever", "phone"), ("tried,", "phone"), ("ever", "phone"), ("failed.", "phone")], SPEECH)
    assert (words[0].start_s, words[-1].end_s) == (1.0, 5.0)
    assert (words[1].end_s, words[2].start_s) == (2.0, 3.0)
    assert {word.phrase for word in words} == {phrase}
    (word,) = timed_in(Phrase(6.0, 8.0, 1, QUALITY), [("Hm.", "phone")], SPEECH)
    assert (word.start_s, word.end_s) == (6.0, 8.0)


SPEECH = [(0.5, 2.0), (3.0, 4.5)]


def test_a_phrase_is_a_cue_or_some_of_like_length() -> None:
    short = timed_in(Phrase(0.0, 3.0, 2, QUALITY), [(word, "phone") for word in "Hm. Yes.".split()], [])
    text = "that some of its noisiest authorities insisted on its being received for good or for evil, evil"
    long = timed_in(Phrase(3.0, 9.0, 9, QUALITY), [(word, "phone") for word in text.split()], [(3.5, 4.0), (7.0, 8.5)])
    found = cues([*short, *long])
    assert [cue.text for cue in found] == [
        "Hm. Yes.",
        "that some of its noisiest authorities insisted",
        "on its being received for good or for evil, evil",
    ]
    assert [found[0].start_s, found[0].end_s, found[1].start_s, found[2].end_s] == [0.0, 3.0, 3.0, 9.0]


def test_text_that_goes_in_circles() -> None:
    assert compression_ratio(" you " * 40) > 2.4
    assert compression_ratio("It was the best of times, it was the worst of times.") < 2.4
    assert compression_ratio("") == 0
