"""From sound to words: each word once, in order, however the sound is cut, and live before the window ends."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.apps.speech.scripted import Detector, Hearer, Said, script, sound

from flagsplit.apps.speech.joiner import Joiner
from flagsplit.apps.speech.transcriber import NewWord, Segment, Transcriber
from flagsplit.apps.speech.vad import RATE_HZ
from flagsplit.apps.speech.windows import WindowRules
from flagsplit.apps.speech.words import Word
from flagsplit.errors import ConfigError

RULES = WindowRules(max_s=10.0, overlap_s=3.0, target_s=5.0)


def events(said: list[Said], *, live: bool = False, max_input_s: float = 10.0) -> list[NewWord | Segment]:
    hearer = Hearer(said, max_input_s)
    transcriber = Transcriber(hearer, Detector(), RULES, live=live, clock=lambda: 0.0)
    samples = sound(said)
    rng = random.Random(len(samples))
    blocks, at = [], 0
    while at < len(samples):
        size = rng.choice([1, 100, 512, 5_000])
        blocks.append(samples[at : at + size])
        at += size
    return list(transcriber.events(blocks))


def check(found: list[NewWord | Segment], said: list[Said], pause_s: float = 0.0) -> None:
    """Times are estimated: a word may be put on the wrong side of a pause."""
    wanted = [word.text for word in said]
    words = [word for event in found if isinstance(event, Segment) for word in event.words]
    assert [event.text for event in found if isinstance(event, NewWord)] == wanted
    assert [word.text for word in words] == wanted
    assert {word.where for word in words} <= {"phone"}
    for word, truth in zip(words, said, strict=True):
        assert word.start_s == pytest.approx(truth.start / RATE_HZ, abs=1.0 + pause_s)


@pytest.mark.parametrize("live", [False, True])
@settings(deadline=None, max_examples=15)
@given(data=st.data())
def test_each_word_once_in_order(live: bool, data: st.DataObject) -> None:
    counts = data.draw(st.lists(st.integers(1, 60), min_size=1, max_size=4))
    pause_s = data.draw(st.floats(0.05, 3))
    word_s = data.draw(st.floats(0.25, 0.6))
    names = iter(range(1000))
    said = script([[f"w{next(names):03}" for _ in range(count)] for count in counts], word_s, pause_s)
    check(events(said, live=live), said, pause_s)


def test_a_refrain_over_several_windows() -> None:
    text = " ".join(
        f"it was the {a} of {b}" for a, b in (("best", "times"), ("age", "wisdom"), ("epoch", "belief")) * 8
    )
    said = script([text.split()], 0.3, 0.0)
    found = events(said)
    assert sum(isinstance(event, Segment) for event in found) > 3
    check(found, said)


def test_words_come_before_their_window_ends() -> None:
    said = script([[f"w{i}" for i in range(20)]], 0.4, 0.0)
    transcriber = Transcriber(Hearer(said, 10.0), Detector(), RULES, live=True, clock=lambda: 0.0)
    heard_s = {}
    taken = 0

    def blocks() -> object:
        nonlocal taken
        for block in np.array_split(sound(said), 200):
            taken += len(block)
            yield block

    for event in transcriber.events(blocks()):  # type: ignore[arg-type]
        if isinstance(event, NewWord):
            heard_s[event.text] = taken / RATE_HZ
    late = [heard_s[word.text] - word.end / RATE_HZ for word in said[:-3]]
    assert max(late) < 2.5


def test_silence() -> None:
    assert events([]) == []


def test_a_recognizer_of_short_sounds() -> None:
    said = script([[f"w{i}" for i in range(40)]], 0.4, 0.0)
    check(events(said, max_input_s=6.0), said)


def test_another_rate_is_refused() -> None:
    hearer = Hearer([], 10.0)
    hearer.rate_hz = 8_000
    with pytest.raises(ConfigError, match="16000 Hz"):
        Transcriber(hearer, Detector())


def words(text: str, from_s: float = 0.0) -> list[Word]:
    return [Word(word, from_s + i * 0.5, from_s + (i + 1) * 0.5, "phone") for i, word in enumerate(text.split())]


def texts(found: list[Word]) -> list[str]:
    return [word.text for word in found]


def test_two_runs_agree() -> None:
    joiner = Joiner()
    assert joiner.partial(words("it was"), None) == []
    assert texts(joiner.partial(words("It was the best"), None)) == ["It", "was"]
    assert texts(joiner.partial(words("it wars the best of"), None)) == ["the", "best"]
    fresh, certain = joiner.final(words("It was the best of times."), None, None)
    assert texts(fresh) == ["of", "times."]
    assert texts(certain) == ["It", "was", "the", "best", "of", "times."]


def test_what_was_given_is_not_taken_back() -> None:
    joiner = Joiner()
    joiner.partial(words("fare again fare"), None)
    assert texts(joiner.partial(words("fare again fare better"), None)) == ["fare", "again", "fare"]
    fresh, certain = joiner.final(words("fail again, fail better now"), None, None)
    assert texts(fresh) == ["better", "now"]
    assert texts(certain) == ["fare", "again", "fare", "better", "now"]


def test_words_given_beyond_a_cut_do_not_come_twice() -> None:
    """A window is full and ends at a pause some words ago."""
    joiner = Joiner()
    joiner.partial(words("a b c d e"), None)
    joiner.partial(words("a b c d e f"), None)
    fresh, certain = joiner.final(words("a b c"), None, is_early=True)
    assert (fresh, texts(certain)) == ([], ["a", "b", "c"])
    assert joiner.partial(words("d e f g", 1.5), None) == []
    fresh, certain = joiner.final(words("d e f g", 1.5), None)
    assert texts(fresh) == ["f", "g"]
    assert texts(certain) == ["d", "e", "f", "g"]


def test_words_given_in_the_shared_sound_do_not_come_twice() -> None:
    """The window before was heard live up to its end; the next one has its last words again."""
    joiner = Joiner()
    before = words("a b c d e f g h i j k l")
    joiner.partial(before, None)
    joiner.partial(before, None)
    assert joiner.final(before, None, 3.0) == ([], before)
    shared = (3.0, 6.0)
    after = words("g h i j k l m n", 3.0)
    assert texts(joiner.partial(after, shared)) == []
    assert texts(joiner.partial([*after, *words("o", 7.0)], shared)) == ["m", "n"]
    fresh, certain = joiner.final([*after, *words("o p", 7.0)], shared, None)
    assert texts(fresh) == ["o", "p"]
    assert texts(certain) == ["m", "n", "o", "p"]
