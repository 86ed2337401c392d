"""A worker that knows the protocol and means no good: a channel on a thread, and how it behaves.

It can compute the right answer, to give it twice or too late. What must hold for its session is in the tests.
"""

import threading
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, Self

import numpy as np

from flagsplit.runtime.bundle import Bundle
from flagsplit.targets.interface import Array, LoadOptions
from flagsplit.transport.channel import Received
from flagsplit.transport.messages import (
    VERSION,
    Chunk,
    Frame,
    Hello,
    HopTiming,
    Lane,
    Message,
    Open,
    Ping,
    Pong,
    TensorHeader,
    Welcome,
)
from flagsplit.transport.security import NO_SECURITY
from flagsplit.transport.tensors import Assembly, TransferLimits, chunks_of
from flagsplit.transport.zeromq import ZmqChannel
from flagsplit.transport.zeromq_sockets import RouteLost


class HostileWorker:
    """Says Welcome and answers pings as it should; the rest is up to `behave`. Use it in a `with` statement.

    Args:
        bundle: what it says that it serves.
        behave: called on its thread with what else came, to `say` what it likes.
        welcome: fields of its Welcome that are not as they should be.
    """

    def __init__(
        self,
        bundle: Bundle,
        behave: "Callable[[HostileWorker, Message], None]" = lambda _, __: None,
        welcome: Mapping[str, Any] | None = None,
    ) -> None:
        self.bundle = bundle
        self.session = ""
        self.mute = False
        self._behave, self._welcome = behave, dict(welcome or {})
        self._channel = ZmqChannel(security=NO_SECURITY)
        self.address = self._channel.listen("tcp://127.0.0.1:0")
        self._assemblies: dict[tuple[int, int], Assembly] = {}
        self._opened: Open | None = None
        self._peer = ""
        self._ending = False
        self._thread = threading.Thread(target=self._loop)
        self._thread.start()

    def say(self, *messages: Message) -> None:
        """To the session; only on this worker's thread."""
        for message in messages:
            self._channel.send(self._peer, message)

    def say_frames(self, lane: Lane, frames: list[Frame]) -> None:
        """Past the encoder: whatever they are."""
        listener = self._channel._listener
        assert listener is not None
        peer = listener._peers.get(self._peer)
        if peer is not None:
            with suppress(RouteLost):  # the session may have had enough and gone
                listener._write(peer, lane, frames)

    def question(self, message: Message) -> tuple[Open, dict[str, Array]] | None:
        """The announcement and the tensors that a message completes, if it does."""
        if isinstance(message, Open):
            self._assemblies[message.rid, message.attempt] = Assembly(message, TransferLimits())
            self._opened = message
        if isinstance(message, Chunk):
            assembly = self._assemblies[message.rid, message.attempt]
            if assembly.accept(message) and self._opened is not None:
                arrays = {
                    header.name: np.frombuffer(data, header.dtype).reshape(header.shape)
                    for header, data in zip(self._opened.tensors, assembly.buffers(), strict=True)
                }
                return self._opened, arrays
        return None

    def answer(self, opened: Open, tensors: dict[str, Array]) -> list[Message]:
        """What an honest worker would say."""
        segment = opened.route[opened.hop].segment
        loaded = self.bundle.load(self.bundle.tier_index("cloud"), segment, LoadOptions(threads=1))
        outputs = loaded.run(tensors)
        loaded.close()
        arrays = [np.ascontiguousarray(outputs[name]) for name in opened.route[opened.hop].carry]
        headers = tuple(
            TensorHeader(name, array.dtype.name, array.shape, array.nbytes)
            for name, array in zip(opened.route[opened.hop].carry, arrays, strict=True)
        )
        trace = (*opened.trace, HopTiming("cloud", segment, 0, 1, 0, 0))
        back = replace(opened, hop=opened.hop + 1, tensors=headers, trace=trace, resume=False)
        return [back, *chunks_of(back, [array.data.cast("B") for array in arrays])]

    def _loop(self) -> None:
        try:
            while not self._ending:
                for event in self._channel.poll(None):
                    if isinstance(event, Received):
                        self._peer = event.peer
                        self._hear(event.message)
        finally:
            self._channel.close()

    def _hear(self, message: Message) -> None:
        if self.mute:
            return
        if isinstance(message, Hello):
            self.session = message.instance
            welcome = Welcome(VERSION, self._channel.instance, 0, self.bundle.digest, "cloud", 1 << 28, 1 << 20)
            self.say(replace(welcome, **self._welcome))
        if isinstance(message, Ping):
            self.say(Pong(message.seq, message.sent_us))
        self._behave(self, message)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ending = True
        self._channel.wake()
        self._thread.join()


def chunk(opened: Open, payload: bytes, offset: int = 0, tensor: int = 0) -> Chunk:
    """A chunk of an announcement, whatever it says."""
    crc32 = zlib.crc32(payload)
    return Chunk(opened.sid, opened.rid, opened.attempt, opened.hop, tensor, offset, crc32, payload=payload)
