"""Whisper's phrases out of its tokens, by the times between them, as openai-whisper's transcribe.py does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flagsplit.flagir.programs import ProgramFacts

Made = tuple[int, str]
"""A token and where it was made."""


@dataclass(frozen=True)
class TimedTokens:
    """Tokens of text between two times, in seconds from the beginning of the sound that they are of."""

    start_s: float
    end_s: float
    made: tuple[Made, ...]


def phrases_of(
    made: Sequence[Made], facts: ProgramFacts, seconds: float
) -> tuple[list[TimedTokens], TimedTokens | None]:
    """The phrases of a sound.

    Args:
        made: what was made of it under the constraint "timestamps".
        facts: of a program with timestamps.
        seconds: how long the sound is.

    Returns:
        Those that are whole, and, if the model did not come to the end of the sound, what it left open after them: the
        sound from there on is to be recognized anew.
    """
    first = facts.first_timestamp_token
    assert first is not None
    tokens = [token for token, _ in made]
    # A phrase ends after each first of two times in a row, and with a single time at the end.
    ends = [at + 1 for at in range(len(tokens) - 1) if tokens[at] >= first and tokens[at + 1] >= first]
    has_ended = len(tokens) > 1 and tokens[-2] < first <= tokens[-1]

    def time(token: int) -> float:
        return min((token - first) * facts.timestamp_s, seconds)

    def between(start: int, stop: int, end_s: float) -> TimedTokens:
        start_s = time(tokens[start]) if tokens[start : start + 1] and tokens[start] >= first else 0.0
        return TimedTokens(start_s, max(start_s, end_s), tuple(each for each in made[start:stop] if each[0] < first))

    if not ends:
        newest = max((token for token in tokens if token >= first), default=first)
        return [between(0, len(tokens), time(newest) if newest > first else seconds)], None
    if has_ended:
        ends.append(len(tokens))
    starts = [0, *ends[:-1]]
    found = [between(start, end, time(tokens[end - 1])) for start, end in zip(starts, ends, strict=True)]
    if has_ended:
        return found, None
    left = between(ends[-1], len(tokens), seconds)
    return found, TimedTokens(found[-1].end_s, seconds, left.made)
