"""`/v1/completions` on loopback: answers, events, stop strings, several at once, and what is refused."""

from typing import Any

import pytest
from tests.apps.decoder_service.conftest import Open
from tests.apps.decoder_service.rote import VERSE, Rote


def test_an_answer(gateway: Open) -> None:
    found = gateway(Rote()).complete(model="rote", prompt="hello", max_tokens=9, temperature=0)
    assert found.status == 200
    assert found.data["choices"] == [{"index": 0, "text": "Ever trie", "logprobs": None, "finish_reason": "length"}]
    assert found.data["usage"] == {"prompt_tokens": 5, "completion_tokens": 9, "total_tokens": 14}
    assert (found.data["object"], found.data["model"]) == ("text_completion", "rote")


def test_events(gateway: Open) -> None:
    client = gateway(Rote())
    asked = {"model": "rote", "prompt": "hello", "max_tokens": 39, "temperature": 0, "stream": True}
    found = client.complete(**asked, stream_options={"include_usage": True})
    assert found.headers["content-type"].startswith("text/event-stream")
    *chunks, usage, mark = found.events
    assert mark == "[DONE]"
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 39
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == VERSE.encode()[:39].decode()
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert "usage" not in client.complete(**asked).events[-2]


@pytest.mark.parametrize(
    ("stop", "text", "tokens"),
    [
        ("tried", "Ever ", 10),
        (["failed", "ed, e"], "Ever tri", 13),
        ("never", VERSE[:28], 30),
        ("E", "", 1),
    ],
)
def test_stop_strings_across_tokens(gateway: Open, stop: Any, text: str, tokens: int) -> None:
    client = gateway(rote := Rote())
    asked = {"prompt": "x", "max_tokens": 30, "temperature": 0, "stop": stop}
    whole = client.complete(**asked).data
    ended = "length" if tokens == 30 else "stop"
    assert (whole["choices"][0]["text"], whole["choices"][0]["finish_reason"]) == (text, ended)
    assert whole["usage"]["completion_tokens"] == tokens
    events = client.complete(**asked, stream=True).events[:-1]
    assert "".join(each["choices"][0]["text"] for each in events) == text
    assert events[-1]["choices"][0]["finish_reason"] == ended
    assert rote.open == 0


def test_several_prompts_and_answers(gateway: Open) -> None:
    """Answers to one prompt have seeds one after another, so that they differ, and each can be had again."""
    client = gateway(rote := Rote())
    asked = {"prompt": ["ab", [99, 100, 101]], "n": 2, "max_tokens": 4, "temperature": 1, "seed": 2, "echo": True}
    found = client.complete(**asked)
    texts = [f"{prompt}{VERSE[seed : seed + 4]}" for prompt in ("ab", "cde") for seed in (2, 3)]
    assert [choice["text"] for choice in found.data["choices"]] == texts
    assert found.data["usage"] == {"prompt_tokens": 5, "completion_tokens": 16, "total_tokens": 21}
    assert {wanted.client for wanted in rote.asked} == {"at 127.0.0.1"}
    streamed = [""] * 4
    for event in client.complete(**asked, stream=True).events[:-1]:
        streamed[event["choices"][0]["index"]] += event["choices"][0]["text"]
    assert streamed == texts


def test_without_a_seed_answers_differ(gateway: Open) -> None:
    client = gateway(rote := Rote())
    for _ in range(2):
        client.complete(prompt="x", max_tokens=1)
    first, second = (wanted.options for wanted in rote.asked)
    assert first.seed != second.seed
    assert first.temperature == 1.0


@pytest.mark.parametrize(
    ("fields", "status", "param", "said"),
    [
        ({"prompt": "x", "logprobs": 3}, 400, "logprobs", "logprobs is not supported"),
        ({"prompt": "x", "best_of": 4}, 400, "best_of", "best_of is not supported"),
        ({"prompt": "x", "logit_bias": {"1": 5}}, 400, "logit_bias", "not supported"),
        ({"prompt": "x", "presence_penalty": 0.5}, 400, "presence_penalty", "not supported"),
        ({"prompt": "x", "suffix": "y"}, 400, "suffix", "not supported"),
        ({"prompt": "x", "voice": "y"}, 400, "voice", "there is no field 'voice'"),
        ({}, 400, "prompt", "prompt: expected a text, tokens, or a list"),
        ({"prompt": []}, 400, "prompt", "prompt: expected"),
        ({"prompt": ""}, 400, "prompt", "at least one token"),
        ({"prompt": [1, 256]}, 400, "prompt", "tokens from 0 to 255, came 256"),
        ({"prompt": [True]}, 400, "prompt", "tokens from 0 to 255"),
        ({"prompt": ["x"] * 65}, 400, "prompt", "at most 64"),
        ({"prompt": "x", "temperature": 2.5}, 400, "temperature", "a number from 0 to 2, came 2.5"),
        ({"prompt": "x", "temperature": "hot"}, 400, "temperature", "a number from 0 to 2, came 'hot'"),
        ({"prompt": "x", "max_tokens": 1.5}, 400, "max_tokens", "a whole number from 1 to 512"),
        ({"prompt": "x" * 500, "max_tokens": 13}, 400, "prompt", "takes 512 tokens; 500 of the prompt"),
        ({"prompt": "x", "stop": ["a"] * 5}, 400, "stop", "at most 4"),
        ({"prompt": "x", "stop": [""]}, 400, "stop", "texts of 1 to 512 characters"),
        ({"prompt": "x", "stream_options": {"include_usage": True}}, 400, "stream_options", "together with stream"),
        ({"prompt": "x", "n": 33}, 400, None, "one request may ask for 32 answers"),
        ({"prompt": "x", "model": "other"}, 404, "model", "there is no model 'other'; there is rote"),
    ],
)
def test_refusals(gateway: Open, fields: dict[str, Any], status: int, param: str | None, said: str) -> None:
    found = gateway(rote := Rote()).complete(**fields)
    assert (found.status, found.data["error"]["param"]) == (status, param)
    assert found.data["error"]["type"] == "invalid_request_error"
    assert said in found.error
    assert rote.asked == []


@pytest.mark.parametrize("body", [b"", b"[]", b"nonsense", b"\xff", b"[" * 100_000])
def test_bodies_that_are_no_object(gateway: Open, body: bytes) -> None:
    found = gateway(Rote()).ask("POST", "/v1/completions", body)
    assert (found.status, "expected a JSON object" in found.error) == (400, True)


@pytest.mark.parametrize("stream", [False, True])
def test_no_room(gateway: Open, stream: bool) -> None:
    found = gateway(Rote(places=0)).complete(prompt="x", stream=stream)
    assert (found.status, found.headers["retry-after"], found.error) == (429, "3", "0 streams are open")
    assert found.data["error"]["code"] == "rate_limit_exceeded"


def test_one_of_several_finds_no_room(gateway: Open) -> None:
    """The others are cancelled: half an answer helps nobody."""
    client = gateway(rote := Rote(places=1, gap_s=0.01))
    assert client.complete(prompt="x", n=3, max_tokens=500).status == 429
    assert (rote.open, rote.cancelled) == (0, 1)


def test_models(gateway: Open) -> None:
    client = gateway(Rote())
    (model,) = client.get("/v1/models").data["data"]
    assert (model["id"], model["object"], model["max_positions"]) == ("rote", "model", 512)
    assert client.get("/v1/models/rote").data == model
    assert client.get("/v1/models/other").status == 404
