"""The transport as the runtime uses it, for `transport.py`: a channel, Open and Chunks, put together by an Assembly.

Hello and Welcome name the feature "credit", so that byte credit and acks travel as they do between session and worker.

The same two measurements as in `transport_rivals.py`, over any channel.
"""

import time
from collections.abc import Callable, Iterator

from flagsplit.transport import (
    VERSION,
    Acked,
    Assembly,
    Channel,
    Chunk,
    Hello,
    Hop,
    Open,
    Pong,
    Received,
    TensorHeader,
    TransferLimits,
    Up,
    Welcome,
    chunks_of,
)
from flagsplit.transport.checksum import crc32
from flagsplit.transport.messages import MAX_INLINE_BYTES, MAX_PAYLOAD_BYTES
from flagsplit.transport.tensors import inline_payload

_WINDOW = 4
_WINDOW_BYTES = 4 << 20
"""In flight are at least so many tensors and at least so many bytes."""
_ROUTE = (Hop("phone", "head", ("t",)), Hop("cloud", "tail", ("u",)), Hop("phone"))
_POLL_S = 20.0
_LIMITS = TransferLimits()


def _opened(rid: int, hop: int, data: memoryview) -> Open:
    """As `Relay.pass_on` makes it, for a peer that named the feature "inline"."""
    header = TensorHeader("t", "uint8", (len(data),), len(data))
    payload = inline_payload([data]) if len(data) <= MAX_INLINE_BYTES else b""
    crc = crc32(payload) if payload else None
    return Open("session", rid, 0, 0, "plan", hop, _ROUTE, (header,), 1000, inline_crc32=crc, payload=payload)


class Flagsplit:
    """A channel, Open and Chunks; works over any channel."""

    def __init__(self, channel: Channel, address: str, server_key: str | None = None) -> None:
        self._channel = channel
        channel.connect("peer", address, server_key=server_key)
        while not any(isinstance(event, Up) for event in channel.poll(_POLL_S)):
            pass
        channel.send("peer", Hello(VERSION, VERSION, channel.instance, "session", "bundle", 1000))
        while not any(_is_welcome(event) for event in channel.poll(_POLL_S)):
            pass
        self._rid = 0

    def stream(self, data: memoryview, count: int) -> float:
        started = time.perf_counter()
        window = max(_WINDOW, _WINDOW_BYTES // len(data))
        sent = done = 0
        while done < count:
            while sent < count and sent - done < window:
                self._send(data, 1)
                sent += 1
            done += sum(isinstance(message, Pong) for message in self._messages())
        return time.perf_counter() - started

    def round_trips(self, data: memoryview, count: int) -> list[float]:
        took = []
        for _ in range(count):
            started = time.perf_counter()
            self._send(data, 0)
            self._take_answer()
            took.append(time.perf_counter() - started)
        return took

    def close(self) -> None:
        self._channel.close()

    def _send(self, data: memoryview, hop: int) -> None:
        self._rid += 1
        _send_tensor(self._channel, "peer", _opened(self._rid, hop, data), data)

    def _take_answer(self) -> None:
        assembly: Assembly | None = None
        while True:
            for message in self._messages():
                if isinstance(message, Open):
                    assembly = Assembly(message, _LIMITS)
                elif isinstance(message, Chunk) and assembly is not None:
                    assembly.accept(message)
                if assembly is not None and assembly.complete:
                    assembly.buffers()
                    return

    def _messages(self) -> Iterator[Open | Chunk | Pong]:
        events = self._channel.poll(_POLL_S)
        for event in events:
            if isinstance(event, Acked):
                continue
            if not isinstance(event, Received) or not isinstance(event.message, Open | Chunk | Pong):
                raise EOFError(f"the peer of flagsplit: {event}")
            yield event.message
        if not events:
            raise EOFError(f"nothing came for {_POLL_S} s")


def _is_welcome(event: object) -> bool:
    return isinstance(event, Received) and isinstance(event.message, Welcome)


def _send_tensor(channel: Channel, peer: str, opened: Open, data: memoryview) -> None:
    for message in (opened, *chunks_of(opened, [data])):
        if not channel.send(peer, message):
            raise EOFError("the channel does not take what the window allows")


def serve_channel(channel: Channel, ends: Callable[[], bool] = lambda: False) -> None:
    """The peer of `Flagsplit`: a tensor for hop 0 goes back, one for hop 1 is only said to be there."""
    arrivals: dict[int, tuple[Open, Assembly]] = {}
    while not ends():
        for event in channel.poll(_POLL_S):
            message = event.message if isinstance(event, Received) else None
            if isinstance(message, Hello):
                channel.send(event.peer, _welcome(channel))
            if not isinstance(message, Open | Chunk):
                continue
            if isinstance(message, Open):
                arrivals[message.rid] = (message, Assembly(message, _LIMITS))
            else:
                arrivals[message.rid][1].accept(message)
            if arrivals[message.rid][1].complete:
                _answer(channel, event.peer, *arrivals.pop(message.rid))


def _welcome(channel: Channel) -> Welcome:
    return Welcome(VERSION, channel.instance, 0, "bundle", "cloud", _LIMITS.max_tensor_bytes, MAX_PAYLOAD_BYTES)


def _answer(channel: Channel, peer: str, opened: Open, assembly: Assembly) -> None:
    (data,) = assembly.buffers()
    if opened.hop:
        channel.send(peer, Pong(opened.rid, 0))
    else:
        _send_tensor(channel, peer, _opened(opened.rid, opened.hop, data), data)
