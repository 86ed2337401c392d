"""Moonshine behind a gateway: real speech comes out as its words, and what is no speech is told or comes out empty."""

import asyncio
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.apps.decoder_service.conftest import Client
from tests.apps.speech.wav_files import chunk, fmt, pcm16, riff

from flagsplit.apps import zoo
from flagsplit.apps.decoder_service.bundle_source import open_source
from flagsplit.apps.decoder_service.gateway_beside import GatewayBeside
from flagsplit.apps.decoder_service.gateway_settings import GatewaySettings
from flagsplit.apps.decoder_service.serve import DecoderService, DecoderSettings
from flagsplit.apps.speech.wav import WavReader
from flagsplit.apps.speech.words import normalized
from flagsplit.errors import PeerError
from flagsplit.transport.security import KeyStore
from flagsplit.transport.zeromq import ZmqChannel

aiohttp = pytest.importorskip("aiohttp")
pytestmark = pytest.mark.slow

BECKETT = "Ever tried, ever failed, no matter, try again, fail again, fail better."


@pytest.fixture(scope="module")
def recording() -> Path:
    try:
        for name in ("silero-vad", "moonshine-encoder", "moonshine-decoder", "moonshine-tokenizer"):
            zoo.pull(name)
        return zoo.pull("beckett.wav")
    except PeerError as error:
        pytest.skip(f"offline: {error}")


@pytest.fixture(scope="module")
def client(recording: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    assert recording.is_file()
    channel = ZmqChannel(security=KeyStore(tmp_path_factory.mktemp("keys") / "keys").security())
    settings = DecoderSettings(slots=2, threads=1)
    service = DecoderService(open_source("zoo:moonshine", "cloud"), channel, "tcp://127.0.0.1:0", settings)
    try:
        beside = GatewayBeside(service, GatewaySettings("127.0.0.1:0"))
        try:
            host, _, port = beside.url.removeprefix("http://").rpartition(":")
            yield Client(host, int(port))
        finally:
            beside.close()
    finally:
        service.stop()


def test_words_of_a_recording(client: Client, recording: Path) -> None:
    found = client.transcribe(recording.read_bytes(), response_format="verbose_json")
    assert found.data["text"] == BECKETT
    assert [segment["text"] for segment in found.data["segments"]] == [BECKETT]
    assert 0 < found.data["segments"][0]["start"] < found.data["segments"][0]["end"] <= found.data["duration"] + 0.1
    *deltas, done = client.transcribe(recording.read_bytes(), stream="true").events
    assert "".join(event["delta"] for event in deltas) == done["text"] == BECKETT


def test_44100_samples_of_two_channels(client: Client, recording: Path) -> None:
    with WavReader(recording) as reader:
        samples = np.concatenate(list(reader.blocks(44_100)))
    stereo = np.repeat(samples, 2)
    assert normalized(client.transcribe(pcm16(stereo, 44_100, 2)).data["text"]) == normalized(BECKETT)


def test_a_header_that_claims_more_than_there_is(client: Client) -> None:
    data = riff([fmt(), chunk(b"data", b"\0\0" * 16_000, size=1 << 30)])
    assert client.transcribe(data).data == {"text": "", "usage": {"type": "duration", "seconds": 1.0}}


@pytest.mark.parametrize("seconds", [0.01, 3.0])
def test_silence(client: Client, seconds: float) -> None:
    found = client.transcribe(pcm16(np.zeros(int(16_000 * seconds), np.float32)))
    assert (found.status, found.data["text"]) == (200, "")


@pytest.mark.parametrize("data", [b"", b"hello, is this on?", pcm16(np.zeros(0, np.float32)), b"RIFF" + b"\xff" * 40])
def test_what_is_no_recording(client: Client, data: bytes) -> None:
    found = client.transcribe(data)
    assert (found.status, found.data["error"]["type"]) == (400, "invalid_request_error")
    assert "/tmp" not in found.error
    assert "\n" not in found.error


def test_hidden_states_of_a_phone(client: Client, recording: Path) -> None:
    """What a browser that ran the encoder sends: the tokens are those of the words."""
    from flagsplit.apps.decoder_service.program_source import Remainders
    from flagsplit.targets.interface import LoadOptions

    source = open_source("zoo:moonshine", "cloud")
    with WavReader(recording) as reader:
        samples = np.concatenate(list(reader.blocks(16_000)))
    encoder = Remainders(source, LoadOptions(threads=1))
    hidden = encoder("audio", {"audio": samples[None]})["hidden"]
    encoder.close()

    async def ask() -> list[dict[str, Any]]:
        found = list[dict[str, Any]]()
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"http://{client.host}:{client.port}/v1/stream", protocols=("flagsplit.v1",)) as socket,
        ):
            tensor = {"name": "hidden", "dtype": "float32", "shape": list(hidden.shape)}
            await socket.send_str(json.dumps({"type": "open", "stream": 1, "plan": "hidden", "tensors": [tensor]}))
            data = np.ascontiguousarray(hidden).tobytes()
            for place in range(0, len(data), 1 << 19):
                part = data[place : place + (1 << 19)]
                await socket.send_bytes(struct.pack("<IHH", 1, 0, place + len(part) == len(data)) + part)
            while not found or found[-1]["type"] == "tokens":
                found.append(json.loads((await socket.receive(timeout=20)).data))
        return found

    *told, done = asyncio.run(ask())
    assert done == {"type": "done", "stream": 1, "reason": "stop"}
    assert "".join(each["text"] for each in told).strip() == BECKETT
