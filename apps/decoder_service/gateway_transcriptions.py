"""`POST /v1/audio/transcriptions`: what is asked, and the answer in the format that was asked for."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from flagsplit.apps.decoder_service.gateway_backend import Heard, ModelFacts, Wanted
from flagsplit.apps.decoder_service.gateway_errors import ApiError
from flagsplit.apps.decoder_service.gateway_fields import Fields
from flagsplit.apps.decoder_service.gateway_multipart import Part
from flagsplit.apps.decoder_service.gateway_subtitles import Stretches, srt, verbose, vtt
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
    """

    audio: memoryview
    model: str
    language: str
    form: str
    temperature: float
    stream: bool

    def wanted(self, client: str) -> Wanted:
        """The stream to be opened."""
        return Wanted(client, GenerationOptions(temperature=self.temperature))


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
        if part.name.startswith("timestamp_granularities") and part.text() != "segment":
            raise ApiError(400, "timestamps are of segments only; leave words out", "unsupported_parameter", part.name)
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


async def whole_answer(
    heard: AsyncGenerator[Heard, None], asked: Transcription, facts: ModelFacts, duration_s: float
) -> tuple[str | dict[str, Any], str]:
    """The answer in one piece, and its content type."""
    stretches, texts = Stretches(), list[str]()
    async for each in heard:
        stretches.push(each)
        texts.append(each.text)
    text, found = "".join(texts).strip(), stretches.finish()
    language = asked.language or next(iter(facts.languages), "")
    if asked.form == "json":
        return {"text": text, "usage": _usage(duration_s)}, "application/json"
    if asked.form == "verbose_json":
        spoken = _LANGUAGES.get(language, language)
        answer = verbose(text, spoken, duration_s, asked.temperature, found)
        return {**answer, "usage": _usage(duration_s)}, "application/json"
    if asked.form == "srt":
        return srt(found), "application/x-subrip"
    return (vtt(found), "text/vtt") if asked.form == "vtt" else (text + "\n", "text/plain")


async def events(heard: AsyncGenerator[Heard, None], duration_s: float) -> AsyncGenerator[dict[str, Any], None]:
    """The answer as events."""
    texts: list[str] = []
    async for each in heard:
        text = each.text if texts else each.text.lstrip()
        if text:
            texts.append(text)
            yield {"type": "transcript.text.delta", "delta": text}
    yield {"type": "transcript.text.done", "text": "".join(texts), "usage": _usage(duration_s)}


def _usage(duration_s: float) -> dict[str, Any]:
    return {"type": "duration", "seconds": round(duration_s, 3)}
