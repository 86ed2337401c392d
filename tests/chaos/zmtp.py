"""Raw ZMTP 3.0 with the NULL mechanism: connections to say on what libzmq would not, and fast.

Only for workers without keys. The frames are in RFC 23 of ZeroMQ.
"""

import contextlib
import socket
import time
from collections.abc import Sequence
from typing import Self

from flagsplit.transport.channel import new_instance
from flagsplit.transport.messages import VERSION, Attach, Frame, Hello, Lane, Message, encode

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)


def ready(routing_id: bytes) -> bytes:
    """The command that ends the handshake of a DEALER."""
    properties = b"\x0bSocket-Type\x00\x00\x00\x06DEALER\x08Identity" + len(routing_id).to_bytes(4, "big") + routing_id
    command = b"\x05READY" + properties
    return b"\x04" + bytes([len(command)]) + command


def wire(frames: Sequence[Frame], *, unfinished: bool = False) -> bytes:
    """One message as it looks on the wire; `unfinished` says that more frames will come."""
    parts = []
    for at, frame in enumerate(frames):
        more = unfinished or at < len(frames) - 1
        if len(frame) < 256:
            parts.append(bytes([more, len(frame)]))
        else:
            parts.append(bytes([2 | more]) + len(frame).to_bytes(8, "big"))
        parts.append(bytes(frame))
    return b"".join(parts)


class RawPeer:
    """The connections of one peer that has said nothing yet but its routing ids. Use it in a `with` statement."""

    def __init__(self, port: int, lanes: Sequence[Lane] = tuple(Lane), patience_s: float = 10.0) -> None:
        self.instance = new_instance()
        self._lines: dict[Lane, socket.socket] = {}
        for lane in lanes:
            try:
                line = socket.create_connection(("127.0.0.1", port), timeout=patience_s)
            except ConnectionRefusedError:
                raise AssertionError("the worker listens no more") from None
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._lines[lane] = line
            line.sendall(GREETING + ready(f"{self.instance}:{lane.value[0]}:1".encode()))
        for lane in lanes:
            self.read_until(b"READY", lane)  # a message before that is a breach of ZMTP

    def hello(self, bundle: str, **more: object) -> Hello:
        """A Hello that the worker accepts, unless `more` says otherwise."""
        return Hello(VERSION, VERSION, self.instance, "session", bundle, 1000, **more)  # type: ignore[arg-type]

    def introduce(self, bundle: str, **more: object) -> None:
        """Say what has to come first on each lane, and wait for the answer: lanes keep no order among each other."""
        if Lane.DATA in self._lines:
            self.say(Attach(self.instance))
        self.say(self.hello(bundle, **more))
        self.read_until(b"\xa4type")

    def say(self, message: Message) -> None:
        self.send(message.LANE, wire(encode(message)))

    def send(self, lane: Lane, data: bytes) -> None:
        """Raises OSError when the worker cut the connection already."""
        self._lines[lane].sendall(data)

    def read(self, lane: Lane = Lane.CONTROL) -> bytes:
        """What came by now on a lane, at least a byte; nothing is its end."""
        with contextlib.suppress(ConnectionError):
            return self._lines[lane].recv(1 << 16)
        return b""

    def read_until(self, wanted: bytes, lane: Lane = Lane.CONTROL) -> bytes:
        """What came until some bytes did. Raises ConnectionResetError when the worker cut the lane before that."""
        read = b""
        while wanted not in read:
            more = self.read(lane)
            if not more:
                raise ConnectionResetError(f"the connection ended before {wanted!r} came")
            read += more
        return read

    def await_end(self, patience_s: float = 20.0) -> None:
        """Read until the worker has cut every lane."""
        give_up = time.monotonic() + patience_s
        for lane in self._lines:
            while self.read(lane):
                assert time.monotonic() < give_up, "the worker did not cut the connection"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for line in self._lines.values():
            line.close()
