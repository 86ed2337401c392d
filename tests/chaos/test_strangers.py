"""Whoever else finds the port: garbage, other protocols, floods, a thousand idle connections, other versions."""

import contextlib
import resource
import socket
import time
from collections.abc import Iterator

import pytest
import zmq
from tests.chaos.served import Oracle, Served, until
from tests.chaos.zmtp import GREETING, RawPeer, ready, wire

from flagsplit.runtime.bundle import Bundle
from flagsplit.transport.channel import new_instance
from flagsplit.transport.messages import Attach, Hello, Lane, encode
from flagsplit.transport.security import KeyStore

pytestmark = pytest.mark.slow

_ID = b"ab" * 16 + b":c:1"
_BYTES = {
    "HTTP": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "SSH": b"SSH-2.0-OpenSSH_9.6\r\n",
    "zeros": bytes(1000),
    "ones": b"\xff" * 1000,
    "ZMTP 1.0": b"\x01\x00" + b"\x02\x00x",
    "ZMTP 1.0, named": b"\x25\x00" + _ID + b"\x02\x00x",
    "ZMTP 2.0": b"\xff" + bytes(8) + b"\x7f\x01\x05\x00\x24" + _ID + b"\x00\x01x",
    "half a greeting": GREETING[:30],
    "a greeting alone": GREETING,
    "NULL": GREETING + ready(_ID) + wire([b"x"]),
    "a frame of 2^63 bytes": GREETING + ready(_ID) + b"\x02" + b"\x7f" + b"\xff" * 7,
    "a command without an end": GREETING + b"\x06" + (1 << 40).to_bytes(8, "big") + b"\x05READY",
}


@pytest.mark.parametrize("curve", ["CURVE", "plain"])
def test_other_protocols(oracle: Oracle, request: pytest.FixtureRequest, curve: str) -> None:
    served: Served = request.getfixturevalue("cloud" if curve == "CURVE" else "plain_cloud")
    oracle.check_serves(served)
    process_id, open_files = served.process.pid, served.open_files
    with contextlib.ExitStack() as stack:
        for data in (*_BYTES.values(), *_BYTES.values()):
            line = stack.enter_context(socket.create_connection(("127.0.0.1", served.port)))
            with contextlib.suppress(ConnectionError):
                line.sendall(data)
        oracle.check_serves(served)
    until(lambda: served.open_files <= open_files, "the strangers to be forgotten")
    served.check_alive(process_id)


@contextlib.contextmanager
def _dealer(served: Served) -> Iterator["zmq.Socket[bytes]"]:
    """A data lane with the right keys, made by libzmq, that introduced itself."""
    keys = KeyStore()
    instance = new_instance()
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.linger = 0
        dealer.sndtimeo = 10_000
        dealer.routing_id = f"{instance}:d:1".encode()
        security = keys.security()
        dealer.curve_publickey = security.public_key.encode()
        dealer.curve_secretkey = security.secret_key.encode()
        dealer.curve_serverkey = security.public_key.encode()
        dealer.connect(served.address)
        dealer.send_multipart([bytes(frame) for frame in encode(Attach(instance))])
        yield dealer


def test_a_message_of_four_hundred_megabytes(oracle: Oracle, cloud: Served) -> None:
    """Frame after frame of one message, from somebody with a key: cut off long before it is whole."""
    oracle.check_serves(cloud)
    rss_mb = highest_mb = cloud.rss_mb
    frame = bytes(1 << 20)
    with _dealer(cloud) as dealer:
        dealer.send_multipart([frame] * 400, copy=False)
        give_up = time.monotonic() + 3
        while time.monotonic() < give_up:
            highest_mb = max(highest_mb, cloud.rss_mb)
            time.sleep(0.01)
    assert highest_mb < rss_mb + 250
    oracle.check_serves(cloud)


def test_a_flood_of_unfinished_frames(bundle: Bundle, oracle: Oracle, plain_cloud: Served) -> None:
    oracle.check_serves(plain_cloud)
    rss_mb = highest_mb = plain_cloud.rss_mb
    more = wire([bytes(1 << 16)], unfinished=True)
    with RawPeer(plain_cloud.port, patience_s=2.0) as peer:
        peer.introduce(bundle.digest)
        with contextlib.suppress(ConnectionError, TimeoutError):
            for count in range(32_000):
                peer.send(Lane.DATA, more)
                if count % 100 == 0:
                    highest_mb = max(highest_mb, plain_cloud.rss_mb)
            raise AssertionError("two gigabytes were taken")
    # What comes between two looks, a quarter of a second, is held as well.
    assert highest_mb < rss_mb + 450
    until(lambda: "a message without an end" in plain_cloud.log, "the worker to say why it cut the connection")
    oracle.check_serves(plain_cloud)


def test_a_thousand_idle_connections(oracle: Oracle, cloud: Served) -> None:
    """They get no further than the greeting; beyond the limit the newest go, and when their time is over all do."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, 4096), hard), hard))
    alone_s = min(oracle.check_serves(cloud) for _ in range(2))
    process_id, open_files = cloud.process.pid, cloud.open_files
    with contextlib.ExitStack() as stack:
        for _ in range(1000):
            stack.enter_context(socket.create_connection(("127.0.0.1", cloud.port)))
        until(lambda: cloud.open_files >= open_files + 900, "the connections to be accepted")
        assert oracle.check_serves(cloud) < 5 * alone_s + 1
    until(lambda: cloud.open_files <= open_files, "the connections to be closed")
    cloud.check_alive(process_id)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(
    ("oldest", "newest", "answer"),
    [
        ((1, 0), (1, 0), b"\xa2WE"),
        ((1, 0), (1, 999), b"\xa2WE"),
        ((0, 1), (1, 0), b"\xa2WE"),
        ((1, 1), (7, 0), b"\xa2WE"),
        ((2, 0), (2, 0), b"\xa2RJ"),
        ((0, 0), (0, 9), b"\xa2RJ"),
    ],
)
def test_other_versions(
    bundle: Bundle,
    oracle: Oracle,
    plain_cloud: Served,
    oldest: tuple[int, int],
    newest: tuple[int, int],
    answer: bytes,
) -> None:
    with RawPeer(plain_cloud.port) as peer:
        peer.say(Attach(peer.instance))
        peer.say(Hello(oldest, newest, peer.instance, "session", bundle.digest, 1000))
        said = peer.read_until(answer)
        if answer == b"\xa2RJ":
            assert b"version" in said
    oracle.check_serves(plain_cloud)
