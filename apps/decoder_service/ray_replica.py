"""What runs in a replica of Ray Serve: one step model with its engine, and a call for each stream.

The replica knows nothing of Ray, and Ray nothing of tokens: what goes over a call are dicts of plain values and arrays.
Who calls, and what becomes of a stream whose replica dies, is in `ray_engine`.
"""

import asyncio
import os
import platform
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from flagsplit.errors import InternalError
from flagsplit.runtime.generation.admission import SchedulerSettings
from flagsplit.runtime.generation.engine import GenerationEngine
from flagsplit.runtime.generation.events import Event, Generate, Refused, Timings, Tokens
from flagsplit.runtime.generation.options import options_from_json
from flagsplit.targets.generation.step_model import StepModel

Message = dict[str, Any]


class DecoderReplica:
    """Generates for streams that others hold.

    Args:
        open_model: opens the step model here, on the replica's host.
        settings: of the scheduler.
    """

    def __init__(self, open_model: Callable[[], StepModel], settings: SchedulerSettings) -> None:
        self._where = f"{platform.node()}/{os.getpid()}"
        self._loop: asyncio.AbstractEventLoop | None = None
        self._streams: dict[str, asyncio.Queue[Event]] = {}
        self._engine = GenerationEngine(open_model(), self._emit, settings)
        self._engine.start()

    async def generate(self, message: Message) -> AsyncGenerator[Message, None]:
        """A stream: what the engine says of it, until it is over. Closing it cancels the stream.

        Args:
            message: see `message_of`.
        """
        self._loop = asyncio.get_running_loop()
        request = request_of(message)
        name = request.stream_id
        queue = self._streams[name] = asyncio.Queue()
        over = False
        try:
            self._engine.submit(request)
            while not over:
                events = [await queue.get()]
                with suppress(asyncio.QueueEmpty):
                    while True:
                        events.append(queue.get_nowait())
                over = any(is_last(event, request) for event in events)
                yield {"events": [_plain(event) for event in events], "where": self._where}
        finally:
            if self._streams.get(name) is queue:
                del self._streams[name]
            if not over:
                self._engine.cancel(name)

    async def forget(self, name: str) -> None:
        """A stream whose cache is kept between calls is not wanted any more."""
        self._engine.cancel(name)

    async def wait_s(self) -> float:
        """How long a new stream would wait here."""
        return self._engine.expected_wait_s()

    async def check_health(self) -> None:
        """Raise if this replica is better replaced: Ray Serve asks every now and then.

        Raises:
            InternalError: its model fails again and again.
        """
        if self._engine.stats().is_broken:
            raise InternalError("the step model fails again and again")

    def stop(self) -> None:
        """End the engine; streams that are left are handed back. A second call does nothing."""
        self._engine.stop()

    def __del__(self) -> None:
        """Ray Serve calls it when the replica has no more streams and is to end."""
        if hasattr(self, "_engine"):
            self.stop()

    def _emit(self, event: Event) -> None:
        if self._loop is not None:
            with suppress(RuntimeError):  # The loop has ended: nobody listens.
                self._loop.call_soon_threadsafe(self._give, event)

    def _give(self, event: Event) -> None:
        queue = self._streams.get(event.stream_id)
        if queue is not None:
            queue.put_nowait(event)


def is_last(event: Event, request: Generate) -> bool:
    """Whether a call is over with this event: a stream of rows waits for the next ones, its cache kept."""
    return isinstance(event, Refused) or event.done or (request.rows is not None and bool(event.tokens))


def message_of(request: Generate, now: float) -> Message:
    """A stream as plain values; times are left as how long there is, since hosts have clocks of their own."""
    return {
        "stream_id": request.stream_id,
        "client": request.client,
        "context": dict(request.context) if request.context is not None else None,
        "tokens": list(request.tokens),
        "generated": request.generated,
        "options": request.options.to_json(),
        "left_s": request.deadline - now,
        "input_s": request.input_s,
        "rows": request.rows,
        "position": request.position,
    }


def request_of(message: Mapping[str, Any]) -> Generate:
    """The stream that `message_of` told of."""
    fields = dict(message)
    fields["tokens"] = tuple(fields["tokens"])
    fields["options"] = options_from_json(fields["options"])
    fields["deadline"] = time.monotonic() + fields.pop("left_s")
    return Generate(**fields)


def event_of(plain: Mapping[str, Any]) -> Event:
    """The event that a replica told of."""
    fields = dict(plain)
    if "code" in fields:
        return Refused(**fields)
    fields["tokens"] = tuple(fields["tokens"])
    fields["logprobs"] = tuple(fields.get("logprobs", ()))  # a replica from before an upgrade has none
    fields["timings"] = Timings(**fields["timings"])
    return Tokens(**fields)


def _plain(event: Event) -> Message:
    return asdict(event)
