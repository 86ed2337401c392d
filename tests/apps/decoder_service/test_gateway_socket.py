"""`/v1/stream` on loopback: audio, tensors and prompts in, tokens out, many at once; and what is refused."""

import asyncio
import json
import struct
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.apps.decoder_service.conftest import Client, Open
from tests.apps.decoder_service.rote import BYTES, ByteTokenizer, Rote, RoteListener

from flagsplit.apps.decoder_service.gateway_sound import PcmSound

aiohttp = pytest.importorskip("aiohttp")

Told = dict[str, Any]


class Socket:
    """A client's end."""

    def __init__(self, socket: Any) -> None:
        self._socket = socket

    async def say(self, **message: Any) -> None:
        await self._socket.send_str(json.dumps(message))

    async def feed(self, stream: int, data: bytes, tensor: int = 0, flags: int = 1) -> None:
        await self._socket.send_bytes(struct.pack("<IHH", stream, tensor, flags) + data)

    async def hear(self) -> Told:
        message = await self._socket.receive(timeout=5)
        assert message.type == aiohttp.WSMsgType.TEXT, message
        found = json.loads(message.data)
        assert isinstance(found, dict)
        return found

    async def hear_all(self, *streams: int) -> dict[int, list[Told]]:
        """Everything until these streams are over."""
        found: dict[int, list[Told]] = {stream: [] for stream in streams}
        while any(not told or told[-1]["type"] not in ("done", "error") for told in found.values()):
            message = await self.hear()
            found.setdefault(message["stream"], []).append(message)
        return found


def talk(client: Client, scenario: Callable[[Socket], Awaitable[Any]], **options: Any) -> Any:
    async def run() -> Any:
        async with aiohttp.ClientSession() as session:
            url = f"http://{client.host}:{client.port}/v1/stream"
            async with session.ws_connect(url, protocols=("flagsplit.v1",), **options) as socket:
                assert socket.protocol == "flagsplit.v1"
                return await scenario(Socket(socket))

    return asyncio.run(run())


def test_a_prompt(gateway: Open) -> None:
    async def scenario(socket: Socket) -> list[Told]:
        await socket.say(type="open", stream=7, model="rote", prompt="hi", options={"max_tokens": 28})
        return (await socket.hear_all(7))[7]

    *told, done = talk(gateway(rote := Rote()), scenario)
    assert done == {"type": "done", "stream": 7, "reason": "length"}
    assert [each["offset"] for each in told] == list(range(28))
    assert bytes(token for each in told for token in each["tokens"]) == BYTES[:28]
    assert "".join(each["text"] for each in told) == BYTES[:28].decode()
    assert {each["where"] for each in told} == {"here"}
    assert rote.asked[0].prompt == tuple(b"hi")


def test_a_long_prompt_does_not_hold_up_the_others(gateway: Open) -> None:
    on_the_loop = []

    class Told(ByteTokenizer):
        def encode(self, text: str) -> list[int]:
            on_the_loop.append(asyncio._get_running_loop() is not None)
            return super().encode(text)

    async def scenario(socket: Socket) -> list[Any]:
        await socket.say(type="open", stream=0, prompt="hi", options={"max_tokens": 1})
        return (await socket.hear_all(0))[0]

    assert talk(gateway(Rote(tokenizer=Told())), scenario)[-1]["type"] == "done"
    assert on_the_loop == [False]


def test_tiny_blocks_count_for_the_memory_that_they_take() -> None:
    sound = PcmSound(16_000)
    for size in (0, 1, 1000):
        sound.push(np.zeros(size, np.float32))
    assert sound.waiting == 64 + 64 + 1000
    assert sound.seconds == 1001 / 16_000
    sound.end()
    assert [len(block) for block in sound.blocks()] == [0, 1, 1000]
    assert sound.waiting == 0


def test_a_client_that_comes_back_goes_on(gateway: Open) -> None:
    async def scenario(socket: Socket) -> list[Told]:
        options = {"max_tokens": 12, "seed": 3, "temperature": 1.0}
        await socket.say(type="open", stream=0, prompt="hi", options=options, generated=list(BYTES[3:8]))
        return (await socket.hear_all(0))[0]

    *told, _ = talk(gateway(Rote()), scenario)
    assert (told[0]["offset"], "".join(each["text"] for each in told)) == (5, BYTES[8:15].decode())


def test_tensors_in_pieces(gateway: Open) -> None:
    hidden = np.arange(12, dtype=np.float32).reshape(1, 3, 4)

    async def scenario(socket: Socket) -> list[Told]:
        shape = {"name": "hidden", "dtype": "float32", "shape": [1, 3, 4]}
        await socket.say(type="open", stream=1, tensors=[shape], options={"max_tokens": 2})
        data = hidden.tobytes()
        for part in (data[:5], data[5:30]):
            await socket.feed(1, part, flags=0)
        await socket.feed(1, data[30:])
        return (await socket.hear_all(1))[1]

    told = talk(gateway(ear := RoteListener()), scenario)
    assert told[-1]["type"] == "done"
    assert (list(ear.asked[0].tensors), ear.asked[0].plan) == (["hidden"], "split")
    assert ear.asked[0].tensors["hidden"].flags.aligned
    np.testing.assert_array_equal(ear.asked[0].tensors["hidden"], hidden)


@pytest.mark.parametrize(("form", "dtype"), [("s16le", "<i2"), ("f32le", "<f4")])
def test_audio(gateway: Open, form: str, dtype: str) -> None:
    async def scenario(socket: Socket) -> list[Told]:
        await socket.say(type="open", stream=2, audio={"format": form, "rate": 16000})
        data = np.zeros(16000 * 2, dtype).tobytes()
        for place in range(0, len(data), 9000):
            await socket.feed(2, data[place : place + 9000], flags=0)
        await socket.feed(2, b"")
        return (await socket.hear_all(2))[2]

    *told, done = talk(gateway(RoteListener()), scenario)
    assert [each["text"] for each in told if each["type"] == "word"] == ["Ever", "tried,"]
    assert [each["words"] for each in told if each["type"] == "segment"] == [
        [{"text": "Ever", "start_s": 0, "end_s": 1}],
        [{"text": "tried,", "start_s": 1, "end_s": 2}],
    ]
    assert done["reason"] == "stop"


def test_words_come_while_somebody_speaks(gateway: Open) -> None:
    async def scenario(socket: Socket) -> tuple[list[Told], list[Told]]:
        await socket.say(type="open", stream=1, audio={"live": True})
        second = np.zeros(16000, "<i2").tobytes()
        told = []
        for _ in range(3):
            await socket.feed(1, second, flags=0)
            told += [await socket.hear() for _ in range(2)]
        await socket.feed(1, second)
        return told, (await socket.hear_all(1))[1]

    told, rest = talk(gateway(RoteListener()), scenario)
    assert [each["text"] for each in told if each["type"] == "word"] == ["Ever", "tried,", "ever"]
    assert {each["where"] for each in told if each["type"] == "word"} == {"here now"}
    assert [each["type"] for each in rest] == ["word", "segment", "done"]


def test_many_at_once(gateway: Open) -> None:
    async def scenario(socket: Socket) -> dict[int, list[Told]]:
        for stream in range(20):
            await socket.say(type="open", stream=stream, prompt="x", options={"max_tokens": 10 + stream})
        return await socket.hear_all(*range(20))

    found = talk(gateway(Rote(gap_s=0.001)), scenario)
    for stream, told in found.items():
        assert "".join(each.get("text", "") for each in told) == BYTES[: 10 + stream].decode("utf-8", "replace")


def test_cancel(gateway: Open) -> None:
    async def scenario(socket: Socket) -> list[Told]:
        await socket.say(type="open", stream=1, prompt="x", options={"max_tokens": 500})
        await socket.say(type="open", stream=2, audio={})
        await socket.hear()
        for stream in (1, 2, 3):
            await socket.say(type="cancel", stream=stream)
        found = await socket.hear_all(1, 2)
        await socket.feed(2, b"late")
        await socket.say(type="open", stream=1, prompt="x", options={"max_tokens": 1})
        await socket.hear_all(1)
        return [told[-1] for told in found.values()]

    client = gateway(ear := RoteListener(gap_s=0.005), max_streams=2)
    assert [told["reason"] for told in talk(client, scenario)] == ["cancelled", "cancelled"]
    assert (ear.cancelled, ear.open) == (2, 0)


@pytest.mark.parametrize(
    ("opening", "said"),
    [
        ({"stream": 1}, "expected audio, tensors or prompt"),
        ({"prompt": "x"}, "stream: expected a whole number"),
        ({"stream": 1, "prompt": "x", "model": "other"}, "there is no model 'other'"),
        ({"stream": 1, "prompt": "x", "odd": 1}, "there is no field 'odd'"),
        ({"stream": 1, "prompt": [256]}, "prompt: expected a list of tokens"),
        ({"stream": 1, "prompt": "x", "generated": [-1]}, "generated: expected a list of tokens"),
        ({"stream": 1, "prompt": "x" * 512}, "takes 512 tokens"),
        ({"stream": 1, "prompt": "x", "options": {"max_tokens": 0}}, "max_tokens: expected 1"),
        ({"stream": 1, "prompt": "x", "options": {"odd": 0}}, "no option of generation is called 'odd'"),
        ({"stream": 1, "prompt": "x", "options": 3}, "options: expected an object"),
        ({"stream": 1, "audio": {"rate": 44100}}, "expected 16000 samples a second"),
        ({"stream": 1, "audio": {"format": "mp3"}}, "format: expected one of s16le, f32le"),
        ({"stream": 1, "audio": {}, "tensors": []}, "audio or tensors, came both"),
        ({"stream": 1, "tensors": [{"name": "rows", "shape": [1]}]}, "one of hidden, came 'rows'"),
        ({"stream": 1, "tensors": [{"name": "hidden", "shape": [1, 3, 5]}]}, "hidden as float32 [1, None, 4]"),
        ({"stream": 1, "tensors": [{"name": "hidden", "shape": [1, 0, 4]}]}, "hidden as float32"),
        ({"stream": 1, "tensors": [{"name": "hidden", "dtype": "int8", "shape": [1, 3, 4]}]}, "hidden as float32"),
        ({"stream": 1, "tensors": [{"name": "hidden", "shape": [1, 9999999, 4]}]}, "may have 26214400 bytes"),
        ({"stream": 1, "tensors": [{"name": "hidden", "shape": [1, 3, 4]}] * 2}, "each of hidden once"),
        ({"stream": 1, "tensors": "hidden"}, "tensors: expected a list"),
        ({"stream": 1, "plan": "other", "tensors": []}, "plan: expected one of split, came 'other'"),
    ],
)
def test_refusals(gateway: Open, opening: Told, said: str) -> None:
    async def scenario(socket: Socket) -> tuple[Told, Told]:
        await socket.say(type="open", **opening)
        refused = await socket.hear()
        await socket.say(type="open", stream=1, prompt="x", options={"max_tokens": 1})
        return refused, (await socket.hear_all(1))[1][-1]

    refused, after = talk(gateway(RoteListener()), scenario)
    assert refused["type"] == "error"
    assert said in refused["error"]["message"]
    assert after["type"] == "done"


def test_messages_that_are_none(gateway: Open) -> None:
    async def scenario(socket: Socket) -> list[Told]:
        await socket.say(type="dance", stream=1)
        await socket._socket.send_str("[1]")
        await socket._socket.send_bytes(b"short")
        await socket.feed(5, b"of a stream that is not open")
        await socket.say(type="open", stream=1, audio={})
        await socket.feed(1, b"abc", flags=2)
        shape = {"name": "hidden", "dtype": "float32", "shape": [1, 3, 4]}
        await socket.say(type="open", stream=2, tensors=[shape])
        await socket.feed(2, b"abc", tensor=1)
        return [await socket.hear() for _ in range(5)]

    told = talk(gateway(RoteListener()), scenario)
    assert [each["stream"] for each in told] == [None, None, None, None, 2]
    assert "type: expected one of open, cancel" in told[0]["error"]["message"]
    assert "at least 8 bytes" in told[2]["error"]["message"]
    assert "flags 0 or 1" in told[3]["error"]["message"]
    assert "expects no more of tensor 1" in told[4]["error"]["message"]


@pytest.mark.parametrize(
    ("data", "flags", "said"),
    [(b"x" * 200_001, 0, "faster than it is listened to"), (b"x" * 3, 1, "whole samples of s16le, came 3 bytes")],
)
def test_audio_that_is_none(gateway: Open, data: bytes, flags: int, said: str) -> None:
    async def scenario(socket: Socket) -> Told:
        await socket.say(type="open", stream=1, audio={})
        await socket.feed(1, data, flags=flags)
        return await socket.hear()

    client = gateway(RoteListener(), max_audio_bytes=200_000)
    assert said in talk(client, scenario)["error"]["message"]
    assert client.get("/readyz").status == 200


class Deaf(RoteListener):
    """Takes its time before it listens."""

    async def listen(self, sound: Any, wanted: Any, *, live: bool = False) -> AsyncGenerator[Any, None]:
        await asyncio.sleep(0.3)
        async for each in super().listen(sound, wanted, live=live):
            yield each


def test_sound_that_waits_counts_as_a_body(gateway: Open) -> None:
    async def scenario(socket: Socket) -> tuple[Told, list[Told]]:
        for stream in (1, 2):
            await socket.say(type="open", stream=stream, audio={})
            await socket.feed(stream, bytes(1 << 20))  # as large as a frame may be; as numbers it is twice that
        refused = await socket.hear()
        return refused, (await socket.hear_all(1))[1]

    client = gateway(Deaf(), body_budget_bytes=3 << 20)
    refused, told = talk(client, scenario)
    assert (refused["stream"], refused["error"]["code"]) == (2, "rate_limit_exceeded")
    assert told[-1]["type"] == "done"
    assert client.transcribe(b"RIFF" + bytes(64_000)).status == 200


def test_tensors_that_do_not_come_hold_no_room(gateway: Open) -> None:
    shape = {"name": "hidden", "dtype": "float32", "shape": [1, 100, 4]}

    async def scenario(socket: Socket) -> tuple[Told, Told, Told]:
        await socket.say(type="open", stream=1, tensors=[shape])
        await socket.feed(1, b"x" * 8, flags=0)
        await socket.say(type="open", stream=2, tensors=[shape])
        no_room, late = await socket.hear(), await socket.hear()
        await socket.say(type="open", stream=2, tensors=[shape], options={"max_tokens": 1})
        await socket.feed(2, b"x" * 1600)
        return no_room, late, (await socket.hear_all(2))[2][-1]

    client = gateway(RoteListener(), body_s=0.2, body_budget_bytes=2000)
    no_room, late, after = talk(client, scenario)
    assert (no_room["stream"], "hands full of uploads" in no_room["error"]["message"]) == (2, True)
    assert (late["stream"], late["error"]["message"]) == (1, "the tensors did not come within 0.2 seconds")
    assert after["type"] == "done"


@pytest.mark.parametrize(("limits", "again_s"), [({"places": 0}, 2.5), ({"max_streams": 0}, 1.0)])
def test_no_room(gateway: Open, limits: dict[str, int], again_s: float) -> None:
    async def scenario(socket: Socket) -> Told:
        await socket.say(type="open", stream=1, prompt="x")
        return await socket.hear()

    settings = {name: value for name, value in limits.items() if name != "places"}
    told = talk(gateway(Rote(places=limits.get("places", 1)), **settings), scenario)
    assert (told["error"]["code"], told["retry_after_s"]) == ("rate_limit_exceeded", again_s)


def test_leaving_ends_all(gateway: Open) -> None:
    async def scenario(socket: Socket) -> None:
        for stream in range(3):
            await socket.say(type="open", stream=stream, prompt="x", options={"max_tokens": 500})
        await socket.hear()

    client = gateway(rote := Rote(gap_s=0.005))
    talk(client, scenario)
    for _ in range(100):
        if rote.cancelled == 3:
            break
        client.get("/readyz")
    assert (rote.open, rote.cancelled) == (0, 3)


def test_tokens_and_origins(gateway: Open, tmp_path: Path) -> None:
    """Web pages cannot set headers, so the token may come as a subprotocol."""
    path = tmp_path / "tokens"
    path.write_text("anna anna-0123456789abcdef\n")
    path.chmod(0o600)
    client = gateway(rote := Rote(), api_keys=path, allow_origins=("https://page.example",))

    async def scenario(socket: Socket) -> Told:
        await socket.say(type="open", stream=1, prompt="x", options={"max_tokens": 1})
        return (await socket.hear_all(1))[1][-1]

    async def run(protocols: tuple[str, ...], origin: str) -> int:
        async with aiohttp.ClientSession() as session:
            url = f"http://{client.host}:{client.port}/v1/stream"
            try:
                async with session.ws_connect(url, protocols=protocols, origin=origin) as socket:
                    await scenario(Socket(socket))
                    return 101
            except aiohttp.WSServerHandshakeError as error:
                return int(error.status)

    mine = ("flagsplit.v1", "bearer.anna-0123456789abcdef")
    assert asyncio.run(run(mine, "https://page.example")) == 101
    assert asyncio.run(run(("flagsplit.v1", "bearer.wrong"), "https://page.example")) == 401
    assert asyncio.run(run(mine, "https://evil.example")) == 403
    assert [wanted.client for wanted in rote.asked] == ["anna"]


def test_the_end_waits_for_streams_of_a_socket() -> None:
    from flagsplit.apps.decoder_service.gateway import Gateway
    from flagsplit.apps.decoder_service.gateway_settings import GatewaySettings

    gateway = Gateway([Rote(gap_s=0.005)], GatewaySettings("127.0.0.1:0", drain_s=5.0))
    host, _, port = gateway.url.removeprefix("http://").rpartition(":")

    async def scenario(socket: Socket) -> tuple[Told, Any]:
        await socket.say(type="open", stream=1, prompt="x", options={"max_tokens": 40})
        await socket.hear()
        closing = asyncio.create_task(asyncio.to_thread(gateway.close))
        told = (await socket.hear_all(1))[1]
        left = await socket._socket.receive(timeout=5)
        await closing
        return told[-1], left

    done, left = talk(Client(host, int(port)), scenario)
    assert done["reason"] == "length"
    assert (left.type, left.data) == (aiohttp.WSMsgType.CLOSE, 1001)
