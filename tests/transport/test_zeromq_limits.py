"""What one client may ask of a ZeroMQ listener: connections, peers of a key, Hellos, messages, time to say Hello."""

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from flagsplit.transport import zeromq_inbound
from flagsplit.transport.channel import ChannelOptions, Down, Up, Violated
from flagsplit.transport.messages import VERSION, Ping, Welcome
from flagsplit.transport.security import NO_SECURITY, KeyStore, NoSecurity, Security
from flagsplit.transport.tensors import chunks_of
from flagsplit.transport.testing import Recorder, sample_hello, sample_open, until
from flagsplit.transport.testing_tools import introduce
from flagsplit.transport.zeromq import ZmqChannel
from flagsplit.transport.zeromq_connections import Routes

Opener = Callable[..., Recorder]


@pytest.fixture
def open_channel() -> Iterator[Opener]:
    with contextlib.ExitStack() as stack:

        def make(security: Security | NoSecurity = NO_SECURITY, **options: float) -> Recorder:
            channel = ZmqChannel(security=security, options=ChannelOptions(**options))  # type: ignore[arg-type]
            stack.callback(channel.close)
            return Recorder(channel)

        yield make


def listen(server: Recorder) -> str:
    return server.channel.listen("tcp://127.0.0.1:0")


def refusals(server: Recorder) -> list[str]:
    return [event.reason for event in server.events if isinstance(event, Violated)]


def counts(server: Recorder) -> tuple[int, int, int]:
    """Connections, routes and peers that the listener remembers."""
    assert isinstance(server.channel, ZmqChannel)
    listener = server.channel._listener
    assert listener is not None
    return len(listener._accepted), len(listener._routes), len(listener._peers)


def test_the_newest_connection_beyond_the_limit_is_refused(open_channel: Opener) -> None:
    server = open_channel(max_inbound_connections=4)
    address = listen(server)
    first, second, third = open_channel(), open_channel(), open_channel(backoff_max_s=0.05)
    for client in (first, second):
        client.channel.connect("server", address)
        introduce(client, server)
    third.channel.connect("server", address)
    until(lambda: bool(third.named(Down, "server")), third, server, what="Down of a server that is full")
    until(lambda: bool(refusals(server)), third, server, what="a word about the refusal")
    assert refusals(server)[0].startswith("refused: all 4 connections of this listener are taken")
    assert first.channel.send("server", Ping(1, 0))
    until(lambda: Ping(1, 0) in server.messages(), first, server, what="Ping of a peer that was here before")
    assert not first.named(Down, "server")
    first.channel.close()
    third.introductions = len(third.named(Up, "server"))
    introduce(third, server)


def test_strangers_cannot_keep_the_places(open_channel: Opener) -> None:
    server, client = open_channel(max_inbound_connections=4, introduction_timeout_s=0.1), open_channel()
    address = listen(server)
    port = int(address.rpartition(":")[2])
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        until(lambda: counts(server)[0] == 4, server, what="four strangers")
        until(lambda: counts(server)[0] == 0, server, what="the end of their time")
        client.channel.connect("server", address)
        introduce(client, server)
    assert any("nobody said Hello" in reason for reason in refusals(server))


def test_peers_of_one_key_are_limited(open_channel: Opener, tmp_path: Path) -> None:
    stores = [KeyStore(tmp_path / name) for name in ("server", "many", "other")]
    for store in stores[1:]:
        stores[0].authorize(store.directory.name, store.public_key)
    server = open_channel(stores[0].security(), max_peers_per_key=2)
    address, key = listen(server), stores[0].public_key
    many = [open_channel(stores[1].security()) for _ in range(3)]
    for client in many[:2]:
        client.channel.connect("server", address, server_key=key)
        introduce(client, server)
    many[2].channel.connect("server", address, server_key=key)
    until(lambda: bool(many[2].named(Down, "server")), many[2], server, what="Down of a server with too many of us")
    until(lambda: bool(refusals(server)), many[2], server, what="a word about the refusal")
    assert "2 peers with the same key" in refusals(server)[0]
    other = open_channel(stores[2].security())
    other.channel.connect("server", address, server_key=key)
    introduce(other, server)
    assert not any(client.named(Down, "server") for client in many[:2])


def test_without_keys_nobody_shares_a_limit(open_channel: Opener) -> None:
    server = open_channel(max_peers_per_key=1, max_hellos_per_s=0.25)
    address = listen(server)
    for _ in range(3):
        client = open_channel()
        client.channel.connect("server", address)
        introduce(client, server)
    assert refusals(server) == []


def test_too_many_hellos_are_refused(open_channel: Opener) -> None:
    server, client = open_channel(max_hellos_per_s=1.0), open_channel()
    client.channel.connect("server", listen(server))
    name = introduce(client, server)
    for _ in range(4):
        assert client.channel.send("server", sample_hello(client.channel))
    until(lambda: bool(server.named(Down, name)), client, server, what="Down after too many Hellos")
    assert "more than 1 Hellos per second" in server.named(Down, name)[0].reason
    assert server.messages() == [sample_hello(client.channel)] * 4


def test_too_many_messages_are_a_violation(open_channel: Opener) -> None:
    server, client = open_channel(max_messages_per_s=10.0), open_channel()
    client.channel.connect("server", listen(server))
    name = introduce(client, server)
    for number in range(200):
        client.channel.send("server", Ping(number, 0))
    until(lambda: bool(server.named(Down, name)), client, server, what="Down after too many messages")
    assert "at most 10 messages per second" in server.named(Violated, name)[0].reason
    assert len(server.messages()) < 60


@pytest.mark.slow
def test_who_reconnects_forever_leaves_nothing(open_channel: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zeromq_inbound, "Routes", lambda: Routes(20))
    server = open_channel(max_inbound_connections=16)
    address = listen(server)
    port = int(address.rpartition(":")[2])
    for number in range(300):
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.sendall(b"\xff" + bytes(8) + b"\x7f")
        if number % 10 == 0:
            server.pump()
    for _ in range(40):
        client = open_channel()
        client.channel.connect("server", address)
        introduce(client, server)
        client.channel.close()
    give_up_s = time.monotonic() + 5
    while counts(server) != (0, 0, 0):
        assert time.monotonic() < give_up_s, counts(server)
        server.pump(0.01)
    assert isinstance(server.channel, ZmqChannel)
    assert server.channel._listener is not None
    assert not server.channel._listener._owing
    assert len(server.channel._listener._routes._known) == 20
    assert len(refusals(server)) < 20, "refusals are told once a second"


@pytest.mark.slow
@pytest.mark.parametrize("sender_is_client", [True, False])
def test_waiting_for_credit_is_sleeping(
    open_channel: Opener, monkeypatch: pytest.MonkeyPatch, sender_is_client: bool
) -> None:
    server, client = open_channel(window_bytes=1000), open_channel(window_bytes=1000)
    client.channel.connect("server", listen(server))
    name = introduce(client, server, replace(sample_hello(client.channel), features=(), credit_bytes=0))
    welcome = Welcome(VERSION, server.channel.instance, 0, "sha256:0", "edge", 1 << 20, 1 << 20)
    assert server.channel.send(name, welcome)
    until(lambda: len(client.messages()) == 1, client, server, what="Welcome")
    sender, peer = (client, "server") if sender_is_client else (server, name)
    receiver, sender_name = (server, name) if sender_is_client else (client, "server")
    receiver.channel.pause(sender_name, True)
    for chunk in chunks_of(sample_open(10_000), [bytes(10_000)], 1000):
        assert sender.channel.send(peer, chunk)
    for _ in range(10):
        sender.pump(0.005)
        receiver.pump(0.005)
    assert sender.channel.backlog_bytes(peer) > 0
    turns: list[int] = []
    assert isinstance(sender.channel, ZmqChannel)
    flush = sender.channel._flush

    def counted() -> None:
        turns.append(1)
        flush()

    monkeypatch.setattr(sender.channel, "_flush", counted)
    sender.pump(0.2)
    assert len(turns) < 10
