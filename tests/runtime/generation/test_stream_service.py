"""The service and the client of token streams on real threads and sockets, with CURVE, in one process."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import numpy as np
import pytest

from flagsplit.errors import ConfigError, InputError, PeerError, UnavailableError
from flagsplit.runtime.generation.admission import SchedulerSettings
from flagsplit.runtime.generation.client import ClientSettings, StreamClient
from flagsplit.runtime.generation.client_streams import ClientOptions
from flagsplit.runtime.generation.engine import GenerationEngine
from flagsplit.runtime.generation.options import GenerationOptions
from flagsplit.runtime.generation.own_parts import SequentialLoop
from flagsplit.runtime.generation.sequential import events, generate
from flagsplit.runtime.generation.service import Encode, ServiceProgram, ServiceSettings, StreamService
from flagsplit.runtime.generation.service_machine import StreamFacts
from flagsplit.runtime.generation.stream_events import Place
from flagsplit.runtime.generation.testing import HashModel, hidden, tiny_facts
from flagsplit.runtime.generation.token_stream import TokenStream
from flagsplit.runtime.telemetry.settings import TelemetrySettings
from flagsplit.runtime.worker_machine import WorkerOptions
from flagsplit.targets.interface import Array
from flagsplit.transport.security import KeyStore
from flagsplit.transport.zeromq import ZmqChannel

FACTS = tiny_facts()
PROGRAM = ServiceProgram(
    "p" * 64, ("phone", "cloud"), "cloud", StreamFacts({"cut": ("hidden",)}, FACTS.vocabulary, FACTS.prompt)
)
OPTIONS = GenerationOptions(max_tokens=40)


def same(_cut: str, tensors: Mapping[str, Array]) -> Mapping[str, Array]:
    return tensors


def wanted(number: int, options: GenerationOptions = OPTIONS) -> tuple[int, ...]:
    return tuple(generate(HashModel(1), hidden(number), (), options))


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """A key folder whose client the server lets in."""
    folder = tmp_path / "keys"
    KeyStore(folder).security()
    return folder


@pytest.fixture
def serve(keys: Path) -> Iterator[Callable[..., StreamService]]:
    """Starts services; all end with the test."""
    started: list[StreamService] = []

    def start(
        *, step_s: float = 0.0, slots: int = 4, kv_bytes: int = 1 << 20, encode: Encode = same, **options: object
    ) -> StreamService:
        settings = ServiceSettings(WorkerOptions(max_bundle_bytes=0, **options))  # type: ignore[arg-type]
        service = StreamService(
            PROGRAM,
            lambda emit: GenerationEngine(HashModel(slots, step_s=step_s), emit, SchedulerSettings(kv_bytes)),
            encode,
            ZmqChannel(security=KeyStore(keys).security()),
            "tcp://127.0.0.1:0",
            settings,
        )
        started.append(service)
        return service

    yield start
    for service in started:
        service.stop()


def connect(keys: Path, *services: StreamService, **changes: object) -> StreamClient:
    settings = ClientSettings(keys=keys, connect_s=10.0, machine=ClientOptions(local_after_s=0.2))
    return StreamClient([each.address for each in services], PROGRAM.digest, settings=settings, **changes)  # type: ignore[arg-type]


def test_streams_of_many_threads_are_those_of_the_sequential_loop(
    keys: Path, serve: Callable[..., StreamService]
) -> None:
    service = serve()
    with connect(keys, service) as client:
        streams = [client.stream(hidden(number), OPTIONS, plan="cut") for number in range(12)]
        for number, stream in enumerate(streams):
            found = list(stream)
            assert tuple(each.token for each in found) == wanted(number)
            assert [each.offset for each in found] == list(range(len(found)))
            assert {each.place for each in found} <= {Place("cloud", service.address)}
            assert [each.at_s for each in found] == sorted(each.at_s for each in found)
            assert stream.reason in ("stop", "length")
        assert client.live == 0
    until(lambda: service.stats().flights == 0)


def test_the_asyncio_twin_gives_the_same(keys: Path, serve: Callable[..., StreamService]) -> None:
    async def read(client: StreamClient, number: int) -> tuple[int, ...]:
        return tuple([each.token async for each in client.stream(hidden(number), OPTIONS, plan="cut")])

    async def all_of_them(client: StreamClient) -> list[tuple[int, ...]]:
        return await asyncio.gather(*(read(client, number) for number in range(6)))

    with connect(keys, serve(step_s=0.001)) as client:
        assert asyncio.run(all_of_them(client)) == [wanted(number) for number in range(6)]


def test_a_service_that_stops_hands_its_streams_to_another(keys: Path, serve: Callable[..., StreamService]) -> None:
    services = [serve(step_s=0.005), serve(step_s=0.005)]
    with connect(keys, *services) as client:
        streams = [client.stream(hidden(number), OPTIONS, plan="cut", key="k") for number in range(4)]
        longest = max(range(4), key=lambda number: len(wanted(number)))
        first = next(streams[longest])
        (stopped,) = (each for each in services if each.address == first.place.replica)
        stopped.stop()
        assert [each.result(30) for each in streams] == [wanted(number) for number in range(4)]
        assert len(set(streams[longest].where)) == 2


def test_without_any_replica_this_process_goes_on(keys: Path, serve: Callable[..., StreamService]) -> None:
    service = serve(step_s=0.005)
    number = max(range(20), key=lambda each: len(wanted(each)))
    with connect(keys, service, local=SequentialLoop(HashModel(1))) as client:
        stream = client.stream(hidden(number), OPTIONS, plan="cut")
        next(stream)
        service.stop()
        assert stream.result(30) == wanted(number)
        assert [stream.where[0].tier, stream.where[-1].tier] == ["cloud", "phone"]
        assert client.stream(hidden(3), OPTIONS, plan="cut").result(30) == wanted(3)


def test_scores_stay_whole_when_a_stream_moves(keys: Path, serve: Callable[..., StreamService]) -> None:
    service = serve(step_s=0.005)
    number = max(range(20), key=lambda each: len(wanted(each)))
    scored = replace(OPTIONS, logprobs=True)
    expected = [score for each in events(HashModel(1), hidden(number), (), scored) for score in each.logprobs]
    with connect(keys, service, local=SequentialLoop(HashModel(1))) as client:
        stream = client.stream(hidden(number), scored, plan="cut")
        next(stream)
        service.stop()
        assert stream.result(30) == wanted(number)
        assert [stream.where[0].tier, stream.where[-1].tier] == ["cloud", "phone"]
        assert list(stream.scores.logprobs) == expected
        assert len(expected) == len(wanted(number)) + (stream.reason == "stop")


def test_a_drained_service_ends_by_itself_when_its_streams_are_over(
    keys: Path, serve: Callable[..., StreamService]
) -> None:
    service = serve(step_s=0.002)
    number = max(range(20), key=lambda each: len(wanted(each)))
    with connect(keys, service) as client:
        stream = client.stream(hidden(number), OPTIONS, plan="cut")
        next(stream)
        service.drain()
        assert stream.result(30) == wanted(number)
        assert service.wait(10)
        assert service.drained.is_set()
        late = client.stream(hidden(1), OPTIONS, plan="cut", deadline_s=0.5)
        with pytest.raises(UnavailableError):
            late.result(10)


def test_cancelling_and_deadlines_end_streams_with_what_they_have(
    keys: Path, serve: Callable[..., StreamService]
) -> None:
    service = serve(step_s=0.02)
    number = max(range(20), key=lambda each: len(wanted(each)))
    with connect(keys, service) as client:
        cancelled = client.stream(hidden(number), OPTIONS, plan="cut")
        first = next(cancelled)
        cancelled.cancel()
        rest = tuple(each.token for each in cancelled)
        assert (first.token, *rest) == wanted(number)[: 1 + len(rest)]
        assert cancelled.reason == "cancelled"
        late = client.stream(hidden(number), OPTIONS, plan="cut", deadline_s=0.2)
        assert late.result(10) == wanted(number)[: len(late.made)]
        assert late.reason == "deadline"
        until(lambda: service.stats().flights == 0)


def test_leaving_a_stream_cancels_it(keys: Path, serve: Callable[..., StreamService]) -> None:
    begun: list[TokenStream] = []

    async def read(client: StreamClient) -> None:
        async with client.stream(hidden(number), OPTIONS, plan="cut") as stream:
            begun.append(stream)
            async for _ in stream:
                pass

    service = serve(step_s=0.02)
    number = max(range(20), key=lambda each: len(wanted(each)))
    with connect(keys, service) as client:
        with pytest.raises(asyncio.TimeoutError):
            asyncio.run(asyncio.wait_for(read(client), 0.1))
        assert len(begun[0].result(5)) < len(wanted(number))
        assert begun[0].reason == "cancelled"
        with client.stream(hidden(number), OPTIONS, plan="cut") as stream:
            next(stream)
        assert len(stream.result(5)) < len(wanted(number))
        assert stream.reason == "cancelled"
        until(lambda: service.stats().flights == 0)


def test_a_client_without_replicas_goes_on_at_once(keys: Path) -> None:
    with connect(keys, local=SequentialLoop(HashModel(1))) as client:
        began = time.monotonic()
        assert client.stream(hidden(3), OPTIONS, plan="cut").result(10) == wanted(3)
        assert time.monotonic() - began < 0.2 + 1.0


def test_an_address_that_is_none_is_said_at_once(keys: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        StreamClient(["nowhere"], PROGRAM.digest, settings=ClientSettings(keys=keys))


def test_what_a_model_cannot_run_on_is_an_input_error(keys: Path, serve: Callable[..., StreamService]) -> None:
    with connect(keys, serve()) as client:
        wrong = client.stream({"hidden": np.zeros((1, 3, 7), np.float32)}, OPTIONS, plan="cut")
        with pytest.raises(InputError, match="hidden"):
            wrong.result(10)
        with pytest.raises(InputError, match="nan"):
            client.stream(hidden(1), OPTIONS, plan="cut", deadline_s=float("nan"))
        with pytest.raises(InputError, match="layers"):
            client.stream_rows((1,), OPTIONS)


@pytest.mark.parametrize(
    "asked",
    [
        {"prompt": "abc"},
        {"prompt": (1.5,)},
        {"prompt": (-1,)},
        {"prompt": (1 << 40,)},
        {"prompt": 7},
        {"delivered": (None,)},
        {"delivered": (1,) * (OPTIONS.max_tokens + 1)},
        {"plan": 5},
        {"plan": "x" * 129},
        {"plan": "\ud800"},
        {"tensors": {"x" * 257: np.zeros(1)}},
        {"tensors": {5: np.zeros(1)}},
        {"tensors": {f"x{each}": np.zeros(1) for each in range(256)}},
        {"key": b"a"},
        {"name": None},
        {"input_s": float("nan")},
        {"input_s": -1.0},
        {"input_s": "1"},
    ],
    ids=lambda asked: str(asked)[:40].encode("ascii", "replace").decode(),
)
def test_what_is_no_stream_is_refused_and_hurts_no_other(
    keys: Path, serve: Callable[..., StreamService], asked: dict[str, Any]
) -> None:
    """On the client's own thread it would end all streams; at a service it would be asked again until the deadline."""
    with connect(keys, serve()) as client:
        with pytest.raises(InputError, match=next(iter(asked)).removesuffix("s")):
            client.stream(**{"tensors": hidden(1), "options": OPTIONS, "plan": "cut", **asked})
        some = client.stream(hidden(3), OPTIONS, plan="cut", prompt=[*np.array([], np.int64)])
        assert some.result(10) == wanted(3)


def test_what_an_encoder_refuses_is_an_input_error_at_once(keys: Path, serve: Callable[..., StreamService]) -> None:
    """No other replica is asked, nor this process: nobody could."""
    asked: list[str] = []

    def refuse(cut: str, _tensors: Mapping[str, Array]) -> Mapping[str, Array]:
        asked.append(cut)
        raise InputError("hidden: expected at most 2 frames, came 3")

    services = [serve(encode=refuse), serve(encode=refuse)]
    with connect(keys, *services, local=SequentialLoop(HashModel(1))) as client:
        with pytest.raises(InputError, match=r"^hidden: expected at most 2 frames, came 3$"):
            client.stream(hidden(1), OPTIONS, plan="cut").result(10)
        assert asked == ["cut"]
        assert not client.moves


def test_an_encoder_that_breaks_is_tried_elsewhere(keys: Path, serve: Callable[..., StreamService]) -> None:
    def break_down(_cut: str, _tensors: Mapping[str, Array]) -> Mapping[str, Array]:
        raise MemoryError

    services = [serve(encode=break_down), serve()]
    with connect(keys, *services) as client:
        for number in range(4):
            assert client.stream(hidden(number), OPTIONS, plan="cut").result(10) == wanted(number)
        assert set(client.moves) == {"compute"}


def test_a_stream_too_large_for_one_replica_is_made_where_there_is_room(
    keys: Path, serve: Callable[..., StreamService]
) -> None:
    small, large = serve(kv_bytes=200), serve(kv_bytes=1000)
    with connect(keys, small, large) as client:
        streams = [client.stream(hidden(number), OPTIONS, plan="cut") for number in range(8)]
        assert [each.result(10) for each in streams] == [wanted(number) for number in range(8)]
        assert {place.replica for each in streams for place in each.where} == {large.address}
        assert client.moves["too-large"] > 0
    with connect(keys, small, local=SequentialLoop(HashModel(1))) as client:
        stream = client.stream(hidden(3), OPTIONS, plan="cut")
        assert stream.result(10) == wanted(3)
        assert set(stream.where) == {Place("phone")}


def test_a_stream_too_large_for_all_is_refused_in_one_line(keys: Path, serve: Callable[..., StreamService]) -> None:
    with (
        connect(keys, serve(kv_bytes=200), serve(kv_bytes=300)) as client,
        pytest.raises(InputError, match=r"^no replica has room for the stream; tcp://.*--kv-mb\)$"),
    ):
        client.stream(hidden(3), OPTIONS, plan="cut").result(10)


def test_a_loop_that_cannot_either_ends_the_stream_at_once(keys: Path, serve: Callable[..., StreamService]) -> None:
    begun: list[str] = []

    def refuse(cut: str, _tensors: Mapping[str, Array]) -> Mapping[str, Array]:
        begun.append(cut)
        raise InputError("too long for this phone")

    with (
        connect(keys, serve(kv_bytes=200), local=SequentialLoop(HashModel(1), refuse)) as client,
        pytest.raises(InputError, match="too long for this phone"),
    ):
        client.stream(hidden(3), OPTIONS, plan="cut").result(10)
    assert begun == ["cut"]


def test_closing_a_client_ends_its_streams_with_an_error(keys: Path, serve: Callable[..., StreamService]) -> None:
    service = serve(step_s=0.02)
    client = connect(keys, service)
    number = max(range(20), key=lambda each: len(wanted(each)))
    stream = client.stream(hidden(number), OPTIONS, plan="cut")
    next(stream)
    client.close()
    with pytest.raises(PeerError):
        stream.result(5)
    with pytest.raises(PeerError):
        client.stream(hidden(1), OPTIONS, plan="cut")
    until(lambda: service.stats().flights == 0)
    assert not [each for each in threading.enumerate() if each.name in ("flagsplit-streams", "flagsplit-own-parts")]


def test_a_service_whose_engine_fails_says_so(keys: Path) -> None:
    settings = ServiceSettings(WorkerOptions(max_bundle_bytes=0), TelemetrySettings("127.0.0.1:0"))
    service = StreamService(
        PROGRAM,
        lambda emit: GenerationEngine(HashModel(4, fails=lambda _: True), emit),
        same,
        ZmqChannel(security=KeyStore(keys).security()),
        "tcp://127.0.0.1:0",
        settings,
    )
    try:
        impatient = ClientSettings(keys=keys, machine=ClientOptions(max_failures=2, pause_s=0.01))
        with StreamClient([service.address], PROGRAM.digest, settings=impatient) as client:
            for number in range(3):
                with pytest.raises(UnavailableError, match="fail"):
                    client.stream(hidden(number), OPTIONS, plan="cut").result(30)
        with pytest.raises(HTTPError) as refused:
            urlopen(service.http + "/readyz", timeout=5)
        assert b"the engine fails" in refused.value.read()
        refused.value.close()
    finally:
        service.stop()


def test_a_stranger_is_not_served(keys: Path, tmp_path: Path, serve: Callable[..., StreamService]) -> None:
    service = serve()
    settings = ClientSettings(keys=tmp_path / "other", connect_s=0.5)
    with StreamClient([service.address], PROGRAM.digest, settings=settings) as client:
        with pytest.raises(UnavailableError):
            client.stream(hidden(1), OPTIONS, plan="cut", deadline_s=0.5).result(10)
        assert "up" not in client.replicas.values()
    assert service.stats().sessions == 0


def until(done: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 10
    while not done():
        assert time.monotonic() < give_up
        time.sleep(0.005)
