"""`flagsplit transcribe`: the words of a recording, as they come, and where they were made."""

import sys
from enum import StrEnum
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, Protocol, cast

import typer
from rich.console import Console

from flagsplit.apps.cli.common_options import Cloud, Keys, ThreadsHere
from flagsplit.apps.cli.options import pairs
from flagsplit.apps.cli.output import print_json, progress_bar, say, size_text
from flagsplit.apps.speech.opening import RecognizerChoice
from flagsplit.apps.speech.subtitles import SubtitleFormat, clock_text, cue_text, cues, file_start
from flagsplit.apps.speech.transcribe import Transcription
from flagsplit.apps.speech.transcriber import NewWord, Segment
from flagsplit.apps.speech.transcript import Transcript
from flagsplit.errors import ConfigError


class Format(StrEnum):
    """How the words are printed."""

    text = "text"
    json = "json"
    srt = "srt"
    vtt = "vtt"


def command(
    audio: Annotated[Path, typer.Argument(help="A WAV file, of any rate and number of channels.")],
    model: Annotated[
        str, typer.Option(help="A program of the zoo, a folder of one, or a bundle of one.")
    ] = "zoo:moonshine",
    plan: Annotated[str, typer.Option(help="Which tier does what: a plan of the bundle; all-phone needs none.")] = "",
    cloud: Cloud = "",
    tier: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TIER=tcp://HOST:PORT",
            help="Where flagsplit serve runs a part of the encoder; else here.",
        ),
    ] = None,
    pace: Annotated[
        bool, typer.Option("--pace", help="Feed the sound as a microphone would; tell how late words are.")
    ] = False,
    form: Annotated[Format, typer.Option("--format", help="How to print the words.")] = Format.text,
    timestamps: Annotated[bool, typer.Option("--timestamps", help="Say when, and where, a line was made.")] = False,
    keys: Keys = None,
    threads: ThreadsHere = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object; the same as --format json.")] = False,
) -> None:
    """Turn speech into text: as a whole here, or with the decoder in the cloud."""
    if as_json and form not in (Format.text, Format.json):
        raise ConfigError(f"--json and --format {form} ask for two things; leave out one")
    form = Format.json if as_json else form
    if timestamps and form is not Format.text:
        raise ConfigError(f"--timestamps is for text, {form} has the times in it; leave it out")
    addresses = tuple(each.strip() for each in cloud.split(",") if each.strip())
    wants_times = timestamps or form is not Format.text
    workers = pairs("--tier", tier)
    choice = RecognizerChoice(model, plan, addresses, keys, threads, times=wants_times, workers=workers)
    transcription = Transcription(audio, choice, pace)
    events = transcription.events()
    printer: _Printer = _Cues(form)
    if form in (Format.text, Format.json):
        printer = _Lines(timestamps=timestamps) if form is Format.text else _Json()
    # Of what comes bit by bit nothing is printed while the bar is on the same terminal: it goes with the first word.
    shares_terminal = sys.stdout.isatty() and form is not Format.json
    with progress_bar(quiet=False) as transcription.progress:
        first = list(islice(events, 1)) if shares_terminal else []
        for event in () if shares_terminal else events:
            printer.take(event)
    transcription.progress = lambda _what, _share: None
    for event in chain(first, events):
        printer.take(event)
    printer.finish(transcription.result)
    _tell(transcription.result, audio, pace=pace)


class _Printer(Protocol):
    """Prints what comes."""

    def take(self, event: NewWord | Segment) -> None:
        """The next one."""

    def finish(self, result: Transcript) -> None:
        """Nothing follows."""


class _Json:
    """One object at the end."""

    def take(self, event: NewWord | Segment) -> None:
        pass

    def finish(self, result: Transcript) -> None:
        print_json(result.to_data())


class _Cues:
    """Subtitles, those of a segment at a time."""

    def __init__(self, form: Format) -> None:
        self._form = cast("SubtitleFormat", form.value)
        self._count = 0
        self._start = file_start(self._form)

    def take(self, event: NewWord | Segment) -> None:
        for cue in cues(event.words) if isinstance(event, Segment) else ():
            self._count += 1
            _write(self._start + cue_text(self._count, cue, self._form))
            self._start = ""

    def finish(self, result: Transcript) -> None:
        del result
        _write(self._start)


class _Lines:
    """A line for each segment, written word by word; with timestamps as a whole, since they are known at its end."""

    def __init__(self, *, timestamps: bool) -> None:
        self._timestamps, self._places = timestamps, sys.stdout.isatty()
        self._where = ""
        self._is_open = False

    def take(self, event: NewWord | Segment) -> None:
        if isinstance(event, Segment):
            if self._timestamps:
                places = "+".join(dict.fromkeys(word.where for word in event.words))
                times = f"{clock_text(event.words[0].start_s)} {clock_text(event.words[-1].end_s)}"
                _write(f"[{times} {places}] {event.text}")
            _write("\n")
            self._is_open = False
        elif not self._timestamps:
            mark = f"[{event.where}] " if self._places and event.where != self._where else ""
            self._where = event.where
            _write(f"{' ' if self._is_open else ''}{mark}{event.text}")
            self._is_open = True

    def finish(self, result: Transcript) -> None:
        pass


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _tell(result: Transcript, audio: Path, *, pace: bool) -> None:
    """What is to know besides the words, on standard error."""
    for note in result.notes:
        print(f"flagsplit: {audio}: {note}", file=sys.stderr)
    if not result.words:
        print(f"flagsplit: {audio}: nobody speaks in its {result.seconds:.1f} s", file=sys.stderr)
    if pace and result.latencies_s:
        late = result.latency_s()
        print(
            f"flagsplit: words came {late['p50']:.2f} s after they were said, 95 % within {late['p95']:.2f} s; "
            "measured on this host, times of words estimated",
            file=sys.stderr,
        )
    if sys.stderr.isatty():
        made = ", ".join(f"{count} {where}" for where, count in result.words_by_tier.items())
        text = f"{result.seconds:.1f} s of sound in {result.took_s:.1f} s, plan {result.plan}; words: {made or 'none'}"
        if result.crossed_bytes:
            text += f"; {size_text(result.crossed_bytes)} crossed"
        say(Console(stderr=True, highlight=False), text)
