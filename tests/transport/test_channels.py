"""Both channels pass the exported conformance suite, the ZeroMQ one with and without CURVE, over TCP and ipc."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flagsplit.transport.channel import Channel, ChannelOptions
from flagsplit.transport.memory import MemoryChannel, MemoryNetwork
from flagsplit.transport.messages import Frame, Lane
from flagsplit.transport.security import NO_SECURITY, KeyStore, NoSecurity, Security
from flagsplit.transport.testing import CHANNEL_CHECKS, ChannelFactory, check_channel
from flagsplit.transport.zeromq import ZmqChannel


class MemoryFactory:
    def __init__(self) -> None:
        self.network = MemoryNetwork()

    def open(self, options: ChannelOptions | None = None) -> Channel:
        return MemoryChannel(self.network, options=options)

    def listen_address(self) -> str:
        return "mem://*"

    def send_garbage(self, channel: Channel, peer: str) -> None:
        self.send_frames(channel, peer, Lane.CONTROL, [b"garbage"])

    def send_frames(self, channel: Channel, peer: str, lane: Lane, frames: list[Frame]) -> None:
        assert isinstance(channel, MemoryChannel)
        assert channel.send_frames(peer, lane, frames)


class ZmqFactory:
    def __init__(self, security: Security | NoSecurity, address: str) -> None:
        self.security = security
        self.address = address
        self._numbers = itertools.count()

    def open(self, options: ChannelOptions | None = None) -> Channel:
        return ZmqChannel(security=self.security, options=options)

    def listen_address(self) -> str:
        return self.address.format(next(self._numbers))

    def send_garbage(self, channel: Channel, peer: str) -> None:
        self.send_frames(channel, peer, Lane.CONTROL, [b"garbage"])

    def send_frames(self, channel: Channel, peer: str, lane: Lane, frames: list[Frame]) -> None:
        assert isinstance(channel, ZmqChannel)
        socket = channel._outbound[peer]._lanes[lane].socket
        socket.sndtimeo = 5000  # libzmq takes eight at once, its own thread the rest
        socket.send_multipart(frames)


@pytest.fixture(params=["memory", "tcp", "tcp+curve", "ipc"])
def factory(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ChannelFactory]:
    if request.param == "memory":
        yield MemoryFactory()
    elif request.param == "ipc":
        yield ZmqFactory(NO_SECURITY, f"ipc://{tmp_path}/{{}}")
    else:
        security = KeyStore(tmp_path / "keys").security() if "curve" in request.param else NO_SECURITY
        yield ZmqFactory(security, "tcp://127.0.0.1:0")


@pytest.mark.parametrize(
    "check",
    [
        pytest.param(check, id=check.__name__, marks=[pytest.mark.slow] * ("large" in check.__name__))
        for check in CHANNEL_CHECKS
    ],
)
def test_conformance(factory: ChannelFactory, check: Callable[[ChannelFactory], None]) -> None:
    check(factory)


@pytest.mark.slow
def test_check_channel_runs_the_whole_suite() -> None:
    check_channel(MemoryFactory())
