"""Windows against a plain account of what must hold of any of them, whatever was said when."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flagsplit.apps.speech.windows import Window, WindowRules, Windows
from flagsplit.errors import ConfigError

RATE_HZ = 100
BLOCK = 10
RULES = WindowRules(max_s=8.0, overlap_s=2.0, target_s=4.0)


def cut(speech: list[bool], rules: WindowRules = RULES) -> list[Window]:
    """Sound whose samples are their positions, so that each window shows which it holds."""
    windows = Windows(rules, RATE_HZ)
    found: list[Window] = []
    for at, is_speech in enumerate(speech):
        found += windows.push(np.arange(at * BLOCK, (at + 1) * BLOCK).astype(np.float32), is_speech)
        window = windows.still_open
        assert window is None or (window.index == len(found) and window.end == (at + 1) * BLOCK)
        assert window is None or len(window.samples) <= rules.max_s * RATE_HZ
    return found + list(windows.finish())


def seconds(*lengths: float) -> list[bool]:
    """Speech and silence in turns."""
    return [at % 2 == 0 for at, length in enumerate(lengths) for _ in range(round(length * RATE_HZ / BLOCK))]


def spans(windows: list[Window]) -> list[tuple[float, float, bool]]:
    return [(window.start / RATE_HZ, window.end / RATE_HZ, window.goes_on) for window in windows]


def test_silence_gives_nothing() -> None:
    assert cut(seconds(0, 100)) == []


def test_a_click_gives_nothing() -> None:
    rules = WindowRules(max_s=8.0, overlap_s=2.0, min_speech_s=0.2)
    assert cut(seconds(0, 3, 0.1, 5), rules) == []
    assert len(cut(seconds(0, 3, 0.2, 5), rules)) == 1


def test_pauses() -> None:
    """Short ones do not end a short window; a long one does; a middling one ends a window that is long enough."""
    assert spans(cut(seconds(0, 1, 1, 0.5, 1, 0.3, 1))) == [(0.75, 4.8, False)]
    assert spans(cut(seconds(1, 2.5, 1))) == [(0, 1.25, False), (3.25, 4.5, False)]
    assert spans(cut(seconds(4, 0.5, 1))) == [(0, 4.25, False), (4.25, 5.5, False)]


def test_a_full_window_is_cut_at_its_longest_pause() -> None:
    assert spans(cut(seconds(2, 0.3, 3, 0.2, 3))) == [(0, 5.4, False), (5.4, 8.5, False)]


def test_of_pauses_in_a_full_window_the_later_counts_more() -> None:
    assert spans(cut(seconds(4, 0.3, 3, 0.2, 3), WindowRules(max_s=8.0, overlap_s=2.0))) == [
        (0, 7.4, False),
        (7.4, 10.5, False),
    ]


@pytest.mark.parametrize("longest_s", [4.0, 8.0, 14.0])
def test_what_a_recognizer_of_short_input_takes_at_once_is_not_cut(longest_s: float) -> None:
    """However many pauses are in it, below the long ones; and what is longer fills windows as far as it can."""
    rules = WindowRules().within(longest_s)
    phrases = [0.6, 0.4] * round(longest_s)
    assert len(cut(seconds(*phrases[:-1]), rules)) == 1
    several = cut(seconds(*phrases, *phrases, *phrases), rules)
    assert len(several) <= 4
    assert all(window.end - window.start > (longest_s - 1.2) * RATE_HZ for window in several[:-1])


def test_without_a_pause_windows_overlap() -> None:
    windows = cut(seconds(15))
    assert spans(windows) == [(0, 8, True), (6, 14, True), (12, 15, False)]
    assert [window.overlap for window in windows] == [0, 200, 200]


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 60)), max_size=30))
def test_what_holds_of_all_windows(runs: list[tuple[bool, int]]) -> None:
    speech = [is_speech for is_speech, count in runs for _ in range(count)]
    windows = cut(speech)
    covered = np.zeros(len(speech) * BLOCK, bool)
    for index, window in enumerate(windows):
        assert window.index == index
        assert 0 < len(window.samples) <= RULES.max_s * RATE_HZ
        np.testing.assert_array_equal(window.samples, np.arange(window.start, window.end))
        assert all(window.start <= start < end <= window.end for start, end in window.speech)
        said = np.zeros(len(covered), bool)
        for start, end in window.speech:
            said[start:end] = True
        np.testing.assert_array_equal(
            said[window.start : window.end], np.repeat(speech, BLOCK)[window.start : window.end]
        )
        covered |= said
        before = windows[index - 1] if index else None
        if before is not None and before.goes_on:
            assert window.overlap == RULES.overlap_s * RATE_HZ == before.end - window.start
        else:
            assert window.overlap == 0
            assert before is None or before.end <= window.start
    assert not (windows and windows[-1].goes_on)
    missed = np.repeat(np.array(speech, bool), BLOCK) & ~covered
    assert not missed.any()


def test_rules_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="at most by half"):
        WindowRules(max_s=4, overlap_s=3)
