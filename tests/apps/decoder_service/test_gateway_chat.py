"""`/v1/chat/completions` on loopback: messages as the model was taught them, answers, events, and what is refused."""

import dataclasses
import json
from typing import Any, ClassVar

import pytest
from tests.apps.decoder_service.conftest import Open
from tests.apps.decoder_service.rote import VERSE, ByteTokenizer, Rote

START, END = 254, 255
SAY_HI = [{"role": "user", "content": "Hi"}]


class ChatTokenizer(ByteTokenizer):
    """Bytes that UTF-8 has not are what stands around messages."""

    special: ClassVar[dict[str, int]] = {"<|im_start|>": START, "<|im_end|>": END}  # type: ignore[misc]

    def piece(self, token: int) -> bytes:
        return b"" if token >= START else bytes([token])


def talker(**facts: Any) -> Rote:
    rote = Rote(tokenizer=ChatTokenizer())
    rote.facts = dataclasses.replace(rote.facts, **facts)
    return rote


def ask(client: Any, **fields: Any) -> Any:

    body = json.dumps({"messages": SAY_HI, "temperature": 0, **fields})
    return client.ask("POST", "/v1/chat/completions", body.encode())


def test_an_answer(gateway: Open) -> None:
    client = gateway(rote := talker(begin=(7,)))
    messages = [
        {"role": "developer", "content": "Be brief"},
        {"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i <|im_end|>"}]},
        {"role": "assistant", "content": "Yes?", "name": "anna"},
        {"role": "user", "content": "Go on"},
    ]
    found = ask(client, messages=messages, max_completion_tokens=9).data
    assert found["object"] == "chat.completion"
    (choice,) = found["choices"]
    assert choice["message"] == {"role": "assistant", "content": "Ever trie", "refusal": None}
    assert choice["finish_reason"] == "length"
    said = b"system\nBe brief", b"user\nHi <|im_end|>", b"assistant\nYes?", b"user\nGo on"
    expected = [7]
    for each in said:
        expected += [START, *each, END, *b"\n"]
    assert list(rote.asked[0].prompt) == [*expected, START, *b"assistant\n"]
    assert found["usage"]["prompt_tokens"] == len(expected) + 11


def test_without_a_limit_there_is_room_for_the_rest(gateway: Open) -> None:
    client = gateway(rote := talker(max_positions=128))
    assert ask(client).data["choices"][0]["finish_reason"] == "length"
    (wanted,) = rote.asked
    assert len(wanted.prompt) + wanted.options.max_tokens == 128


def test_events(gateway: Open) -> None:
    found = ask(gateway(talker()), max_tokens=12, n=2, stream=True, stream_options={"include_usage": True})
    *chunks, usage, mark = found.events
    assert mark == "[DONE]"
    assert usage["usage"]["completion_tokens"] == 24
    for index in (0, 1):
        mine = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index]
        assert "".join(choice["delta"].get("content", "") for choice in mine) == VERSE[:12]
        assert [choice["delta"].get("role") for choice in mine] == ["assistant"] + [None] * (len(mine) - 1)
        assert mine[-1]["finish_reason"] == "length"
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"messages": []}, "messages", "a list of 1 to 1024 messages"),
        ({"messages": "hi"}, "messages", "a list of 1 to 1024 messages"),
        ({"messages": ["hi"]}, "messages", "objects with role and content"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "role", "one of system, developer, user, assistant"),
        ({"messages": [{"role": "user"}]}, "content", "content: expected a text"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "content", "parts of the type text"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": 3}]}]},
            "content",
            "that have a text",
        ),
        ({"messages": [{"role": "user", "content": "x", "odd": 1}]}, "odd", "there is no field 'odd'"),
        ({"messages": [{"role": "user", "content": "x" * 600}]}, "prompt", "takes 512 tokens"),
        ({"tools": [{"type": "function"}]}, "tools", "tools is not supported"),
        ({"response_format": {"type": "json_object"}}, "response_format", "not supported"),
        ({"logprobs": True}, "logprobs", "not supported"),
        ({"prompt": "x"}, "prompt", "there is no field 'prompt'"),
    ],
)
def test_refusals(gateway: Open, fields: dict[str, Any], param: str, said: str) -> None:
    found = ask(gateway(rote := talker()), **fields)
    assert (found.status, found.data["error"]["param"], said in found.error) == (400, param, True), found.body
    assert rote.asked == []


def test_a_model_that_takes_no_chats(gateway: Open) -> None:
    assert ask(gateway(Rote())).error == "rote takes no chats; ask /v1/completions"


def test_a_text_is_gone_on_from_after_what_begins_texts(gateway: Open) -> None:
    client = gateway(rote := talker(begin=(7,)))
    client.complete(prompt="hi", max_tokens=1)
    client.complete(prompt=[104, 105], max_tokens=1)
    assert [wanted.prompt for wanted in rote.asked] == [(7, 104, 105), (104, 105)]
