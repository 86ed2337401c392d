"""What the checks of channels share: how they make channels, drive them from one thread, and wait for what must come.

The checks are in `testing.py`, from where all of this is imported, and in `testing_credit.py`.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Final, Protocol, TypeVar

from flagsplit.transport.channel import (
    Acked,
    Channel,
    ChannelEvent,
    ChannelOptions,
    Down,
    Received,
    Up,
    Violated,
    inbound_name,
)
from flagsplit.transport.messages import CREDIT, VERSION, Frame, Hello, Hop, Lane, Message, Open, TensorHeader
from flagsplit.transport.tensors import chunks_of

PATIENCE_S: Final = 10.0
_EventT = TypeVar("_EventT", Up, Down, Violated, Acked)


class ChannelFactory(Protocol):
    """How the suite makes channels that can reach each other."""

    def open(self, options: ChannelOptions | None = None) -> Channel:
        """A new channel; the suite closes it."""

    def listen_address(self) -> str:
        """An address to listen on, with a wildcard where any will do."""

    def send_garbage(self, channel: Channel, peer: str) -> None:
        """Send a frame that is no message from `channel` to its peer `peer`, past all encoders."""

    def send_frames(self, channel: Channel, peer: str, lane: Lane, frames: list[Frame]) -> None:
        """Send frames from `channel` to its peer `peer` as they are, past encoder, credit and queue."""


class Recorder:
    """A channel with everything that it told so far."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.events: list[ChannelEvent] = []
        self.introductions = 0

    def pump(self, timeout_s: float = 0.0) -> None:
        self.events += self.channel.poll(timeout_s)

    def messages(self) -> list[Message]:
        return [event.message for event in self.events if isinstance(event, Received)]

    def named(self, kind: type[_EventT], peer: str) -> list[_EventT]:
        return [event for event in self.events if isinstance(event, kind) and event.peer == peer]


def sample_hello(channel: Channel) -> Hello:
    """A Hello as this channel sends it with the default options."""
    window_bytes = ChannelOptions().window_bytes
    features = (CREDIT,)
    return Hello(VERSION, VERSION, channel.instance, "session", "sha256:0", 1000, {}, features, window_bytes)


def sample_open(*sizes_bytes: int, rid: int = 1) -> Open:
    """An Open of uint8 tensors of these sizes."""
    tensors = tuple(TensorHeader(f"t{i}", "uint8", (size,), size) for i, size in enumerate(sizes_bytes))
    return Open("s", rid, 0, 0, "plan", 1, (Hop("phone"), Hop("cloud", "segment")), tensors, 1000)


def transfer(opened: Open, payload: Frame) -> list[Message]:
    return [opened, *chunks_of(opened, [payload])]


def until(done: Callable[[], bool], *recorders: Recorder, what: str) -> None:
    """Poll the channels in turn until `done`."""
    give_up_s = time.monotonic() + PATIENCE_S
    while not done():
        story = "".join(f"\n  {recorder.events[-8:]}" for recorder in recorders)
        assert time.monotonic() < give_up_s, f"{what}: did not happen within {PATIENCE_S} s; last events:{story}"
        for recorder in recorders:
            recorder.pump(0.005)


@contextlib.contextmanager
def connected(factory: ChannelFactory) -> Iterator[tuple[Recorder, Recorder, str]]:
    """A client that is up with a server, after its Hello; and what the server calls the client."""
    with contextlib.closing(factory.open()) as server, contextlib.closing(factory.open()) as client:
        address = server.listen(factory.listen_address())
        here, there = Recorder(client), Recorder(server)
        client.connect("server", address)
        name = introduce(here, there)
        yield here, there, name


def introduce(client: Recorder, server: Recorder, hello: Hello | None = None) -> str:
    """Wait until both are up with each other, and say Hello in between; what the server calls the client."""
    name = inbound_name(client.channel.instance)
    server_ups = len(server.named(Up, name))
    until(lambda: len(client.named(Up, "server")) > client.introductions, client, server, what="Up of the server")
    client.introductions += 1
    assert client.channel.send("server", hello or sample_hello(client.channel))
    until(lambda: len(server.named(Up, name)) > server_ups, client, server, what="Up of the client, with its Hello")
    return name
