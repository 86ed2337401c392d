"""Paced sound, by a clock of the test's own, and the latencies that come of it."""

import numpy as np
import pytest

from flagsplit.apps.speech.pacing import Pace
from flagsplit.apps.speech.transcriber import NewWord, Segment
from flagsplit.apps.speech.transcript import Transcript
from flagsplit.apps.speech.words import Word


class Clock:
    now_s = 50.0

    def read(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now_s += seconds


def test_sound_comes_when_it_is_heard() -> None:
    clock = Clock()
    pace = Pace(1_000, clock.read, clock.sleep)
    samples = np.arange(200, dtype=np.float32)
    taken = 0
    for block in pace.paced([samples[:90], samples[90:]]):
        np.testing.assert_array_equal(block, samples[taken : taken + len(block)])
        taken += len(block)
        assert clock.now_s == pytest.approx(50 + taken / 1_000)
    assert taken == 200
    assert pace.late_s(0.15) == pytest.approx(0.05)


def test_who_is_late_does_not_wait() -> None:
    clock = Clock()
    pace = Pace(1_000, clock.read, clock.sleep)
    blocks = pace.paced([np.zeros(320, np.float32)])
    next(blocks)
    clock.now_s += 0.1
    late_at = clock.now_s
    for _ in range(3):
        next(blocks)
        assert clock.now_s == late_at
    list(blocks)
    assert clock.now_s == pytest.approx(50.32)


def test_latencies() -> None:
    """From the end of a word to when it was given, whenever its segment comes."""
    clock = Clock()
    pace = Pace(1_000, clock.read, clock.sleep)
    next(pace.paced([np.zeros(32, np.float32)]))

    def events() -> object:
        for text, at_s in (("a", 51.0), ("b", 52.0), ("c", 53.0)):
            clock.now_s = at_s
            yield NewWord(text, "phone", 0)
        clock.now_s = 60.0
        words = (Word("a", 0.0, 0.5, "phone"), Word("b", 0.5, 1.0, "phone"), Word("c", 1.0, 1.25, "cloud"))
        yield Segment(0, words, 4)

    result = Transcript(seconds=2.0, plan="split")
    assert len(list(result.follow(events(), pace))) == 4  # type: ignore[arg-type]
    assert result.latencies_s == pytest.approx([0.5, 1.0, 1.75])
    assert result.latency_s() == pytest.approx({"p50": 1.0, "p95": 1.0})
    assert result.text == "a b c"
    assert result.words_by_tier == {"phone": 2, "cloud": 1}
    assert result.to_data()["latency_ms"]["p50"] == 1000
