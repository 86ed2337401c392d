"""Pairs of a client in this process and a peer in one of its own, by the name of the way; for `transport.py`.

Started as a program, this file is the peer: it says where it listens and serves until it is killed.
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Protocol

import psutil
from transport_own import Flagsplit, serve_channel
from transport_rivals import Bare, Grpc, Raw, Shared, serve_bare, serve_grpc, serve_raw, serve_shared

from flagsplit.transport import NO_SECURITY, KeyStore, MemoryChannel, MemoryNetwork, ZmqChannel

WAYS = ("raw", "tcp", "curve", "ipc", "memory", "bare", "bare-curve", "grpc", "shared")


class Client(Protocol):
    """This process's side of a way."""

    def stream(self, data: memoryview, count: int) -> float:
        """Seconds until `count` tensors of these bytes are all at the peer."""

    def round_trips(self, data: memoryview, count: int) -> list[float]:
        """Seconds of each of `count` requests, one at a time, with an answer as long as the request."""

    def close(self) -> None:
        """Free what it holds."""


@dataclass(frozen=True)
class Pair:
    """A client, and the process of its peer unless that is a thread of this one."""

    client: Client
    peer: psutil.Process | None

    def cpu_s(self) -> float:
        """Processor time of both so far, to 10 ms."""
        processes = (psutil.Process(), *((self.peer,) if self.peer else ()))
        return sum(times.user + times.system for times in (process.cpu_times() for process in processes))


@contextmanager
def pair(way: str) -> Iterator[Pair]:
    """Start a way, and end it."""
    if way == "memory":
        yield from _memory_pair()
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if "curve" in way:
            KeyStore(folder)
        client: Client | None = None
        peer = subprocess.Popen([sys.executable, __file__, way, scratch], stdout=subprocess.PIPE, text=True)  # noqa: S603
        try:
            assert peer.stdout is not None
            client = _client(way, folder, peer.stdout.readline().strip())
            yield Pair(client, psutil.Process(peer.pid))
        finally:
            peer.kill()
            peer.communicate()
            if client is not None:
                client.close()


def _memory_pair() -> Iterator[Pair]:
    network, over = MemoryNetwork(), []
    server = MemoryChannel(network)
    address = server.listen("mem://*")
    thread = Thread(target=serve_channel, args=(server, lambda: bool(over)))
    thread.start()
    client = Flagsplit(MemoryChannel(network), address)
    try:
        yield Pair(client, None)
    finally:
        over.append(True)
        server.wake()
        thread.join()
        client.close()
        server.close()


def _client(way: str, folder: Path, address: str) -> Client:
    match way:
        case "raw":
            return Raw(address)
        case "grpc":
            return Grpc(address)
        case "bare":
            return Bare(address)
        case "bare-curve":
            public, secret = _keys(folder)
            return Bare(address, (public, secret, public))
        case "shared":
            return Shared(address)
    security = KeyStore(folder).security() if way == "curve" else NO_SECURITY
    return Flagsplit(ZmqChannel(security=security), address)


def _keys(folder: Path) -> tuple[bytes, bytes]:
    security = KeyStore(folder).security()
    return security.public_key.encode(), security.secret_key.encode()


def _serve(way: str, folder: Path) -> None:
    def listening(address: str) -> None:
        print(address, flush=True)

    match way:
        case "raw":
            serve_raw(listening)
        case "grpc":
            serve_grpc(listening)
        case "bare":
            serve_bare(listening)
        case "bare-curve":
            serve_bare(listening, _keys(folder))
        case "shared":
            serve_shared(folder, listening)
        case _:
            channel = ZmqChannel(security=KeyStore(folder).security() if way == "curve" else NO_SECURITY)
            listening(channel.listen(f"ipc://{folder / 'channel'}" if way == "ipc" else "tcp://127.0.0.1:0"))
            serve_channel(channel)


if __name__ == "__main__":
    _serve(sys.argv[1], Path(sys.argv[2]))
