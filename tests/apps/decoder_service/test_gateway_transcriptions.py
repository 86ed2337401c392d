"""`/v1/audio/transcriptions` on loopback: every format, events, and what is refused."""

from collections.abc import AsyncGenerator
from dataclasses import replace

import pytest
from tests.apps.decoder_service.conftest import Open
from tests.apps.decoder_service.rote import Rote, RoteListener, recording

from flagsplit.apps.decoder_service.gateway_backend import Sound, Wanted
from flagsplit.apps.speech.quality import Quality
from flagsplit.apps.speech.transcriber import NewWord, Segment
from flagsplit.apps.speech.words import Phrase

CUES = """1
00:00:00,000 --> 00:00:02,000
Ever tried,

"""


@pytest.mark.parametrize(
    ("form", "kind", "body"),
    [
        ("json", "application/json", '{"text": "Ever tried,", "usage": {"type": "duration", "seconds": 2.0}}'),
        ("text", "text/plain", "Ever tried,\n"),
        ("srt", "application/x-subrip", CUES),
        ("vtt", "text/vtt", "WEBVTT\n\n" + CUES.replace(",000", ".000").removeprefix("1\n")),
    ],
)
def test_formats(gateway: Open, form: str, kind: str, body: str) -> None:
    found = gateway(RoteListener()).transcribe(recording(2), model="ear", response_format=form)
    assert (found.status, found.headers["content-type"]) == (200, f"{kind}; charset=utf-8")
    assert found.body.decode() == body


def test_verbose(gateway: Open) -> None:
    client = gateway(RoteListener())
    fields = {"response_format": "verbose_json", "timestamp_granularities[]": "segment", "language": "en"}
    found = client.transcribe(recording(2), **fields).data
    assert {name: found[name] for name in ("task", "language", "duration", "text")} == {
        "task": "transcribe",
        "language": "english",
        "duration": 2.0,
        "text": "Ever tried,",
    }
    assert [(each["id"], each["start"], each["end"], each["text"]) for each in found["segments"]] == [
        (0, 0, 1, "Ever"),
        (1, 1, 2, "tried,"),
    ]
    assert "words" not in found
    found = client.transcribe(recording(2), **{**fields, "timestamp_granularities[]": "word"}).data
    assert found["words"] == [{"word": "Ever", "start": 0, "end": 1}, {"word": "tried,", "start": 1, "end": 2}]


class Timed(RoteListener):
    """Gives each word as a phrase with times of its own, if it is to."""

    async def listen(
        self, sound: Sound, wanted: Wanted, *, live: bool = False
    ) -> AsyncGenerator[NewWord | Segment, None]:
        async for each in super().listen(sound, wanted, live=live):
            if wanted.times and isinstance(each, Segment):
                (word,) = each.words
                phrase = Phrase(word.start_s, word.end_s, each.tokens, Quality(0.2, -0.25, 0.125, 0.4))
                yield replace(each, words=(replace(word, phrase=phrase),))
            else:
                yield each


@pytest.mark.parametrize(
    ("form", "times"), [("json", False), ("text", False), ("verbose_json", True), ("srt", True), ("vtt", True)]
)
def test_times_are_asked_for_where_they_are_told(gateway: Open, form: str, times: bool) -> None:
    listener = RoteListener()
    assert gateway(listener).transcribe(recording(1), response_format=form).status == 200
    assert [wanted.times for wanted in listener.asked] == [times]


def test_what_is_known_of_phrases(gateway: Open) -> None:
    found = gateway(Timed()).transcribe(recording(2), response_format="verbose_json").data["segments"]
    known = {"temperature": 0.2, "avg_logprob": -0.25, "no_speech_prob": 0.125, "compression_ratio": 0.4}
    assert [{name: each[name] for name in known} for each in found] == [known, known]
    cues = gateway(Timed()).transcribe(recording(2), response_format="srt").body.decode()
    assert cues.count(" --> ") == 2


def test_events(gateway: Open) -> None:
    found = gateway(RoteListener()).transcribe(recording(2), stream="true", temperature="0.5").events
    deltas = ["Ever", " tried,"]
    assert found == [
        *({"type": "transcript.text.delta", "delta": delta} for delta in deltas),
        {"type": "transcript.text.done", "text": "Ever tried,", "usage": {"type": "duration", "seconds": 2.0}},
    ]


@pytest.mark.parametrize("form", ["json", "text", "srt", "vtt", "verbose_json"])
def test_silence(gateway: Open, form: str) -> None:
    found = gateway(RoteListener()).transcribe(recording(0), response_format=form)
    assert (found.status, b"-->" in found.body) == (200, False)


def test_silence_as_events(gateway: Open) -> None:
    (event,) = gateway(RoteListener()).transcribe(recording(0), stream="true").events
    assert (event["type"], event["text"]) == ("transcript.text.done", "")


@pytest.mark.parametrize(
    ("fields", "status", "said"),
    [
        ({"response_format": "docx"}, 400, "response_format: expected one of json"),
        ({"response_format": "srt", "stream": "true"}, 400, "leave out response_format srt"),
        ({"language": "de"}, 400, "ear understands en, not 'de'"),
        ({"prompt": "names"}, 400, "prompt is not supported"),
        ({"temperature": "3"}, 400, "temperature: expected a number from 0 to 2"),
        ({"temperature": "NaN"}, 400, "temperature: expected a number"),
        ({"stream": "maybe"}, 400, "stream: expected true or false"),
        ({"timestamp_granularities[]": "letter"}, 400, "expected segment or word"),
        ({"include[]": "logprobs"}, 400, "probabilities of tokens are not kept"),
        ({"voice": "x"}, 400, "there is no field 'voice'"),
        ({"model": "other"}, 404, "there is no model 'other'; there is ear"),
        ({"model": "rote"}, 400, "model 'rote' takes text: ask /v1/completions"),
    ],
)
def test_refusals(gateway: Open, fields: dict[str, str], status: int, said: str) -> None:
    found = gateway(ear := RoteListener(), Rote()).transcribe(recording(1), **fields)
    assert (found.status, said in found.error) == (status, True), found.body
    assert ear.asked == []


def test_a_gateway_without_a_model_for_speech(gateway: Open) -> None:
    found = gateway(Rote()).transcribe(recording(1))
    assert (found.status, found.error) == (
        404,
        "expected a model; there is none that this page is for; ask GET /v1/models",
    )


def test_no_recording(gateway: Open) -> None:
    client = gateway(RoteListener())
    assert "expected a recording" in client.transcribe(b"hello").error
    assert "expected one recording, came 0" in client.transcribe(None).error
    assert client.ask("POST", "/v1/audio/transcriptions", b"{}", Content_Type="application/json").status == 415
