"""What an application holds of a stream that is being made: an iterator of tokens, for threads and for asyncio."""

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

from flagsplit.errors import FlagsplitError, UnavailableError
from flagsplit.runtime.generation.stream_events import NO_SCORES, Place, Scores


@dataclass(frozen=True)
class StreamToken:
    """One token.

    Attributes:
        token: its id.
        offset: its number in the stream, from 0, without the prompt.
        place: where it was made.
        at_s: when it came: seconds since the stream was asked for.
    """

    token: int
    offset: int
    place: Place
    at_s: float


class TokenStream(Iterator[StreamToken], AsyncIterator[StreamToken]):
    """The tokens of one stream, each once, as they come. It is for one reader: a thread, or a task of an event loop.

    Leaving it unread costs nothing but memory; who does not want the rest calls `cancel`, or uses it in a `with` or
    `async with` statement, at whose end it is cancelled.

    Args:
        rid: its number at its client.
        cancel: called with it when nobody wants the rest.
    """

    def __init__(self, rid: int, cancel: Callable[[int], None]) -> None:
        self.rid = rid
        self._cancel = cancel
        self._began = time.monotonic()
        self._changed = threading.Condition()
        self._made: list[StreamToken] = []
        self._unread: deque[StreamToken] = deque()
        self._logprobs: list[float] = []
        self._no_speech = 0.0
        self._reason = ""
        self._is_over = False
        self._error: FlagsplitError | None = None
        self._waiters: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cancel()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> StreamToken:
        """The next token; waits for it.

        Raises:
            StopIteration: the stream is over; `reason` says why.
            InputError: the model cannot go on from what it was given.
            UnavailableError: no replica took it, or all failed.
        """
        with self._changed:
            while not self._unread and not self._is_over:
                self._changed.wait()
            if self._unread:
                return self._unread.popleft()
            if self._error is not None:
                raise self._error
            raise StopIteration

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> StreamToken:
        """The next token; as `__next__`, without blocking the event loop."""
        while True:
            with self._changed:
                if self._unread:
                    return self._unread.popleft()
                if self._error is not None:
                    raise self._error
                if self._is_over:
                    raise StopAsyncIteration
                loop = asyncio.get_running_loop()
                waiting = loop.create_future()
                self._waiters.append((loop, waiting))
            await waiting

    @property
    def reason(self) -> str:
        """Why it ended: "stop", "length", "deadline" or "cancelled"; "" while it goes on, and after an error."""
        with self._changed:
            return self._reason

    @property
    def is_over(self) -> bool:
        """Whether no more tokens will come; some may still be unread."""
        with self._changed:
            return self._is_over

    @property
    def made(self) -> tuple[StreamToken, ...]:
        """All tokens that came so far, read or not."""
        with self._changed:
            return tuple(self._made)

    @property
    def where(self) -> tuple[Place, ...]:
        """For each token that came so far, where it was made."""
        return tuple(each.place for each in self.made)

    @property
    def scores(self) -> Scores:
        """How likely what came so far was, if the options asked for `logprobs`; complete once it is over."""
        with self._changed:
            return Scores(tuple(self._logprobs), self._no_speech)

    def result(self, timeout_s: float | None = None) -> tuple[int, ...]:
        """Wait for the end; all token ids.

        Raises:
            UnavailableError: it is not over in time, or as for `__next__`.
            InputError: as for `__next__`.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._is_over, timeout_s):
                raise UnavailableError(f"the stream is not over after {timeout_s:g} s; wait longer, or cancel it")
            if self._error is not None:
                raise self._error
            return tuple(each.token for each in self._made)

    def cancel(self) -> None:
        """Do not make the rest; the stream ends with the reason "cancelled". One that is over stays as it is."""
        self._cancel(self.rid)

    def give(self, offset: int, tokens: tuple[int, ...], place: Place, scores: Scores = NO_SCORES) -> None:
        """Take the next tokens, or the scores of the end; for the client."""
        at_s = time.monotonic() - self._began
        with self._changed:
            new = [StreamToken(token, offset + index, place, at_s) for index, token in enumerate(tokens)]
            self._made.extend(new)
            self._unread.extend(new)
            self._logprobs.extend(scores.logprobs)
            self._no_speech = self._no_speech or scores.no_speech
            self._wake()

    def end(self, reason: str, error: FlagsplitError | None = None) -> None:
        """Nothing follows; for the client."""
        with self._changed:
            if not self._is_over:
                self._is_over, self._reason, self._error = True, reason, error
                self._wake()

    def _wake(self) -> None:
        self._changed.notify_all()
        waiters, self._waiters = self._waiters, []
        for loop, waiting in waiters:
            with suppress(RuntimeError):  # The loop has ended, maybe just now: nobody waits.
                loop.call_soon_threadsafe(_resolve, waiting)


def _resolve(waiting: "asyncio.Future[None]") -> None:
    if not waiting.done():
        waiting.set_result(None)
