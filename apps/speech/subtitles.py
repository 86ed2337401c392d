"""Words with times as subtitles: SubRip (.srt) and WebVTT (.vtt)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Final, Literal

from flagsplit.apps.speech.words import Word

SubtitleFormat = Literal["srt", "vtt"]

# What fits on a screen in two lines and is read in time; a pause or the end of a sentence is a good place to change.
_LETTERS_MAX: Final = 84
_SECONDS_MAX: Final = 7.0
_PAUSE_S: Final = 0.6
_SENTENCE_LETTERS: Final = 30
_LINE_LETTERS: Final = 42


@dataclass(frozen=True)
class Cue:
    """What is shown at once, with when, in seconds."""

    start_s: float
    end_s: float
    text: str


def cues(words: Sequence[Word]) -> list[Cue]:
    """Words in pieces that can be read while they are shown."""
    found = list[list[Word]]()
    for phrase, group in groupby(words, lambda word: word.phrase):
        said = list(group)
        found += _as_fits(said) if phrase is None else _evenly(said)
    return [Cue(part[0].start_s, part[-1].end_s, " ".join(word.text for word in part)) for part in found]


def _evenly(words: Sequence[Word]) -> list[list[Word]]:
    """A phrase in as few pieces as can be read, all about as long."""
    letters = list(accumulate(len(word.text) + 1 for word in words))
    seconds = words[-1].end_s - words[0].start_s
    count = max(math.ceil(letters[-1] / _LETTERS_MAX), math.ceil(seconds / _SECONDS_MAX))
    numbered = zip(words, letters, strict=True)
    pieces = groupby(numbered, lambda each: int((each[1] - len(each[0].text) / 2 - 1) * count / letters[-1]))
    return [[word for word, _ in piece] for _, piece in pieces]


def _as_fits(words: Sequence[Word]) -> list[list[Word]]:
    found: list[list[Word]] = []
    for word in words:
        if found and not _is_full(found[-1], word):
            found[-1].append(word)
        else:
            found.append([word])
    return found


def _is_full(part: Sequence[Word], word: Word) -> bool:
    letters = sum(len(each.text) + 1 for each in part)
    ends_sentence = part[-1].text[-1:] in ".!?\u2026" and letters >= _SENTENCE_LETTERS
    return (
        ends_sentence
        or letters + len(word.text) > _LETTERS_MAX
        or word.end_s - part[0].start_s > _SECONDS_MAX
        or word.start_s - part[-1].end_s > _PAUSE_S
    )


def subtitles(words: Sequence[Word], form: SubtitleFormat) -> str:
    """A whole file of subtitles."""
    return file_start(form) + "".join(cue_text(number, cue, form) for number, cue in enumerate(cues(words), 1))


def file_start(form: SubtitleFormat) -> str:
    """What stands before the first cue."""
    return "WEBVTT\n\n" if form == "vtt" else ""


def cue_text(number: int, cue: Cue, form: SubtitleFormat) -> str:
    """A cue as it stands in a file; the first one has number 1."""
    text = "\n".join(_lines(cue.text))
    if form == "vtt":
        # A text in WebVTT is markup.
        text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        return f"{_time(cue.start_s, '.')} --> {_time(cue.end_s, '.')}\n{text}\n\n"
    return f"{number}\n{_time(cue.start_s, ',')} --> {_time(cue.end_s, ',')}\n{text}\n\n"


def clock_text(seconds: float) -> str:
    """A time for people, to a tenth of a second."""
    tenths = round(seconds * 10)
    return f"{tenths // 36_000}:{tenths // 600 % 60:02}:{tenths // 10 % 60:02}.{tenths % 10}"


def _lines(text: str) -> Iterator[str]:
    """One line, or two that are about as long."""
    spaces = [at for at, letter in enumerate(text) if letter == " "]
    if len(text) <= _LINE_LETTERS or not spaces:
        yield text
        return
    at = min(spaces, key=lambda space: abs(space - len(text) / 2))
    yield text[:at]
    yield text[at + 1 :]


def _time(seconds: float, point: str) -> str:
    ms = max(round(seconds * 1000), 0)
    return f"{ms // 3_600_000:02}:{ms // 60_000 % 60:02}:{ms // 1000 % 60:02}{point}{ms % 1000:03}"
