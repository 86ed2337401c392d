"""Who may speak, and for whom: keys that are wrong, unknown or revoked, authenticators that fail, names used twice."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from tests.chaos.served import ALONE, BY_CLOUD, SETTINGS, Oracle, Served
from tests.chaos.served import until as eventually
from tests.chaos.zmtp import RawPeer
from tests.runtime.bundles import inputs_of

import flagsplit
from flagsplit.runtime import shell
from flagsplit.runtime.session import Answer, Session
from flagsplit.transport import zeromq
from flagsplit.transport.channel import Received, Up
from flagsplit.transport.messages import VERSION, Cancel, Done, Hello, Lane, Message, Ping, Reject
from flagsplit.transport.security import KeyStore
from flagsplit.transport.testing import Recorder, until
from flagsplit.transport.zeromq import ZmqChannel

pytestmark = pytest.mark.slow

_SETTINGS = replace(SETTINGS, connect_s=3.0)
_RAISING = """
from flagsplit.transport.security import KeyStore
def broken(self, key):
    raise OSError("disk on fire")
KeyStore.is_authorized = broken
"""
# It answers for the two lanes of the first client.
_STOPPING = """
from flagsplit.transport.zap import ZapHandler
answer, asked = ZapHandler._answer, []
def stopping(self, request):
    asked.append(request)
    if len(asked) > 2:
        raise SystemExit
    return answer(self, request)
ZapHandler._answer = stopping
"""


@contextmanager
def _as(oracle: Oracle, keys: KeyStore, served: Served) -> Iterator[Session]:
    addresses = {"cloud": served.address}
    with flagsplit.connect(oracle.bundle, addresses, keys=keys.directory, settings=_SETTINGS) as session:
        yield session


def _is_refused(oracle: Oracle, keys: KeyStore, served: Served) -> str:
    """A session with these keys answers alone; why it does."""
    with _as(oracle, keys, served) as session:
        answer = session.run(inputs_of(1))
        oracle.check(answer, 1)
        assert answer.report.plan == ALONE
        eventually(lambda: session.tiers["cloud"] != "not heard of yet", "a word of the worker")
        return session.tiers["cloud"]


def test_unknown_wrong_and_revoked_keys(oracle: Oracle, cloud: Served, tmp_path: Path) -> None:
    ours, theirs = KeyStore(tmp_path), KeyStore()
    assert "server key" in _is_refused(oracle, ours, cloud)
    ours.trust(cloud.address, theirs.public_key)
    assert "refused our key" in _is_refused(oracle, ours, cloud)
    theirs.authorize("ours", ours.public_key)
    with _as(oracle, ours, cloud) as session:
        oracle.check_recovers(session)
        theirs.revoke("ours")
        # What is connected stays so until its connection ends; from then on the key opens nothing.
        oracle.check_recovers(session)
        assert "refused our key" in _is_refused(oracle, ours, cloud)
        cloud.kill()
        cloud.revive()
        eventually(lambda: session.run(inputs_of(2)).report.plan == ALONE, "the session to go on alone")
        eventually(lambda: "refused our key" in session.tiers["cloud"], "the refusal")
    oracle.check_serves(cloud)


def test_an_authenticator_that_raises_lets_nobody_in(oracle: Oracle, tmp_path: Path) -> None:
    with Served(oracle.bundle, {}, patch=_RAISING) as cloud:
        process_id = cloud.process.pid
        assert "authenticator" in _is_refused(oracle, KeyStore(), cloud)
        assert (cloud.process.pid, cloud.process.poll()) == (process_id, None)


def test_an_authenticator_that_stopped_lets_nobody_in(oracle: Oracle) -> None:
    """Who is in already is served on."""
    with Served(oracle.bundle, {}, patch=_STOPPING) as cloud, _as(oracle, KeyStore(), cloud) as session:
        oracle.check_recovers(session)
        _is_refused(oracle, KeyStore(), cloud)
        oracle.check_recovers(session)


def test_a_thief_of_an_instance(oracle: Oracle, cloud: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client with another key that gives the name of a session gets nothing, and the session loses nothing."""
    thief, theirs = KeyStore(tmp_path), KeyStore()
    theirs.authorize("thief", thief.public_key)
    thief.trust(cloud.address, theirs.public_key)
    with _as(oracle, theirs, cloud) as session:
        oracle.check_recovers(session)
        instance = session._machine._instance
        monkeypatch.setattr(zeromq, "new_instance", lambda: instance)
        _is_refused(oracle, thief, cloud)
        answer = session.run(inputs_of(3))
        oracle.check(answer, 3)
        assert (answer.report.plan, answer.report.attempts) == (BY_CLOUD, 1)
    theirs.revoke("thief")


def test_a_client_that_calls_itself_a_worker(oracle: Oracle, cloud: Served, tmp_path: Path) -> None:
    """Its key opens the door, and not other sessions' requests: it is told so, and none of its words is heard."""
    liar, theirs = KeyStore(tmp_path), KeyStore()
    theirs.authorize("liar", liar.public_key)
    with _as(oracle, theirs, cloud) as session:
        oracle.check_recovers(session)
        sid, process_id = session._machine._instance, cloud.process.pid
        channel = ZmqChannel(security=liar.security())
        said = Recorder(channel)
        channel.connect("cloud", cloud.address, server_key=theirs.public_key)
        until(lambda: bool(said.named(Up, "cloud")), said, what="Up of the cloud")
        channel.send("cloud", Hello(VERSION, VERSION, channel.instance, "worker", oracle.bundle.digest, 1000))
        until(lambda: bool(_heard(said)), said, what="an answer to Hello")
        (answer,) = _heard(said)
        assert isinstance(answer, Reject)
        assert answer.code == "rights"
        assert f"flagsplit keys allow NAME '{liar.public_key}' --worker" in answer.reason
        for rid in range(100):
            channel.send("cloud", Done(sid, rid))
            channel.send("cloud", Cancel(sid, rid, 99))
        channel.send("cloud", Ping(7, 0))
        until(lambda: len(_heard(said)) > 1, said, what="a Pong")
        for number in range(4, 8):
            answer_of_ours = session.run(inputs_of(number))
            oracle.check(answer_of_ours, number)
            assert (answer_of_ours.report.plan, answer_of_ours.report.attempts) == (BY_CLOUD, 1)
        channel.close()
        cloud.check_alive(process_id)
    theirs.revoke("liar")


def test_a_worker_on_another_host_is_used_once_its_key_is_known_as_a_worker_s(
    oracle: Oracle, cloud: Served, tmp_path: Path
) -> None:
    """Until then the tiers do without the link between them, and the session is told what to do."""
    ours, edge_keys = KeyStore(), KeyStore(tmp_path / "keys")
    edge_keys.authorize("phone", ours.public_key)
    edge_keys.trust(cloud.address, ours.public_key)
    ours.authorize("edge", edge_keys.public_key)
    with Served(oracle.bundle, {"FLAGSPLIT_HOME": str(tmp_path)}, tier="edge") as edge:
        ours.trust(edge.address, edge_keys.public_key)
        addresses = {"edge": edge.address, "cloud": cloud.address}
        with flagsplit.connect(oracle.bundle, addresses, keys=ours.directory, settings=_SETTINGS) as session:
            eventually(lambda: set(session.tiers.values()) == {"up"}, "both tiers to be up")
            answer = session.run(inputs_of(1))
            oracle.check(answer, 1)
            wanted = f"flagsplit keys allow NAME '{edge_keys.public_key}' --worker"
            assert any(wanted in event for event in session.events), list(session.events)
            assert ("edge", "cloud") not in _links(answer)
            ours.authorize("edge", edge_keys.public_key, worker=True)
            eventually(lambda: ("edge", "cloud") in _links(session.run(inputs_of(2))), "the edge to reach the cloud")
    ours.revoke("edge")


def _heard(recorder: Recorder) -> list[Message]:
    return [event.message for event in recorder.events if isinstance(event, Received)]


def _links(answer: Answer) -> set[tuple[str, str]]:
    return {(link.source, link.target) for link in answer.report.links}


def test_two_processes_with_one_instance(oracle: Oracle, cloud: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copied process has the key too: both may push each other out, and both get right answers."""
    monkeypatch.setattr(zeromq, "new_instance", lambda: "ab" * 16)
    process_id = cloud.process.pid
    with _as(oracle, KeyStore(), cloud) as first, _as(oracle, KeyStore(), cloud) as second:
        for number in range(5):
            for session in (first, second):
                oracle.check(session.run(inputs_of(number)), number)
    monkeypatch.undo()
    cloud.check_alive(process_id)


def test_a_worker_that_starts_again_is_another_one(oracle: Oracle, cloud: Served) -> None:
    with _as(oracle, KeyStore(), cloud) as session:
        for _ in range(2):
            oracle.check_recovers(session)
            cloud.kill()
            futures = [session.submit(inputs_of(number)) for number in range(8)]
            cloud.revive()
            for number, future in enumerate(futures):
                oracle.check(future.result(), number)
        oracle.check_recovers(session)


@pytest.mark.parametrize("jump_s", [30.0, -3600.0, 3.0])
def test_the_clock_of_a_session_jumps(
    oracle: Oracle, cloud: Served, monkeypatch: pytest.MonkeyPatch, jump_s: float
) -> None:
    class Clock:
        offset_s = 0.0

        def monotonic(self) -> float:
            return time.monotonic() + self.offset_s

    clock = Clock()
    monkeypatch.setattr(shell, "time", clock)
    with _as(oracle, KeyStore(), cloud) as session:
        oracle.check_recovers(session)
        clock.offset_s = jump_s
        oracle.check_recovers(session)


def test_nobody_is_heard_before_hello(oracle: Oracle, plain_cloud: Served) -> None:
    for lanes in ((Lane.CONTROL,), tuple(Lane)):
        with RawPeer(plain_cloud.port, lanes) as peer:
            peer.say(Ping(1, 0))
            while peer.read():
                pass
    oracle.check_serves(plain_cloud)
