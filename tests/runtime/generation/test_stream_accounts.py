"""On whose account streams are: a share of a service is a client's, not a session's."""

from collections.abc import Callable, Mapping
from pathlib import Path

from tests.runtime.generation.test_stream_machine import Desk

from flagsplit.runtime.generation.client import ClientSettings, StreamClient
from flagsplit.runtime.generation.engine import GenerationEngine
from flagsplit.runtime.generation.events import Event, Generate
from flagsplit.runtime.generation.options import GenerationOptions
from flagsplit.runtime.generation.service import ServiceProgram, ServiceSettings, StreamService
from flagsplit.runtime.generation.service_machine import StreamFacts
from flagsplit.runtime.generation.stream_spec import StreamSpec
from flagsplit.runtime.generation.testing import HashModel, hidden, tiny_facts
from flagsplit.runtime.worker_machine import WorkerHooks
from flagsplit.targets.interface import Array
from flagsplit.transport.security import KeyStore
from flagsplit.transport.zeromq import ZmqChannel


def test_streams_of_one_key_are_on_one_account() -> None:
    """However many sessions it opens, and whatever it calls its streams."""
    desk = Desk()
    accounts = set()
    for number in range(3):
        sid = f"{number:032x}"
        desk.connect(sid, "a key")
        accounts.add(desk.begun(sid=sid, spec=StreamSpec(stream=f"stream {number}")).client)
    assert accounts == {"a key"}
    assert desk.machine.stats().clients.keys() == {"a key"}


def test_without_keys_each_session_is_a_client() -> None:
    desk = Desk()
    sids = [f"{number:032x}" for number in range(3)]
    for sid in sids:
        desk.connect(sid)
    assert [desk.begun(sid=sid).client for sid in sids] == sids


def test_who_may_pass_on_others_streams_says_whose_they_are() -> None:
    desk, sid = Desk(WorkerHooks(is_worker=lambda key: key == "a gateway's")), "7" * 32
    desk.connect(sid, "a gateway's")
    users = [
        desk.begun(sid=sid, rid=rid, spec=StreamSpec(stream=user)).client
        for rid, user in enumerate(("ann", "bob", "ann", ""))
    ]
    assert users == ["a gateway's/ann", "a gateway's/bob", "a gateway's/ann", "a gateway's"]


def test_all_connections_of_a_key_are_one_client_of_a_service(tmp_path: Path) -> None:
    """What a stream is called counts where the key is the service's own, as that of a gateway beside it."""
    program = ServiceProgram("p" * 64, ("phone", "cloud"), "cloud", StreamFacts({"cut": ("hidden",)}, 32, (1,)))
    host, other = KeyStore(tmp_path / "host"), KeyStore(tmp_path / "other")
    host.authorize("other", other.public_key)
    seen: list[str] = []

    class Engine(GenerationEngine):
        def submit(self, request: Generate) -> None:
            seen.append(request.client)
            super().submit(request)

    def engine(emit: Callable[[Event], None]) -> Engine:
        return Engine(HashModel(4, tiny_facts()), emit)

    def same(_cut: str, tensors: Mapping[str, Array]) -> Mapping[str, Array]:
        return tensors

    settings = ServiceSettings(hooks=WorkerHooks(is_worker=host.is_worker))
    service = StreamService(program, engine, same, ZmqChannel(security=host.security()), "tcp://127.0.0.1:0", settings)
    other.trust(service.address, host.public_key)
    try:
        for keys, name in ((host, ""), (host, ""), (host, "ann"), (other, ""), (other, "ann")):
            chosen = ClientSettings(keys=keys.directory, connect_s=10.0)
            with StreamClient([service.address], program.digest, settings=chosen) as client:
                client.stream(hidden(1), GenerationOptions(max_tokens=3), plan="cut", name=name).result(10)
    finally:
        service.stop()
    ours, others = host.public_key, other.public_key
    assert seen == [ours, ours, f"{ours}/ann", others, others]
