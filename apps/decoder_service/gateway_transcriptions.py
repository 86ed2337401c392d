"""`POST /v1/audio/transcriptions`: what is asked, and the answer in the format that was asked for."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from flagsplit.apps.decoder_service.gateway_backend import ModelFacts, Wanted
from flagsplit.apps.decoder_service.gateway_errors import ApiError
from flagsplit.apps.decoder_service.gateway_fields import Fields, wrong
from flagsplit.apps.decoder_service.gateway_multipart import Part
from flagsplit.apps.speech.quality import compression_ratio, quality_data
from flagsplit.apps.speech.subtitles import subtitles
from flagsplit.apps.speech.transcriber import NewWord, Segment
from flagsplit.runtime.generation.options import GenerationOptions

FORMATS: Final = ("json", "text", "verbose_json", "srt", "vtt")
_LANGUAGES = {"en": "english", "de": "german", "fr": "french", "es": "spanish", "it": "italian", "zh": "chinese"}


@dataclass(frozen=True)
class Transcription:
    """What a request asks for.

    Attributes:
        audio: the file.
        model: who is to listen, "" is whoever does.
        language: ISO 639-1 code, "" if the client did not say.
        form: one of `FORMATS`.
        temperature: 0 takes the likeliest words.
        stream: whether the answer comes as events.
        word_times: whether `verbose_json` is to say when each word was said.
    """

    audio: memoryview
    model: str
    language: str
    form: str
    temperature: float
    stream: bool
    word_times: bool

    def wanted(self, client: str) -> Wanted:
        """The stream to be opened."""
        has_times = self.form in ("verbose_json", "srt", "vtt")
        return Wanted(client, GenerationOptions(temperature=self.temperature), times=has_times)


def read_transcription(parts: Sequence[Part]) -> Transcription:
    """Check a form.

    Raises:
        ApiError: a field is missing, has a wrong value, or is not supported.
    """
    files = [part for part in parts if part.name == "file"]
    if len(files) != 1:
        raise ApiError(400, f"file: expected one recording, came {len(files)}", "invalid_value", "file")
    texts = {part.name: part.text() for part in parts if part.name not in ("file", *_LISTS)}
    if len(texts) + 1 + sum(part.name in _LISTS for part in parts) != len(parts):
        raise ApiError(400, "a field comes twice; give it once", "invalid_value")
    for part in parts:
        if part.name.startswith("timestamp_granularities") and part.text() not in ("segment", "word"):
            raise wrong(part.name, "segment or word", part.text())
        if part.name.startswith("include"):
            raise ApiError(400, "include: probabilities of tokens are not kept", "unsupported_parameter", part.name)
    fields = Fields(texts)
    fields.refuse("prompt", ("",), "the model listens without a prompt")
    fields.refuse("chunking_strategy", ("auto",), "long recordings are divided by their pauses")
    fields.text("user", longest=512)
    found = Transcription(
        files[0].data,
        fields.text("model", longest=256),
        fields.text("language", longest=16).lower(),
        fields.choice("response_format", FORMATS, "json"),
        fields.number("temperature", 0.0, 0.0, 2.0),
        fields.flag("stream"),
        any(part.name.startswith("timestamp_granularities") and part.text() == "word" for part in parts),
    )
    fields.end()
    if found.stream and found.form != "json":
        raise ApiError(
            400, f"stream: events are JSON; leave out response_format {found.form}", "invalid_value", "stream"
        )
    return found


_LISTS: Final = ("timestamp_granularities[]", "timestamp_granularities", "include[]", "include")


def check_language(asked: Transcription, facts: ModelFacts) -> None:
    """Raise unless the model understands the language.

    Raises:
        ApiError: it does not.
    """
    if asked.language and facts.languages and asked.language not in facts.languages:
        known = ", ".join(facts.languages)
        raise ApiError(400, f"{facts.name} understands {known}, not {asked.language!r}", "invalid_value", "language")


@dataclass
class Transcript:
    """What was heard so far."""

    words: list[str] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)

    def push(self, heard: NewWord | Segment) -> str:
        """Some more; the text that it adds."""
        if isinstance(heard, Segment):
            self.segments.append(heard)
            return ""
        self.words.append(heard.text)
        return heard.text if len(self.words) == 1 else f" {heard.text}"

    @property
    def text(self) -> str:
        """All words."""
        return " ".join(self.words)


async def whole_answer(
    heard: AsyncGenerator[NewWord | Segment, None], asked: Transcription, facts: ModelFacts, duration_s: float
) -> tuple[str | dict[str, Any], str]:
    """The answer in one piece, and its content type."""
    found = Transcript()
    async for each in heard:
        found.push(each)
    if asked.form == "json":
        return {"text": found.text, "usage": _usage(duration_s)}, "application/json"
    if asked.form == "verbose_json":
        return _verbose(found, asked, facts, duration_s), "application/json"
    if asked.form == "text":
        return found.text + "\n", "text/plain"
    words = [word for segment in found.segments for word in segment.words]
    if asked.form == "srt":
        return subtitles(words, "srt"), "application/x-subrip"
    return subtitles(words, "vtt"), "text/vtt"


async def events(
    heard: AsyncGenerator[NewWord | Segment, None], duration_s: float
) -> AsyncGenerator[dict[str, Any], None]:
    """The answer as events."""
    found = Transcript()
    async for each in heard:
        if text := found.push(each):
            yield {"type": "transcript.text.delta", "delta": text}
    yield {"type": "transcript.text.done", "text": found.text, "usage": _usage(duration_s)}


def _verbose(found: Transcript, asked: Transcription, facts: ModelFacts, duration_s: float) -> dict[str, Any]:
    """The fields of OpenAI's `verbose_json`; what is not known of a segment is null."""
    language = asked.language or next(iter(facts.languages), "")
    answer: dict[str, Any] = {
        "task": "transcribe",
        "language": _LANGUAGES.get(language, language),
        "duration": round(duration_s, 3),
        "text": found.text,
        "segments": [_segment(index, segment, asked) for index, segment in enumerate(found.segments)],
        "usage": _usage(duration_s),
    }
    if asked.word_times:
        words = [word for segment in found.segments for word in segment.words]
        answer["words"] = [
            {"word": word.text, "start": round(word.start_s, 3), "end": round(word.end_s, 3)} for word in words
        ]
    return answer


def _segment(index: int, segment: Segment, asked: Transcription) -> dict[str, Any]:
    start_s = segment.words[0].start_s
    unknown = {
        "temperature": asked.temperature,
        "avg_logprob": None,
        "compression_ratio": round(compression_ratio(segment.text), 3),
        "no_speech_prob": None,
    }
    scores = unknown if segment.quality is None else quality_data(segment.quality)
    return {
        "id": index,
        "seek": round(start_s * 100),
        "start": round(start_s, 3),
        "end": round(segment.words[-1].end_s, 3),
        "text": segment.text,
        "tokens": [],
        **scores,
    }


def _usage(duration_s: float) -> dict[str, Any]:
    return {"type": "duration", "seconds": round(duration_s, 3)}
