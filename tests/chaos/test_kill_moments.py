"""kill -9 of a worker at each step of a request: the answer comes all the same, and the worker is used again after."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.chaos.served import ALONE, LARGE, SETTINGS, Oracle, Served, until
from tests.runtime.bundles import inputs_of

import flagsplit
from flagsplit.runtime.bundle import Bundle
from flagsplit.transport.channel import Acked, ChannelEvent, Received
from flagsplit.transport.messages import Chunk, Done, Hello, Message, Open, Welcome
from flagsplit.transport.zeromq import ZmqChannel

pytestmark = pytest.mark.slow


@pytest.fixture
def slow_cloud(bundle: Bundle, _own_home: None) -> Iterator[Served]:
    """A worker that takes its time: half a second and more for large tensors."""
    with Served(bundle, {}, "--slowdown", "200") as cloud:
        yield cloud


class Spy:
    """Acts when the session's channel sends, or has received, message number `at` of a type, once."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, way: str, kind: type[Message], at: int, act: Callable[[], Any]
    ) -> None:
        self.happened = False
        self._kind, self._left, self._act = kind, at, act
        send, poll = ZmqChannel.send, ZmqChannel.poll

        def watched_send(channel: ZmqChannel, peer: str, message: Message) -> bool:
            if way == "sent":
                self._see(message)
            return send(channel, peer, message)

        def watched_poll(channel: ZmqChannel, timeout_s: float | None) -> list[ChannelEvent]:
            events = poll(channel, timeout_s)
            if way == "came":
                for event in events:
                    if isinstance(event, Received):
                        self._see(event.message)
            return events

        monkeypatch.setattr(ZmqChannel, "send", watched_send)
        monkeypatch.setattr(ZmqChannel, "poll", watched_poll)

    def _see(self, message: Message) -> None:
        if isinstance(message, self._kind) and not self.happened:
            self._left -= 1
            if self._left < 0:
                self.happened = True
                self._act()


# Two megabytes each way are eight chunks each way.
_MOMENTS: dict[str, tuple[str, type[Message], int]] = {
    "before Hello": ("sent", Hello, 0),
    "after Welcome": ("came", Welcome, 0),
    "before Open": ("sent", Open, 0),
    "before the first Chunk": ("sent", Chunk, 0),
    "amid the Chunks": ("sent", Chunk, 4),
    "before the last Chunk": ("sent", Chunk, 7),
    "after the answer's Open": ("came", Open, 0),
    "after the answer's first Chunk": ("came", Chunk, 0),
    "amid the answer's Chunks": ("came", Chunk, 4),
    "before Done": ("sent", Done, 0),
}


@pytest.mark.parametrize("moment", _MOMENTS)
def test_kill_9(oracle: Oracle, cloud: Served, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    spy = Spy(monkeypatch, *_MOMENTS[moment], cloud.kill)
    with flagsplit.connect(oracle.bundle, {"cloud": cloud.address}, settings=SETTINGS) as session:
        answer = session.run(inputs_of(1, LARGE))
        oracle.check(answer, 1, LARGE)
        assert spy.happened
        # What came before the end of an answer may be all of it: the kernel held the rest already.
        assert answer.report.plan == ALONE or "answer" in moment or moment == "before Done"
        cloud.revive()
        oracle.check_recovers(session)


def test_kill_9_while_the_segment_runs(oracle: Oracle, slow_cloud: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """All has come when the last Credit says so, and the answer is far."""
    with flagsplit.connect(oracle.bundle, {"cloud": slow_cloud.address}, settings=SETTINGS) as session:
        oracle.check_recovers(session)
        acked: list[Acked] = []
        poll = ZmqChannel.poll

        def watched(channel: ZmqChannel, timeout_s: float | None) -> list[ChannelEvent]:
            events = poll(channel, timeout_s)
            acked.extend(event for event in events if isinstance(event, Acked))
            return events

        monkeypatch.setattr(ZmqChannel, "poll", watched)
        future = session.submit(inputs_of(2, LARGE))
        until(lambda: acked and acked[-1].acked_bytes > LARGE * 96 and not acked[-1].unacked_bytes, "the last Credit")
        assert not future.done()
        slow_cloud.kill()
        answer = future.result()
        oracle.check(answer, 2, LARGE)
        assert answer.report.plan == ALONE
        slow_cloud.revive()
        oracle.check_recovers(session)
