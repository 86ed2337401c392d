"""How good the text of a window is: whether anybody spoke at all, and whether to try again.

The thresholds, and what they are put against, are those published with Whisper (`decode_with_fallback` in
openai-whisper's transcribe.py).
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

TEMPERATURES: Final = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
"""At which a window is tried, one after the other, until its text is good enough; what the last gives is taken."""
_NO_SPEECH: Final = 0.6
_LEAST_LOGPROB: Final = -1.0
_MOST_COMPRESSION: Final = 2.4


@dataclass(frozen=True)
class Quality:
    """What is known of the text of a window.

    Attributes:
        temperature: at which it was made.
        avg_logprob: log-probability of its tokens, the stop token too, divided by how many these are.
        no_speech_prob: how likely it is that nobody speaks.
        compression_ratio: of its bytes to those that zlib makes of them; high where a text goes round in circles.
    """

    temperature: float
    avg_logprob: float
    no_speech_prob: float
    compression_ratio: float

    @property
    def is_silent(self) -> bool:
        """Whether nobody speaks, and the text is none."""
        return self.no_speech_prob > _NO_SPEECH and not self.avg_logprob > _LEAST_LOGPROB

    @property
    def is_poor(self) -> bool:
        """Whether another temperature may give a better text."""
        is_unlikely = self.avg_logprob < _LEAST_LOGPROB
        return not self.is_silent and (is_unlikely or self.compression_ratio > _MOST_COMPRESSION)


def quality_of(text: str, tokens: int, logprobs: Sequence[float], no_speech: float, temperature: float) -> Quality:
    """The quality of a text.

    Args:
        text: of the tokens.
        tokens: how many, times too, without the stop token.
        logprobs: of each, and of the stop token if there was one.
        no_speech: how likely it is that nobody speaks.
        temperature: at which it was made.
    """
    return Quality(temperature, sum(logprobs) / (tokens + 1), no_speech, compression_ratio(text))


def quality_data(quality: Quality) -> dict[str, float]:
    """For JSON, under the names that Whisper's users know."""
    return {
        "temperature": quality.temperature,
        "avg_logprob": round(quality.avg_logprob, 4),
        "compression_ratio": round(quality.compression_ratio, 3),
        "no_speech_prob": round(quality.no_speech_prob, 4),
    }


def compression_ratio(text: str) -> float:
    """Bytes of a text to those that zlib makes of them."""
    data = text.strip().encode()
    return len(data) / len(zlib.compress(data))
