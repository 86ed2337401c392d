"""What every channel has to do with byte credit; part of the suite in `testing.py`.

A channel sends nothing and takes nothing while nobody polls it: polling one side only shows what the other is allowed.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final

from flagsplit.errors import ConfigError
from flagsplit.transport.channel import Acked, ChannelOptions, Down, Received, Violated, inbound_name
from flagsplit.transport.messages import VERSION, Chunk, Credit, Lane, Message, Open, Ping, Welcome, encode
from flagsplit.transport.tensors import chunks_of
from flagsplit.transport.testing_tools import ChannelFactory, Recorder, introduce, sample_hello, sample_open, until

_CHUNK_BYTES: Final = 1000
_WINDOW: Final = 8
_SMALL: Final = ChannelOptions(window_bytes=_WINDOW * _CHUNK_BYTES, ack_delay_s=0.002)
_OFF: Final = ChannelOptions(window_bytes=0)


@contextlib.contextmanager
def _agreed(
    factory: ChannelFactory, client_options: ChannelOptions = _SMALL, server_options: ChannelOptions = _SMALL
) -> Iterator[tuple[Recorder, Recorder, str]]:
    """A client and a server after Hello and Welcome, which say nothing of credit until the channels add it."""
    with (
        contextlib.closing(factory.open(server_options)) as server,
        contextlib.closing(factory.open(client_options)) as client,
    ):
        here, there = Recorder(client), Recorder(server)
        client.connect("server", server.listen(factory.listen_address()))
        yield here, there, _greet(here, there)


def _greet(client: Recorder, server: Recorder) -> str:
    name = introduce(client, server, replace(sample_hello(client.channel), features=(), credit_bytes=0))
    welcomes = _count(client, Welcome)
    assert server.channel.send(name, Welcome(VERSION, server.channel.instance, 0, "sha256:0", "edge", 1 << 20, 1 << 20))
    until(lambda: _count(client, Welcome) > welcomes, client, server, what="Welcome")
    return name


def _chunks(count: int, size_bytes: int = _CHUNK_BYTES, rid: int = 1) -> list[Message]:
    """The Chunks of one tensor; nobody here asks for its Open."""
    return list(chunks_of(sample_open(count * size_bytes, rid=rid), [bytes(count * size_bytes)], size_bytes))


def _count(recorder: Recorder, kind: type[Message]) -> int:
    return sum(isinstance(message, kind) for message in recorder.messages())


def _send(sender: Recorder, peer: str, messages: list[Message]) -> None:
    for message in messages:
        assert sender.channel.send(peer, message)


def _pump(*recorders: Recorder, rounds: int = 6) -> None:
    for _ in range(rounds):
        for recorder in recorders:
            recorder.pump(0.002)


def _all_came(receiver: Recorder, sender: Recorder, messages: list[Message]) -> None:
    until(lambda: _count(receiver, Chunk) >= len(messages), sender, receiver, what=f"{len(messages)} chunks")
    assert [message for message in receiver.messages() if isinstance(message, Chunk)] == messages


def check_credit_holds_and_releases(factory: ChannelFactory) -> None:
    """A sender goes as far as its credit and waits there; more credit lets it go on. In both directions."""
    with _agreed(factory) as (client, server, name):
        for sender, receiver, peer in ((client, server, "server"), (server, client, name)):
            chunks = _chunks(64)
            _send(sender, peer, chunks)
            _pump(sender)
            assert sender.channel.backlog_bytes(peer) > 0
            until(lambda receiver=receiver: _count(receiver, Chunk) >= _WINDOW, receiver, what="a window of chunks")  # type: ignore[misc]
            _pump(receiver)
            assert _count(receiver, Chunk) == _WINDOW, "more came than there was credit for"
            _all_came(receiver, sender, chunks)
            assert sender.channel.backlog_bytes(peer) == 0
            assert _count(sender, Credit) == 0, "Credit is the channel's own"


def check_slow_consumer(factory: ChannelFactory) -> None:
    """However much is sent, and however long, a consumer never has more than a window to take."""
    with _agreed(factory) as (client, server, _):
        chunks = _chunks(100)
        _send(client, "server", chunks)
        taken = 0
        while taken < len(chunks):
            _pump(client, rounds=2)
            before = _count(server, Chunk)
            until(lambda before=before: _count(server, Chunk) > before, server, client, what="more chunks")  # type: ignore[misc]
            taken = _count(server, Chunk)
            assert taken - before <= _WINDOW
        _all_came(server, client, chunks)


def check_control_needs_no_credit(factory: ChannelFactory) -> None:
    """Control and messages without payload pass; but what is behind held data on its lane keeps its place."""
    with _agreed(factory) as (client, server, name):
        server.channel.pause(name, True)
        _send(client, "server", [sample_open(0, rid=1), *_chunks(2 * _WINDOW), sample_open(0, rid=2), Ping(1, 0)])
        until(lambda: Ping(1, 0) in server.messages(), client, server, what="Ping")
        until(lambda: _count(server, Chunk) == _WINDOW, client, server, what="what credit there was")
        _pump(client, server)
        assert (_count(server, Open), _count(server, Chunk)) == (1, _WINDOW)
        server.channel.pause(name, False)
        until(lambda: _count(server, Open) == 2, client, server, what="the second Open")
        assert _count(server, Chunk) == 2 * _WINDOW


def check_acked_totals(factory: ChannelFactory) -> None:
    """Acked tells exactly what came and what is still out, and in the end that all came."""
    with _agreed(factory) as (client, server, name):
        for sender, receiver, peer in ((client, server, "server"), (server, client, name)):
            chunks = [*_chunks(30), *_chunks(7, 311), *_chunks(1, 1)]
            total_bytes = 30 * _CHUNK_BYTES + 7 * 311 + 1
            _send(sender, peer, chunks)
            until(
                lambda sender=sender, peer=peer: any(a.unacked_bytes == 0 for a in sender.named(Acked, peer)),  # type: ignore[misc]
                sender,
                receiver,
                what="the last Acked",
            )
            acked = sender.named(Acked, peer)
            assert all(event.acked_bytes + event.unacked_bytes == total_bytes for event in acked)
            assert [event.acked_bytes for event in acked] == sorted({event.acked_bytes for event in acked})
            assert all(event.delay_s >= 0 for event in acked)


def check_peer_without_credit(factory: ChannelFactory) -> None:
    """Who does not name the feature is not limited, limits nobody, and gets no Credit."""
    for client_options, server_options in ((_OFF, _SMALL), (_SMALL, _OFF)):
        with _agreed(factory, client_options, server_options) as (client, server, name):
            for sender, receiver, peer in ((client, server, "server"), (server, client, name)):
                chunks = _chunks(4 * _WINDOW)
                _send(sender, peer, chunks)
                _all_came(receiver, sender, chunks)
            _pump(client, server)
            for recorder in (client, server):
                assert not any(isinstance(event, Acked | Violated | Down) for event in recorder.events)


def check_overrun(factory: ChannelFactory) -> None:
    """Sending more than allowed breaks the protocol."""
    with _agreed(factory) as (client, server, name):
        server.channel.pause(name, True)
        for chunk in _chunks(_WINDOW + 1):
            factory.send_frames(client.channel, "server", Lane.DATA, encode(chunk))
        until(lambda: bool(server.named(Down, name)), client, server, what="Down after too much data")
        assert [f"{_WINDOW * _CHUNK_BYTES}" in event.reason for event in server.named(Violated, name)] == [True]
        assert _count(server, Chunk) == _WINDOW


def check_unfounded_credit(factory: ChannelFactory) -> None:
    """Acknowledging what was never sent breaks the protocol."""
    with _agreed(factory) as (client, server, name):
        factory.send_frames(client.channel, "server", Lane.CONTROL, encode(Credit(1, 1 << 30)))
        until(lambda: bool(server.named(Down, name)), client, server, what="Down after a Credit for nothing")
        assert len(server.named(Violated, name)) == 1


def check_pause(factory: ChannelFactory) -> None:
    """A paused peer uses up what it was given and no more, and learns what came; later it goes on."""
    with _agreed(factory) as (client, server, name):
        server.channel.pause(name, True)
        chunks = _chunks(3 * _WINDOW)
        _send(client, "server", chunks)
        given_bytes = _WINDOW * _CHUNK_BYTES
        until(
            lambda: any(event.acked_bytes == given_bytes for event in client.named(Acked, "server")),
            client,
            server,
            what="Acked while paused",
        )
        _pump(client, server)
        assert _count(server, Chunk) == _WINDOW
        server.channel.pause(name, False)
        _all_came(server, client, chunks)


def check_window(factory: ChannelFactory) -> None:
    """A larger window is told at once, a smaller one takes nothing back, and a tiny one lets one message through."""
    with _agreed(factory) as (client, server, name):
        server.channel.window(name, 3 * _WINDOW * _CHUNK_BYTES)
        until(lambda: bool(client.named(Acked, "server")), client, server, what="Credit for a larger window")
        server.channel.window(name, 1)
        _pump(server, client)
        chunks = _chunks(3 * _WINDOW)
        _send(client, "server", chunks)
        _pump(client)
        until(lambda: _count(server, Chunk) == len(chunks), client, server, what="what was granted before it shrank")
        large = _chunks(3, 50_000)
        _send(client, "server", large)
        _all_came(server, client, [*chunks, *large])
        for window_bytes in (0, -1):
            with contextlib.suppress(ConfigError):
                server.channel.window(name, window_bytes)
                raise AssertionError(f"a window of {window_bytes} bytes must be refused")
        server.channel.window("nobody", 1)
        server.channel.pause("nobody", True)


def check_withdraw_held(factory: ChannelFactory) -> None:
    """What waits for credit can be withdrawn, and makes room for what is behind it."""
    with _agreed(factory) as (client, server, name):
        server.channel.pause(name, True)
        unwanted, wanted = _chunks(3 * _WINDOW), _chunks(2 * _WINDOW, rid=2)
        _send(client, "server", [*unwanted, *wanted])
        withdrawn = client.channel.withdraw("server", "s", 1)
        assert withdrawn >= 2 * _WINDOW, "only what there was credit for can be gone"
        server.channel.pause(name, False)
        came = len(unwanted) - withdrawn
        _all_came(server, client, [*unwanted[:came], *wanted])
        assert client.channel.withdraw("server", "s", 2) == 0
        total_bytes = (came + len(wanted)) * _CHUNK_BYTES
        until(lambda: client.named(Acked, "server")[-1].unacked_bytes == 0, client, server, what="the last Acked")
        assert client.named(Acked, "server")[-1].acked_bytes == total_bytes


def check_credit_after_reconnect(factory: ChannelFactory) -> None:
    """A new connection starts with new credit, and forgets that the peer was paused."""
    with _agreed(factory) as (client, server, name):
        server.channel.pause(name, True)
        _send(client, "server", _chunks(2 * _WINDOW))
        until(lambda: _count(server, Chunk) == _WINDOW, client, server, what="what credit there was")
        server.channel.disconnect(name)
        until(lambda: bool(client.named(Down, "server")), client, server, what="Down at the peer forgotten")
        assert _greet(client, server) == name == inbound_name(client.channel.instance)
        client.events.clear()
        server.events = [event for event in server.events if not isinstance(event, Received)]
        chunks = _chunks(3 * _WINDOW)
        _send(client, "server", chunks)
        _all_came(server, client, chunks)
        total_bytes = len(chunks) * _CHUNK_BYTES
        until(lambda: client.named(Acked, "server")[-1].unacked_bytes == 0, client, server, what="the last Acked")
        assert client.named(Acked, "server")[-1].acked_bytes == total_bytes


CREDIT_CHECKS: Final[tuple[Callable[[ChannelFactory], None], ...]] = (
    check_credit_holds_and_releases,
    check_slow_consumer,
    check_control_needs_no_credit,
    check_acked_totals,
    check_peer_without_credit,
    check_overrun,
    check_unfounded_credit,
    check_pause,
    check_window,
    check_withdraw_held,
    check_credit_after_reconnect,
)
