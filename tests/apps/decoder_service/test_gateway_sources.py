"""Gateways over real engines: one in the process, which a service shares, and services on sockets."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from tests.apps.decoder_service.conftest import Open
from tests.apps.decoder_service.rote import ByteTokenizer

from flagsplit.apps.decoder_service.engine_hub import EngineHub
from flagsplit.apps.decoder_service.gateway import Gateway
from flagsplit.apps.decoder_service.gateway_backend import Backend, BusyError, Wanted
from flagsplit.apps.decoder_service.gateway_errors import api_error
from flagsplit.apps.decoder_service.gateway_program import GatewayRecognizer, ProgramBackend, model_facts
from flagsplit.apps.decoder_service.gateway_source import ClientSource, EngineSource
from flagsplit.apps.decoder_service.program_source import ProgramSource, Remainders
from flagsplit.apps.speech.features import sound_input
from flagsplit.apps.speech.recognizer import SpeechFacts
from flagsplit.errors import ConfigError, InputError, UnavailableError
from flagsplit.runtime.generation.admission import SchedulerSettings
from flagsplit.runtime.generation.client import ClientSettings, StreamClient
from flagsplit.runtime.generation.engine import GenerationEngine
from flagsplit.runtime.generation.events import Event, Generate, Tokens
from flagsplit.runtime.generation.options import GenerationOptions
from flagsplit.runtime.generation.sequential import generate
from flagsplit.runtime.generation.service import ServiceProgram, StreamService
from flagsplit.runtime.generation.service_machine import StreamFacts
from flagsplit.runtime.generation.testing import HashModel, tiny_facts
from flagsplit.runtime.generation.token_stream import TokenStream
from flagsplit.targets.interface import Array, LoadOptions
from flagsplit.transport.security import KeyStore
from flagsplit.transport.zeromq import ZmqChannel

FACTS = tiny_facts(kind="decoder-only", input="text", vocabulary=256, max_positions=128, prompt=())
EARS = tiny_facts(vocabulary=256, sample_rate_hz=4)


def same(plan: str, tensors: Mapping[str, Array]) -> Mapping[str, Array]:
    if plan == "broken":
        raise InputError("expected other tensors")
    return {"hidden": tensors["audio"].reshape(1, -1, 2)} if "audio" in tensors else tensors


def make_hub(facts: Any = FACTS, slots: int = 4, step_s: float = 0.0, **limits: int) -> EngineHub:
    return EngineHub(
        lambda emit: GenerationEngine(
            HashModel(slots, facts, step_s=step_s, stop_share=0), emit, SchedulerSettings(**limits)
        )
    )


def text_of(prompt: str, options: GenerationOptions) -> str:
    return ByteTokenizer().decode(generate(HashModel(1, FACTS, stop_share=0), None, tuple(prompt.encode()), options))


@pytest.fixture
def sources() -> Iterator[Callable[..., EngineSource]]:
    """Sources of engines; they end with the test."""
    with ExitStack() as stack:

        def start(hub: EngineHub, **options: Any) -> EngineSource:
            found = EngineSource(hub.user, same, "cloud", **options)
            stack.callback(found.close)
            return found

        yield start


@pytest.fixture
def client_sources() -> Iterator[Callable[[StreamClient], ClientSource]]:
    """Sources of services; they end with the test."""
    with ExitStack() as stack:

        def start(client: StreamClient) -> ClientSource:
            found = ClientSource(client, "all", 0.3)
            stack.callback(found.close)
            return found

        yield start


def backend(source: Any, facts: Any = FACTS) -> Backend:
    return ProgramBackend(model_facts(facts), ByteTokenizer(), source)


def test_completions_are_those_of_the_sequential_loop(gateway: Open, sources: Callable[..., EngineSource]) -> None:
    client = gateway(backend(sources(make_hub())))
    asked = {"model": "hashed", "prompt": ["one", "two"], "n": 3, "max_tokens": 20, "temperature": 0.7, "seed": 5}
    expected = [
        text_of(prompt, GenerationOptions(max_tokens=20, temperature=0.7, seed=5 + copy))
        for prompt in ("one", "two")
        for copy in range(3)
    ]
    assert [each["text"] for each in client.complete(**asked).data["choices"]] == expected
    streamed = [""] * 6
    for event in client.complete(**asked, stream=True).events[:-1]:
        streamed[event["choices"][0]["index"]] += event["choices"][0]["text"]
    assert streamed == expected


def test_a_stop_string_frees_the_slot(gateway: Open, sources: Callable[..., EngineSource]) -> None:
    hub = make_hub(slots=1, step_s=0.002)
    client = gateway(backend(sources(hub)))
    whole = text_of("x", GenerationOptions(max_tokens=100))
    found = client.complete(prompt="x", max_tokens=100, temperature=0, stop=whole[3:5]).data["choices"][0]
    assert (found["text"], found["finish_reason"]) == (whole[: whole.index(whole[3:5])], "stop")
    assert client.complete(prompt="x", max_tokens=2, temperature=0).data["choices"][0]["text"] == whole[:2]


def test_no_room_in_the_engine(gateway: Open, sources: Callable[..., EngineSource]) -> None:
    client = gateway(backend(sources(make_hub(slots=1, step_s=0.01, max_waiting=1))))
    found = client.complete(prompt="x", n=3, max_tokens=20)
    assert (found.status, int(found.headers["retry-after"]) >= 1) == (429, True)
    # Those that were cancelled leave with the next step.
    while (again := client.complete(prompt="x", max_tokens=2)).status == 429:
        pass
    assert again.status == 200


def test_deadlines_and_refusals(sources: Callable[..., EngineSource]) -> None:
    source = sources(make_hub(step_s=0.02), not_ready=lambda: "it is Sunday")
    late = source.stream(Wanted("c", GenerationOptions(max_tokens=100, deadline_s=0.1), (1, 2)))
    assert len(late.result(5.0)) < 100
    assert late.reason == "deadline"
    with pytest.raises(InputError, match="other tensors"):
        source.stream(Wanted("c", plan="broken", tensors={"hidden": np.zeros(1, np.float32)}))
    with pytest.raises(InputError):
        source.stream(Wanted("c", prompt=(1, 999))).result(5.0)
    assert source.not_ready() == "it is Sunday"
    left = source.stream(Wanted("c", GenerationOptions(max_tokens=100), (1, 2)))
    next(left)
    source.close()
    assert left.result(5.0) is not None
    assert left.reason == "cancelled"
    with pytest.raises(UnavailableError):
        source.stream(Wanted("c", prompt=(1, 2))).result(5.0)


def test_two_users_of_one_engine_do_not_hear_each_other(sources: Callable[..., EngineSource]) -> None:
    hub = make_hub(step_s=0.001)
    heard: list[Event] = []
    over = threading.Event()

    def hear(event: Event) -> None:
        heard.append(event)
        if isinstance(event, Tokens) and event.done:
            over.set()

    service = hub.user(hear)
    service.start()
    source = sources(hub)
    options = GenerationOptions(max_tokens=30)
    service.submit(Generate("1", "phone", None, (7, 8), options=options))
    mine = source.stream(Wanted("c", options, (9, 8)))
    assert mine.result(5.0) == tuple(generate(HashModel(1, FACTS, stop_share=0), None, (9, 8), options))
    assert over.wait(5.0)
    assert {event.stream_id for event in heard} == {"1"}
    found = [token for event in heard if isinstance(event, Tokens) for token in event.tokens]
    assert found == list(generate(HashModel(1, FACTS, stop_share=0), None, (7, 8), options))
    source.close()
    service.submit(Generate("2", "phone", None, (7, 8), options=options))
    over.clear()
    assert over.wait(5.0)
    service.stop()
    service.stop()


def test_a_recognizer_that_is_closed_ends_its_stream(sources: Callable[..., EngineSource]) -> None:
    source = sources(make_hub(EARS, step_s=0.01))
    about = SpeechFacts("all-cloud", EARS, sound_input(EARS, "audio", (1, "samples")), ByteTokenizer())
    turns = threading.Semaphore(1)
    ear = GatewayRecognizer(about, source, Wanted("c", GenerationOptions(max_tokens=60)), turns)
    heard = ear.recognize(np.ones(8, np.float32))
    assert next(heard).where == "cloud"
    listened = ear.wanted([np.ones(20_000, np.float32)])
    assert [len(next(listened)) for _ in range(2)] == [8000, 8000]
    assert turns.acquire(blocking=False)  # It waits for tokens.
    turns.release()
    ear.close()
    assert list(listened) == []
    assert len(list(heard)) < 50
    assert turns.acquire(blocking=False)
    assert not turns.acquire(blocking=False)
    turns.release()
    assert list(ear.recognize(np.ones(8, np.float32))) == []


@pytest.mark.slow
def test_over_services(
    gateway: Open,
    tmp_path: Path,
    sources: Callable[..., EngineSource],
    client_sources: Callable[[StreamClient], ClientSource],
) -> None:
    """A gateway of its own asks a service by sockets; the service shares its engine with a gateway beside it."""
    hub = make_hub(step_s=0.001, slots=2)
    keys = KeyStore(tmp_path / "keys")
    program = ServiceProgram("p" * 64, ("phone", "cloud"), "cloud", StreamFacts({"all": ()}, 256))
    channel = ZmqChannel(security=keys.security())
    service = StreamService(program, hub.user, same, channel, "tcp://127.0.0.1:0")
    try:
        settings = ClientSettings(keys=tmp_path / "keys", connect_s=10.0)
        with StreamClient([service.address], program.digest, settings=settings) as asking:
            far = gateway(backend(client_sources(asking)))
            near = gateway(backend(sources(hub)))
            options = GenerationOptions(max_tokens=30, temperature=0.5, seed=1)
            source = client_sources(asking)
            whole = source.stream(Wanted("c", options, (5, 6))).result(5.0)
            rest = source.stream(Wanted("c", options, (5, 6), whole[:10])).result(5.0)
            assert rest == whole[10:]
            assert far.get("/readyz").status == 200
            asked = {"prompt": "far", "max_tokens": 30, "temperature": 0.5, "seed": 1}
            expected = text_of("far", GenerationOptions(max_tokens=30, temperature=0.5, seed=1))
            for client in (far, near):
                found = client.complete(**asked)
                assert found.status == 200, found.body
                assert found.data["choices"][0]["text"] == expected
            hub._engine._model._step_s = 0.05  # type: ignore[attr-defined]
            long = GenerationOptions(max_tokens=100)
            held = [source.stream(Wanted("c", long, (5, number))) for number in range(2)]
            for each in held:
                next(each)
            full = far.complete(prompt="more", max_tokens=5)
            assert (full.status, full.headers["retry-after"]) == (429, "5")
            assert "no decoder service had room" in full.error
            for each in held:
                each.cancel()
    finally:
        service.stop()


class Silent:
    """A client whose services make no tokens."""

    def __init__(self, state: str) -> None:
        self.replicas = {"tcp://a:1": state}

    def stream(self, *_: object, **__: object) -> TokenStream:
        return TokenStream(1, lambda _rid: None)


def test_services_that_are_not_there_are_not_busy() -> None:
    """Clients that have a quota would wait for theirs to be free again; of hosts and keys they hear nothing."""
    source = ClientSource(cast("StreamClient", Silent("it refused our key abc")), "all", first_s=0.02)
    with pytest.raises(UnavailableError, match=r"no decoder service was there within 0\.02 s") as said:
        source.stream(Wanted("c", GenerationOptions(), (5,))).result(5)
    assert not isinstance(said.value, BusyError)
    assert api_error(said.value).status == 503
    source.close()


def test_a_search_may_be_without_a_token_for_longer_than_others() -> None:
    source = ClientSource(cast("StreamClient", Silent("up")), "all", first_s=0.02)
    search = source.stream(Wanted("c", GenerationOptions(beams=2), (5,)))
    other = source.stream(Wanted("c", GenerationOptions(), (5,)))
    with pytest.raises(BusyError, match="no decoder service had room"):
        other.result(5)
    assert not search.is_over
    source.close()


@pytest.mark.skipif(find_spec("aiohttp") is not None, reason="aiohttp is installed")
def test_without_aiohttp(sources: Callable[..., EngineSource]) -> None:
    with pytest.raises(ConfigError, match=r'needs aiohttp, which is not installed; pip install "flagsplit\[gateway\]"'):
        Gateway([backend(sources(make_hub()))])


def test_a_rest_of_an_encoder_runs_once_at_a_time() -> None:
    """A service and a gateway beside it ask from threads of their own."""
    running: list[int] = []

    class Slow:
        inputs = outputs = ()

        def run(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
            assert not running
            running.append(1)
            time.sleep(0.01)
            running.pop()
            return dict(tensors)

        def close(self) -> None:
            pass

    source = ProgramSource("", "", (), FACTS, {}, Path(), {"cut": lambda _: Slow()})
    rest = Remainders(source, LoadOptions())
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(lambda _: rest("cut", {}), range(8))) == [{}] * 8
    rest.close()
