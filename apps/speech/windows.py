"""Cut sound into windows that a recognizer takes: at pauses where there are any, else overlapping, silence left out.

`Windows` is a pure machine: blocks of sound with "speech or not" go in, windows come out as soon as they are decided,
and it holds no more sound than one window. A window ends

- at a pause, the sooner the longer the window is already;
- when it is full, at the longest pause in its later part, even if that is short: the later, the more a pause counts;
- without such a pause, where it is full; the next one then begins `overlap_s` earlier, so that each word is whole in
  one of the two. `merge.py` joins their words.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from flagsplit.errors import ConfigError

Samples = NDArray[np.float32]
Span = tuple[int, int]

# The part of a full window, from its beginning, in which it is not cut: two short windows are worse than one.
_KEPT_SHARE: Final = 0.4


@dataclass(frozen=True)
class WindowRules:
    """When a window ends, in seconds.

    Attributes:
        max_s: the longest window.
        overlap_s: what two windows share if there was no pause between them.
        long_pause_s: silence that ends a window of any length.
        pause_s: silence that ends a window of at least `target_s`.
        target_s: see `pause_s`.
        short_pause_s: silence that is good enough for cutting a full window.
        pad_s: silence that is kept before and after speech.
        min_speech_s: less speech than this is noise, and no window.
    """

    max_s: float = 30.0
    overlap_s: float = 3.0
    long_pause_s: float = 2.0
    pause_s: float = 0.4
    target_s: float = 15.0
    short_pause_s: float = 0.1
    pad_s: float = 0.25
    min_speech_s: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < 2 * self.overlap_s <= self.max_s:
            raise ConfigError(f"windows of {self.max_s:g} s cannot overlap by {self.overlap_s:g} s; at most by half")

    def within(self, max_s: float) -> WindowRules:
        """The same for windows of at most so many seconds.

        Those of a recognizer that takes little at once are filled: what fits is not cut, since it hears best in
        context, and one of fixed size costs as much half empty.
        """
        longest = min(self.max_s, max_s)
        shorter = {"overlap_s": min(self.overlap_s, longest / 2), "target_s": min(self.target_s, longest)}
        return replace(self, max_s=longest, **shorter)


@dataclass(frozen=True)
class Window:
    """A piece of the sound with speech in it; positions count samples from the beginning of the sound.

    Attributes:
        index: 0 for the first window.
        start: position of its first sample.
        samples: the sound, mono float32.
        speech: where in it somebody speaks, as [start, end) positions.
        overlap: how many of its first samples are also the last ones of the window before.
        goes_on: whether the next window overlaps it.
    """

    index: int
    start: int
    samples: Samples
    speech: tuple[Span, ...]
    overlap: int
    goes_on: bool

    @property
    def end(self) -> int:
        """Position after its last sample."""
        return self.start + len(self.samples)


class Windows:
    """Cuts one stream of sound."""

    def __init__(self, rules: WindowRules, rate_hz: int) -> None:
        self._rules, self._rate_hz = rules, rate_hz
        self._blocks: list[Samples] = []
        self._held_from = 0
        self._now = 0
        self._overlap = 0
        self._speech: list[Span] = []
        self._count = 0

    def push(self, block: Samples, is_speech: bool) -> Iterator[Window]:
        """Take the next block, shorter than half a window; give the windows that end by it: none or one."""
        if self._speech and self._now + len(block) - self._start() > self._samples(self._rules.max_s):
            yield from self._cut_full()
        self._blocks.append(block)
        if is_speech:
            self._add_speech(self._now, self._now + len(block))
        self._now += len(block)
        if not self._speech:
            self._drop_before(self._now - self._samples(self._rules.pad_s))
            self._overlap = 0
        elif self._is_over():
            yield from self._close()

    def finish(self) -> Iterator[Window]:
        """The last window, if anything is left that has speech in it."""
        if self._speech:
            yield from self._close()
            self._speech = []

    @property
    def still_open(self) -> Window | None:
        """The window that has not ended yet, as far as it goes; none while nobody spoke."""
        if not self._speech:
            return None
        start = self._start()
        return Window(self._count, start, self._cut(start, self._now), tuple(self._speech), self._overlap, False)

    def _samples(self, seconds: float) -> int:
        return round(seconds * self._rate_hz)

    def _start(self) -> int:
        if self._overlap:
            return self._held_from
        return max(self._speech[0][0] - self._samples(self._rules.pad_s), self._held_from)

    def _add_speech(self, start: int, end: int) -> None:
        if self._speech and self._speech[-1][1] == start:
            start = self._speech.pop()[0]
        self._speech.append((start, end))

    def _is_over(self) -> bool:
        silence = self._now - self._speech[-1][1]
        if silence >= self._samples(self._rules.long_pause_s):
            return True
        is_long = self._now - self._start() >= self._samples(self._rules.target_s)
        return is_long and silence >= self._samples(self._rules.pause_s)

    def _close(self) -> Iterator[Window]:
        """End the window after its last speech."""
        end = min(self._speech[-1][1] + self._samples(self._rules.pad_s), self._now)
        yield from self._emit(end, goes_on=False)
        self._drop_before(max(end, self._now - self._samples(self._rules.pad_s)))

    def _cut_full(self) -> Iterator[Window]:
        start = self._start()
        least = start + int(_KEPT_SHARE * self._samples(self._rules.max_s))
        ends = [*(span[0] for span in self._speech[1:]), self._now]
        pauses = [(stop - end, (end + stop) // 2) for (_, end), stop in zip(self._speech, ends, strict=True)]
        pauses = [(length, at) for length, at in pauses if at >= least]
        longest, at = max(pauses, key=lambda pause: pause[0] * (pause[1] - start), default=(0, 0))
        if longest >= self._samples(self._rules.short_pause_s):
            yield from self._emit(at, goes_on=False)
            self._drop_before(at)
        else:
            yield from self._emit(self._now, goes_on=True)
            self._overlap = self._samples(self._rules.overlap_s)
            self._drop_before(self._now - self._overlap)

    def _emit(self, end: int, *, goes_on: bool) -> Iterator[Window]:
        start = self._start()
        inside = tuple(span for span in self._speech if span[0] < end)
        kept = self._now - self._samples(self._rules.overlap_s) if goes_on else end
        overlap, self._overlap = self._overlap, 0
        if goes_on or overlap or sum(b - a for a, b in inside) >= self._samples(self._rules.min_speech_s):
            yield Window(self._count, start, self._cut(start, end), inside, overlap, goes_on)
            self._count += 1
        self._speech = [(max(a, kept), b) for a, b in self._speech if b > kept]

    def _cut(self, start: int, end: int) -> Samples:
        return np.concatenate(self._blocks)[start - self._held_from : end - self._held_from]

    def _drop_before(self, position: int) -> None:
        if position <= self._held_from:
            return
        held = np.concatenate(self._blocks)[position - self._held_from :]
        self._blocks, self._held_from = [held], position
