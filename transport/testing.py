"""What others need to test against transport: the conformance suite that every `Channel` passes, ours and yours.

`check_channel(factory)` runs all of `CHANNEL_CHECKS`; a test suite may rather run them one by one. Each check drives
both ends from one thread, waits for events and never for time, and fails with an AssertionError. Those of credit are in
`testing_credit.py`. The faults for memory networks are here too, from `faults.py`.
"""

import contextlib
import hashlib
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np

from flagsplit.transport.channel import Down, Received, Violated, inbound_name
from flagsplit.transport.faults import Faults, VirtualClock, kill
from flagsplit.transport.messages import Bye, Chunk, Lane, Message, Open, Ping
from flagsplit.transport.tensors import Assembly, TransferLimits, chunks_of
from flagsplit.transport.testing_credit import CREDIT_CHECKS
from flagsplit.transport.testing_tools import (
    PATIENCE_S,
    ChannelFactory,
    Recorder,
    connected,
    introduce,
    sample_hello,
    sample_open,
    transfer,
    until,
)

__all__ = [
    "CHANNEL_CHECKS",
    "ChannelFactory",
    "Faults",
    "Recorder",
    "VirtualClock",
    "check_channel",
    "kill",
    "sample_hello",
    "sample_open",
    "until",
]


def check_channel(factory: ChannelFactory) -> None:
    """Run the whole suite."""
    for check in CHANNEL_CHECKS:
        check(factory)


def check_order_per_lane(factory: ChannelFactory) -> None:
    """Messages of one lane arrive in order, in both directions."""
    with connected(factory) as (client, server, name):
        opened = sample_open(100 * 5000)
        chunks = list(chunks_of(opened, [bytes(100 * 5000)], chunk_bytes=5000))
        for sender, receiver, peer in ((client, server, "server"), (server, client, name)):
            sent: list[Message] = [Ping(seq, 0) for seq in range(100)]
            for ping, chunk in zip(sent, chunks, strict=True):
                assert sender.channel.send(peer, ping)
                assert sender.channel.send(peer, chunk)
            receiver.events.clear()
            until(lambda receiver=receiver: len(receiver.messages()) == 200, sender, receiver, what="200 messages")  # type: ignore[misc]
            assert [m for m in receiver.messages() if isinstance(m, Ping)] == sent
            assert [m for m in receiver.messages() if isinstance(m, Chunk)] == chunks


def check_large_tensor(factory: ChannelFactory) -> None:
    """64 MB arrive unchanged, in chunks."""
    data = np.random.default_rng(1).integers(0, 255, 64 << 20, np.uint8)
    opened = sample_open(data.nbytes)
    with connected(factory) as (client, server, _):
        assembly: Assembly | None = None
        for message in transfer(opened, data.data):
            assert client.channel.send("server", message)
        give_up_s = time.monotonic() + 3 * PATIENCE_S
        while assembly is None or not assembly.complete:
            assert time.monotonic() < give_up_s, "64 MB did not arrive in time"
            client.pump()
            for event in server.channel.poll(0.005):
                assert isinstance(event, Received)
                if isinstance(event.message, Open):
                    assembly = Assembly(event.message, TransferLimits())
                elif isinstance(event.message, Chunk):
                    assert assembly is not None, "a Chunk overtook its Open"
                    assembly.accept(event.message)
        assert hashlib.sha256(assembly.buffers()[0]).digest() == hashlib.sha256(data.data).digest()
        assert client.channel.backlog_bytes("server") == 0


def check_restart(factory: ChannelFactory) -> None:
    """A peer that restarts is Down once, then Up, and sees nothing that was meant for its predecessor."""
    with contextlib.closing(factory.open()) as first, contextlib.closing(factory.open()) as client:
        address = first.listen(factory.listen_address())
        here, there = Recorder(client), Recorder(first)
        client.connect("server", address)
        introduce(here, there)
        for rid in range(200):
            client.send("server", sample_open(0, rid=rid))
            client.send("server", Ping(rid, 0))
        first.close()
        until(lambda: len(here.named(Down, "server")) == 1, here, what="Down of the server")
        assert not client.send("server", Ping(1000, 0)), "a message to a peer that is down must be dropped"
        with contextlib.closing(factory.open()) as second:
            assert second.listen(address) == address
            after = Recorder(second)
            introduce(here, after)
            assert client.send("server", Ping(2000, 0))
            until(lambda: Ping(2000, 0) in after.messages(), here, after, what="the first Ping after the restart")
            assert after.messages() == [sample_hello(client), Ping(2000, 0)]
            assert len(here.named(Down, "server")) == 1


def check_connect_before_listen(factory: ChannelFactory) -> None:
    """Connecting first is fine: at most one Down, then Up when the listener is there."""
    with contextlib.closing(factory.open()) as first:
        address = first.listen(factory.listen_address())
    with contextlib.closing(factory.open()) as client:
        client.connect("server", address)
        here = Recorder(client)
        until(lambda: bool(here.named(Down, "server")), here, what="Down while nobody listens")
        for _ in range(5):
            here.pump(0.02)
        with contextlib.closing(factory.open()) as server:
            server.listen(address)
            introduce(here, Recorder(server))
        assert len(here.named(Down, "server")) == 1, "still down is not told again"


def check_unknown_peer(factory: ChannelFactory) -> None:
    """Sending to nobody is False, forgetting nobody is fine."""
    with contextlib.closing(factory.open()) as channel:
        assert not channel.send("nobody", Ping(1, 0))
        channel.listen(factory.listen_address())
        assert not channel.send(inbound_name("0" * 32), Ping(1, 0))
        channel.disconnect("nobody")
        assert channel.backlog_bytes("nobody") == 0
        assert channel.withdraw("nobody", "s", 1) == 0
        assert channel.poll(0.0) == []


def check_wake(factory: ChannelFactory) -> None:
    """Another thread can end a poll; a wake-up before the poll counts too, and after close it is harmless."""
    with contextlib.closing(factory.open()) as channel:
        channel.wake()
        assert channel.poll(PATIENCE_S) == []
        timer = threading.Timer(0.02, channel.wake)
        timer.start()
        started_s = time.monotonic()
        assert channel.poll(None) == []
        assert time.monotonic() - started_s < PATIENCE_S
        timer.join()
    channel.wake()


def check_disconnect_inbound(factory: ChannelFactory) -> None:
    """A listener can forget a peer: nothing more goes to it, and it learns and comes back."""
    with connected(factory) as (client, server, name):
        server.channel.disconnect(name)
        assert not server.channel.send(name, Ping(1, 0))
        until(lambda: len(client.named(Down, "server")) == 1, client, server, what="Down at the peer forgotten")
        introduce(client, server)
        assert server.named(Down, name) == [], "who disconnects needs no Down"


def check_violation(factory: ChannelFactory) -> None:
    """Bytes that are no message are told, cut the connection, and hurt nobody else."""
    with connected(factory) as (client, server, name), contextlib.closing(factory.open()) as other:
        factory.send_garbage(client.channel, "server")
        until(lambda: bool(server.named(Down, name)), client, server, what="Down after garbage")
        assert len(server.named(Violated, name)) == 1
        address = server.channel.listen(factory.listen_address())
        other.connect("server", address)
        introduce(Recorder(other), server)


def check_farewell(factory: ChannelFactory) -> None:
    """A Bye sent just before close arrives, then comes the Down."""
    with connected(factory) as (client, server, name):
        assert client.channel.send("server", Bye("maintenance"))
        client.channel.close()
        until(lambda: bool(server.named(Down, name)), server, what="Down after Bye")
        assert Bye("maintenance") in server.messages()


def check_close_under_load(factory: ChannelFactory) -> None:
    """Closing while traffic flows is quick, twice is once, and no thread or file descriptor stays."""
    _send_some(factory)  # what the process makes once and keeps, it makes here
    threads, descriptors = threading.active_count(), _open_descriptors()
    _send_some(factory)
    give_up_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < give_up_s:
        if threading.active_count() <= threads and _open_descriptors() <= descriptors:
            return
        time.sleep(0.01)
    raise AssertionError(
        f"before: {threads} threads, {descriptors} descriptors; "
        f"after: {threading.active_count()} threads, {_open_descriptors()} descriptors"
    )


def _send_some(factory: ChannelFactory) -> None:
    payload = bytes(32 << 20)
    opened = sample_open(len(payload))
    with connected(factory) as (client, server, _):
        for message in transfer(opened, payload):
            client.channel.send("server", message)
        server.pump(0.05)
        started_s = time.monotonic()
        client.channel.close()
        client.channel.close()
        server.channel.close()
        assert time.monotonic() - started_s < 2.0, "close must not wait for traffic"


def _open_descriptors() -> int:
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.exists() else 0


def check_control_overtakes_data(factory: ChannelFactory) -> None:
    """Control passes 32 MB of data that a slow consumer has not taken, in both directions."""
    with connected(factory) as (client, server, name):
        payload = bytes(32 << 20)
        opened = sample_open(len(payload))
        for sender, receiver, peer in ((client, server, "server"), (server, client, name)):
            receiver.events.clear()
            for message in transfer(opened, payload):
                assert sender.channel.send(peer, message)
            assert sender.channel.send(peer, Ping(7, 0))
            until(lambda receiver=receiver: Ping(7, 0) in receiver.messages(), sender, receiver, what="the Ping")  # type: ignore[misc]
            before = receiver.messages()[: receiver.messages().index(Ping(7, 0))]
            passed_bytes = sum(len(m.payload) for m in before if isinstance(m, Chunk))
            assert passed_bytes < len(payload), "the Ping waited for all the data"
            sender.channel.withdraw(peer, "s", 1)
            assert sender.channel.backlog_bytes(peer, Lane.DATA) == 0


CHANNEL_CHECKS: Final[tuple[Callable[[ChannelFactory], None], ...]] = (
    check_order_per_lane,
    check_large_tensor,
    check_restart,
    check_connect_before_listen,
    check_unknown_peer,
    check_wake,
    check_disconnect_inbound,
    check_violation,
    check_farewell,
    check_close_under_load,
    check_control_overtakes_data,
    *CREDIT_CHECKS,
)
