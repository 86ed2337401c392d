"""Transcribe a WAV file: what the command line and `flagsplit.transcribe` do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from flagsplit.apps.speech.opening import RecognizerChoice, open_recognizer
from flagsplit.apps.speech.pacing import Pace
from flagsplit.apps.speech.transcriber import NewWord, Segment, Transcriber
from flagsplit.apps.speech.transcript import Transcript
from flagsplit.apps.speech.vad import RATE_HZ, open_detector
from flagsplit.apps.speech.wav import WavReader

_STEP: Final = 1 / 500
"""Of the sound, after which it is told again what is done."""


@dataclass
class Transcription:
    """A transcription that is to be run by going through `events`.

    Attributes:
        audio: the WAV file.
        choice: what recognizes it, and where.
        pace: whether it is fed as a microphone would.
        progress: told what is done, and the share of the sound.
        result: what is known of it so far.
    """

    audio: Path
    choice: RecognizerChoice = field(default_factory=RecognizerChoice)
    pace: bool = False
    progress: Callable[[str, float], None] = lambda _what, _share: None
    result: Transcript = field(default_factory=Transcript)
    _told: float = 0.0

    def events(self) -> Iterator[NewWord | Segment]:
        """Words as they come, and after those of a window its segment.

        Raises:
            InputError: the file is no WAV file with samples.
            ConfigError: there is no such model or plan, or it is not for speech.
            PeerError: a model cannot be fetched, or a tier that is needed does not answer.
        """
        with ExitStack() as stack:
            reader = stack.enter_context(WavReader(self.audio))
            self.result.seconds, self.result.notes = reader.seconds, reader.notes
            self.progress("load", 0.0)
            recognizer = open_recognizer(self.choice, lambda line: self.progress(line, 0.0))
            stack.callback(recognizer.close)
            detector = open_detector()
            stack.callback(detector.close)
            self.result.plan = recognizer.plan
            transcriber = Transcriber(recognizer, detector, live=self.pace, progress=self._tell)
            blocks = reader.blocks(RATE_HZ)
            pace = Pace(RATE_HZ) if self.pace else None
            events = transcriber.events(blocks if pace is None else pace.paced(blocks))
            yield from self.result.follow(events, pace)
            self.result.notes, self.result.crossed_bytes = reader.notes, recognizer.crossed_bytes

    def _tell(self, seconds: float) -> None:
        share = min(seconds / self.result.seconds, 1.0)
        if share - self._told >= _STEP:
            self._told = share
            self.progress("transcribe", share)


def transcribe(
    audio: str | Path,
    *,
    model: str = "zoo:moonshine",
    plan: str = "",
    cloud: str | tuple[str, ...] = (),
    tiers: Mapping[str, str] | None = None,
    keys: str | Path | None = None,
    threads: int = 1,
    timestamps: bool = False,
) -> Transcript:
    """The words of a WAV file.

    Args:
        audio: the file; of any rate and number of channels.
        model: `zoo:moonshine` or another of `flagsplit program`, a folder of a program, or a bundle of one.
        plan: which tier does what, such as "split"; see docs/transcribe.md.
        cloud: address of `flagsplit decode-serve`, or several; without any everything runs here.
        tiers: where workers listen that run a part of the encoder, such as `{"edge": "tcp://edge.example:5555"}`; what
            a plan needs and is not here is started on this host.
        keys: the key folder; by default under ~/.config/flagsplit.
        threads: of the engine here; 0 lets it choose.
        timestamps: whether a model that can (Whisper) is to say when each phrase was said; else times are estimated.

    Raises:
        InputError: the file is no WAV file with samples.
        ConfigError: there is no such model or plan, or it is not for speech.
        PeerError: a model cannot be fetched, or a tier that is needed does not answer.
    """
    replicas = (cloud,) if isinstance(cloud, str) else tuple(cloud)
    folder = None if keys is None else Path(keys)
    choice = RecognizerChoice(model, plan, replicas, folder, threads, times=timestamps, workers=tiers or {})
    transcription = Transcription(Path(audio), choice)
    for _ in transcription.events():
        pass
    return transcription.result
