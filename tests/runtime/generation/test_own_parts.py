"""What a client runs itself, and what it holds of a stream, when streams and event loops end in the wrong moment."""

import asyncio
import queue
import threading

import numpy as np
import pytest

from flagsplit.runtime.generation.own_parts import OwnParts
from flagsplit.runtime.generation.stream_events import Made, MakeRows, Place, RowsMade
from flagsplit.runtime.generation.token_stream import TokenStream
from flagsplit.targets.interface import Array


class Layers:
    """First layers that keep something of each stream, and run until they are let go on."""

    def __init__(self) -> None:
        self.kept = set[int]()
        self.begun, self.go_on = threading.Event(), threading.Event()

    def rows(self, rid: int, position: int, tokens: tuple[int, ...]) -> Array:
        self.begun.set()
        assert self.go_on.wait(5)
        self.kept.add(rid)
        return np.zeros((len(tokens), 2), np.float32)

    def forget(self, rid: int) -> None:
        self.kept.discard(rid)


def test_nothing_is_kept_of_a_stream_that_ended_while_its_rows_were_made() -> None:
    layers, told = Layers(), queue.SimpleQueue[Made | RowsMade]()
    parts = OwnParts(None, layers, told.put)
    parts.submit(MakeRows(1, 0, (5,)))
    assert layers.begun.wait(5)
    parts.forget(1)
    layers.go_on.set()
    told.get(timeout=5)
    parts.submit(MakeRows(2, 0, (5,)))
    told.get(timeout=5)
    parts.stop()
    assert layers.kept == {2}


def test_a_loop_that_ends_while_tokens_come_does_not_hold_them_up(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, loop = TokenStream(1, lambda _rid: None), asyncio.new_event_loop()
    waiting = loop.create_task(anext(stream))
    loop.run_until_complete(asyncio.sleep(0))
    waiting.cancel()
    loop.run_until_complete(asyncio.gather(waiting, return_exceptions=True))
    loop.close()
    monkeypatch.setattr(loop, "is_closed", lambda: False)  # It closed after it was asked.
    stream.give(0, (7,), Place("cloud"))
    stream.end("stop")
    assert stream.result(1) == (7,)
