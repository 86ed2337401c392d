"""Twenty thousand messages at random against one worker: it stays, forgets them, and serves the next client."""

import random
import socket
from collections.abc import Iterator
from contextlib import suppress

import pytest
from tests.chaos.fuzz import Fuzzer
from tests.chaos.served import PLAIN, Oracle, Served, until
from tests.chaos.zmtp import GREETING, RawPeer, ready, wire

from flagsplit.runtime.bundle import Bundle
from flagsplit.transport.messages import Hop, HopTiming, Lane, Open, TensorHeader, encode
from flagsplit.transport.security import NO_SECURITY, KeyStore

pytestmark = pytest.mark.slow

_MESSAGES = 20_000
_NO_MESSAGE = b"\xc1"


@pytest.fixture
def edge(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """A worker without keys that can be told of a tier beyond."""
    monkeypatch.setattr(KeyStore, "security", lambda _: NO_SECURITY)
    with Served(bundle, {}, tier="edge", patch=PLAIN) as served:
        yield served


def _announcement(bundle: Bundle) -> Open:
    """The question of the plan that has the edge do nearly all."""
    (step,) = (step for step in bundle.plans.steps["plan2"] if step.tier == 1)
    route = (Hop("phone", "", ("x",)), Hop("edge", step.segment, step.outputs), Hop("phone"))
    tensors = (TensorHeader("x", "float32", (2, 24), 192),)
    trace = (HopTiming("phone", "", 0, 0, 0, 192),)
    return Open("", 0, 1, 0, "plan2", 1, route, tensors, 5000, trace, (), bundle.digest)


def _converse(edge: Served, fuzzer: Fuzzer, digest: str) -> int:
    """One connection's worth of messages, of which the last break the protocol; how many there were."""
    rng = fuzzer.rng
    sent = 0
    with suppress(ConnectionError), RawPeer(edge.port) as peer:
        fuzzer.sid = peer.instance
        if rng.random() < 0.9:
            peer.introduce(digest if rng.random() < 0.9 else "another")
        messages = [fuzzer.message() for _ in range(rng.randrange(20))] + fuzzer.transfer(rng.randrange(4))
        for lane in Lane:
            own = [wire(encode(message)) for message in messages if message.LANE is lane]
            peer.send(lane, b"".join(own))
            sent += len(own)
        last, frames = fuzzer.broken()
        peer.send(last, wire(frames))
        # Which lane is cut off first decides on which of them everything was read.
        end = rng.choice(tuple(Lane))
        peer.send(end, wire([_NO_MESSAGE]))
        sent += 2
        while peer.read(end):
            pass
    return sent


def _babble(port: int, rng: random.Random) -> None:
    """Bytes that begin as ZMTP does, or not even that, and end anywhere."""
    routing_id = b"ab" * 16 + b":c:1"
    whole = GREETING + ready(routing_id) + wire([b"x" * rng.choice((1, 300))], unfinished=rng.random() < 0.5)
    data = whole[: rng.randrange(len(whole))] if rng.random() < 0.7 else b""
    data += rng.randbytes(rng.randrange(200))
    with suppress(ConnectionError), socket.create_connection(("127.0.0.1", port), timeout=10) as line:
        line.sendall(data)


def test_twenty_thousand_messages(bundle: Bundle, oracle: Oracle, edge: Served) -> None:
    rng = random.Random(1)
    names = (bundle.digest, edge.address, "tcp://127.0.0.1:1", "tcp://nobody", "ipc:///nowhere", "tcp://localhost:1")
    fuzzer = Fuzzer(rng, _announcement(bundle), names)
    oracle.check_serves(edge)
    process_id, sent = edge.process.pid, 0
    open_files, rss_mb = edge.open_files, 0.0
    while sent < _MESSAGES:
        sent += _converse(edge, fuzzer, bundle.digest)
        edge.check_alive(process_id)
        if rng.random() < 0.2:
            _babble(edge.port, rng)
            sent += 1
        if not rss_mb and sent > _MESSAGES // 20:  # it has made what it makes once and keeps
            rss_mb = edge.rss_mb
    oracle.check_serves(edge)
    edge.check_alive(process_id)
    # With its first large payload (the answer to a probe) pyzmq starts a thread that takes seven descriptors, for good.
    until(lambda: edge.open_files <= open_files + 7, "its descriptors to be closed")
    assert edge.rss_mb < 1.15 * rss_mb
