"""What was heard, in the formats of a transcription: text, JSON with stretches, SubRip (.srt), WebVTT (.vtt)."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flagsplit.apps.decoder_service.gateway_backend import Heard


@dataclass(frozen=True)
class Stretch:
    """Some audio and what was said in it.

    Attributes:
        text: without spaces around it.
        tokens: what it was made of.
        start_s: where it begins.
        end_s: where it ends.
    """

    text: str
    tokens: tuple[int, ...]
    start_s: float
    end_s: float


class Stretches:
    """Puts together what is heard piece by piece."""

    def __init__(self) -> None:
        self._done: list[Stretch] = []
        self._open: list[Heard] = []

    def push(self, heard: Heard) -> None:
        """Some more."""
        self._open.append(heard)
        if heard.ends:
            self._close()

    def finish(self) -> list[Stretch]:
        """All of them: nothing more comes. Where nothing was said, there is none."""
        if self._open:
            self._close()
        return [each for each in self._done if each.text]

    def _close(self) -> None:
        text = "".join(each.text for each in self._open).strip()
        tokens = tuple(token for each in self._open for token in each.tokens)
        self._done.append(Stretch(text, tokens, self._open[0].start_s, self._open[-1].end_s))
        self._open = []


def srt(stretches: Sequence[Stretch]) -> str:
    """SubRip."""
    cues = (
        f"{number}\n{_clock(each.start_s, ',')} --> {_clock(each.end_s, ',')}\n{_in_a_cue(each.text)}\n"
        for number, each in enumerate(stretches, start=1)
    )
    return "\n".join(cues)


def vtt(stretches: Sequence[Stretch]) -> str:
    """WebVTT."""
    cues = (
        f"\n{_clock(each.start_s, '.')} --> {_clock(each.end_s, '.')}\n{_escaped(each.text)}\n" for each in stretches
    )
    return "WEBVTT\n" + "".join(cues)


def verbose(
    text: str, language: str, duration_s: float, temperature: float, stretches: Sequence[Stretch]
) -> dict[str, Any]:
    """The fields of OpenAI's `verbose_json`; what is not known of a stretch is null."""
    return {
        "task": "transcribe",
        "language": language,
        "duration": round(duration_s, 3),
        "text": text,
        "segments": [
            {
                "id": index,
                "seek": round(each.start_s * 100),
                "start": round(each.start_s, 3),
                "end": round(each.end_s, 3),
                "text": each.text,
                "tokens": list(each.tokens),
                "temperature": temperature,
                "avg_logprob": None,
                "compression_ratio": round(_compression(each.text), 3),
                "no_speech_prob": None,
            }
            for index, each in enumerate(stretches)
        ],
    }


def _clock(seconds: float, point: str) -> str:
    whole, thousandths = divmod(round(seconds * 1000), 1000)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}{point}{thousandths:03}"


def _in_a_cue(text: str) -> str:
    """An arrow, or an empty line, would begin another cue."""
    return " ".join(text.replace("-->", "->").split())


def _escaped(text: str) -> str:
    return _in_a_cue(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _compression(text: str) -> float:
    data = text.encode()
    return len(data) / len(zlib.compress(data))
