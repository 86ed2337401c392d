"""A transcript as it comes, event by event, and what is known of it at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from flagsplit.apps.speech.pacing import Pace
from flagsplit.apps.speech.quality import quality_data
from flagsplit.apps.speech.transcriber import NewWord, Segment
from flagsplit.apps.speech.words import Word


@dataclass
class Transcript:
    """What was said.

    Attributes:
        seconds: length of the sound.
        plan: which tier did what.
        crossed_bytes: what was sent to other tiers, before the transport squeezes it; tokens come back.
        notes: what was not as it should be in the file, a line each.
        segments: groups of words, in order.
        took_s: from the first sample to the last word.
        latencies_s: live, for each word how long after its end it came.
    """

    seconds: float = 0.0
    plan: str = ""
    crossed_bytes: int = 0
    notes: tuple[str, ...] = ()
    segments: list[Segment] = field(default_factory=list)
    took_s: float = 0.0
    latencies_s: list[float] = field(default_factory=list)

    @property
    def words(self) -> list[Word]:
        """All words with their times."""
        return [word for segment in self.segments for word in segment.words]

    @property
    def text(self) -> str:
        """All words with spaces between them."""
        return " ".join(word.text for word in self.words)

    @property
    def words_by_tier(self) -> dict[str, int]:
        """How many words each tier made."""
        return dict(Counter(word.where for word in self.words))

    @property
    def _has_phrases(self) -> bool:
        return any(segment.quality is not None for segment in self.segments)

    def follow(self, events: Iterable[NewWord | Segment], pace: Pace | None = None) -> Iterator[NewWord | Segment]:
        """Pass events on and note them down; with `pace`, how late their words are."""
        began = monotonic()
        came_at: list[float] = []
        for event in events:
            if isinstance(event, Segment):
                self.segments.append(event)
                if pace is not None:
                    came, came_at = came_at[: len(event.words)], came_at[len(event.words) :]
                    times = zip(event.words, came, strict=True)
                    self.latencies_s += [at_s - word.end_s for word, at_s in times]
            elif pace is not None:
                came_at.append(pace.late_s(0.0))
            yield event
        self.took_s = monotonic() - began

    def to_data(self) -> dict[str, Any]:
        """For JSON."""
        data: dict[str, Any] = {
            "text": self.text,
            "seconds": round(self.seconds, 3),
            "took_s": round(self.took_s, 3),
            "plan": self.plan,
            "crossed_bytes": self.crossed_bytes,
            "words_by_tier": self.words_by_tier,
            "notes": list(self.notes),
            "times": "segments by the model, words estimated" if self._has_phrases else "estimated",
            "segments": [_segment_data(segment) for segment in self.segments],
        }
        if self.latencies_s:
            data["latency_ms"] = {name: round(value * 1e3) for name, value in self.latency_s().items()}
        return data

    def latency_s(self) -> dict[str, float]:
        """The median and the 95th percentile of the words' latencies."""
        ordered = sorted(self.latencies_s)
        return {name: ordered[int(share * (len(ordered) - 1))] for name, share in (("p50", 0.5), ("p95", 0.95))}


def _segment_data(segment: Segment) -> dict[str, Any]:
    scores = {} if segment.quality is None else quality_data(segment.quality)
    return {
        "start_s": round(segment.words[0].start_s, 3),
        "end_s": round(segment.words[-1].end_s, 3),
        "text": segment.text,
        "tokens": segment.tokens,
        **scores,
        "words": [
            {"text": each.text, "start_s": round(each.start_s, 3), "end_s": round(each.end_s, 3), "where": each.where}
            for each in segment.words
        ],
    }
