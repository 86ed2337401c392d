"""The engine for more than one machine: its streams run in replicas of Ray Serve, one call for each stream.

To its user it is a `TokenEngine` like the one in this process. It keeps what a stream was asked with and the tokens
that came of it; when a replica dies or drains, the stream is asked for again, with these, at another one, and goes on
with the same tokens. Needs Ray.
"""

import asyncio
import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Final

from flagsplit.apps.decoder_service.ray_replica import event_of, is_last, message_of
from flagsplit.apps.decoder_service.ray_serve import RayServe
from flagsplit.apps.decoder_service.ray_settings import RaySettings
from flagsplit.runtime.generation.events import Event, Generate, Refused, Tokens
from flagsplit.runtime.generation.stats import EngineStats

_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 2.0
_BUSY_TRIES: Final = 3
_log = logging.getLogger(__name__)


@dataclass
class _Live:
    """A stream that is not over.

    Attributes:
        request: how it was asked for.
        made: tokens that were given out since.
        attempt: how often it was asked for at a replica.
        failures: how often in a row without a token.
        where: the replica that gave the last token.
        task: follows it.
    """

    request: Generate
    made: list[int] = field(default_factory=list)
    attempt: int = 0
    failures: int = 0
    where: str = ""
    task: asyncio.Task[None] | None = None

    @property
    def next_offset(self) -> int:
        """Number of the token that comes next."""
        return self.request.generated + len(self.made)


class RayEngine:
    """Generates in replicas.

    Args:
        serve: the replicas; started and stopped with this engine.
        emit: gets all events, on a thread of this engine; it must return soon and raise nothing.
        prompt: the model's own, for streams that come without one.
        settings: choices.

    Attributes:
        moves: how often streams went to another replica, by the reason.
    """

    def __init__(
        self,
        serve: RayServe,
        emit: Callable[[Event], None],
        prompt: tuple[int, ...],
        settings: RaySettings | None = None,
    ) -> None:
        self._serve = serve
        self._emit = emit
        self._prompt = prompt
        self._settings = settings or RaySettings()
        self._live: dict[str, _Live] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="flagsplit-ray", daemon=True)
        self._stopping = False
        self._wait_s = 0.0
        self._tokens = 0
        self._ended: Counter[str] = Counter()
        self.moves: Counter[str] = Counter()

    def start(self) -> None:
        """Bring the replicas up, and take streams.

        Raises:
            ConfigError: Ray is not installed, or does not reach its cluster.
            PeerError: no replica came up in time.
        """
        self._serve.start()
        self._thread.start()

    def submit(self, request: Generate) -> None:
        """A stream is wanted; events tell what becomes of it. From any thread."""
        if self._stopping:
            self._tell(Refused(request.stream_id, "drain", "this decoder has stopped; ask another"))
            return
        self._loop.call_soon_threadsafe(self._begin, request)

    def cancel(self, stream_id: str) -> None:
        """A stream is not wanted any more; it ends with reason "cancelled", unless it has ended. From any thread."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._quit, stream_id)

    def expected_wait_s(self, client: str = "") -> float:
        """How long the latest streams waited. From any thread."""
        del client
        return self._wait_s

    def stats(self) -> EngineStats:
        """How it goes, as far as this side knows: replicas tell no more than their tokens. From any thread."""
        live = list(self._live.values())
        running = sum(bool(each.where) for each in live)
        return EngineStats(
            streams={"waiting": len(live) - running, "running": running, "parked": 0},
            slots=self._settings.slots * self._settings.replicas,
            kv_bytes=0,
            kv_budget_bytes=0,
            tokens=self._tokens,
            tokens_per_s=0.0,
            prefilled=0,
            evictions=0,
            failures=self.moves.total(),
            is_broken=False,
            batches={},
            ended=dict(self._ended),
            first_ms_p50=math.nan,
            first_ms_p95=math.nan,
        )

    def replicas(self) -> dict[str, int]:
        """How many streams each replica that gave a token lately goes on with: HOST/PID."""
        found: dict[str, int] = self._call(self._count())
        return found

    def upgrade(self, open_model: Callable[[], Any] | None = None) -> None:
        """Replace all replicas one after the other, by ones with another model or, without one, with this software.

        Streams on a replica that goes end there if they end soon; else they go on at another one.
        """
        self._serve.deploy(open_model)

    def stop(self) -> None:
        """End; streams that are left are handed back. A second call does nothing."""
        self._stopping = True
        if self._thread.is_alive():
            self._call(self._end())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        if not self._loop.is_closed():
            self._loop.close()
        self._serve.stop()

    def _call(self, work: Coroutine[Any, Any, Any]) -> Any:
        done: Future[Any] = asyncio.run_coroutine_threadsafe(work, self._loop)
        return done.result()

    async def _count(self) -> dict[str, int]:
        return dict(Counter(live.where for live in self._live.values() if live.where))

    async def _end(self) -> None:
        left = list(self._live.values())
        for live in left:
            if live.task is not None:
                live.task.cancel()
        await asyncio.gather(*(live.task for live in left if live.task is not None), return_exceptions=True)
        for live in left:
            self._tell(Refused(live.request.stream_id, "drain", "this decoder is going away; ask another"))
        self._live.clear()

    def _begin(self, request: Generate) -> None:
        before = self._live.get(request.stream_id)
        if before is not None:
            self._tell(Refused(request.stream_id, "bad-input", "a stream of this id goes on; end it first"))
            return
        live = self._live[request.stream_id] = _Live(request)
        live.task = self._loop.create_task(self._follow(live))

    def _quit(self, stream_id: str) -> None:
        live = self._live.pop(stream_id, None)
        if live is None:
            # Of rows that wait for the next ones a replica keeps the cache.
            self._loop.create_task(self._serve.forget(stream_id))
            return
        if live.task is not None:
            live.task.cancel()
        self._tell(Tokens(stream_id, live.next_offset, (), done=True, reason="cancelled"))

    async def _follow(self, live: _Live) -> None:
        """Until the stream is over, wherever it goes."""
        try:
            while not await self._try(live):
                await asyncio.sleep(min(_PAUSE_S * 2 ** min(live.failures, 8), _LONGEST_PAUSE_S))
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - a bug here must not leave a stream without an answer
            _log.exception("a stream could not be followed: a bug, please report it")
            self._tell_last(live, Refused(live.request.stream_id, "broken", f"{type(error).__name__}: {error}"[:200]))
        finally:
            if self._live.get(live.request.stream_id) is live:
                del self._live[live.request.stream_id]

    async def _try(self, live: _Live) -> bool:
        """Ask for the stream, or its rest, at a replica; whether it is over."""
        live.attempt += 1
        live.where = ""
        request = self._asked(live)
        calls = self._serve.generate(live.request.stream_id, live.failures, message_of(request, time.monotonic()))
        try:
            while True:
                # A stream that has not begun may wait for a slot; one that has goes on with every step.
                async with asyncio.timeout(self._settings.stall_s if live.where else None):
                    items = await anext(calls, None)
                if items is None:
                    return self._lost(live, "ended", "a replica ended a stream without a reason")
                live.where = items["where"]
                for plain in items["events"]:
                    if self._take(live, event_of(plain)):
                        return True
        except TimeoutError:
            return self._lost(live, "stalled", f"no token came for {self._settings.stall_s:g} s from {live.where}")
        except _Elsewhere as error:
            return self._lost(live, error.code, error.reason, error.retry_after_s)
        except self._serve.errors as error:
            code = "full" if type(error).__name__ == "BackPressureError" else "died"
            return self._lost(live, code, " ".join(f"{type(error).__name__}: {error}".split())[:200])
        finally:
            await calls.aclose()

    def _asked(self, live: _Live) -> Generate:
        """What a replica is asked for: with what was delivered, it goes on after that."""
        request = live.request
        if request.rows is not None:
            return request  # The replica may have the cache of the rows before, under this very id.
        tokens = (*(request.tokens or self._prompt), *live.made) if live.made else request.tokens
        return replace(
            request,
            stream_id=f"{request.stream_id}#{live.attempt}",
            tokens=tokens,
            generated=live.next_offset,
        )

    def _take(self, live: _Live, event: Event) -> bool:
        """Pass on what a replica says; whether the stream is over."""
        request = live.request
        if isinstance(event, Refused):
            self._refused(live, event)
            self._tell_last(live, replace(event, stream_id=request.stream_id))
            return True
        if event.offset != live.next_offset:
            raise _Elsewhere("gap", f"expected token {live.next_offset}, came {event.offset}")
        live.made += event.tokens
        if event.tokens:
            live.failures = 0
            self._wait_s = event.timings.wait_us / 1e6
        told, over = replace(event, stream_id=request.stream_id), is_last(event, request)
        if over:
            self._tell_last(live, told)
        else:
            self._tell(told)
        return over

    def _refused(self, live: _Live, event: Refused) -> None:
        """Raise if another replica, or another time, may do better."""
        if event.code in ("drain", "broken"):
            raise _Elsewhere(event.code, event.reason)
        if event.code == "busy" and (live.made or live.failures < min(self._settings.most, _BUSY_TRIES) - 1):
            raise _Elsewhere("busy", event.reason, event.retry_after_s)

    def _lost(self, live: _Live, code: str, reason: str, retry_after_s: float = 0.0) -> bool:
        """A replica does not go on with a stream; whether that is the end of it."""
        self.moves[code] += 1
        live.failures += 1
        request = live.request
        late = time.monotonic() >= request.deadline
        _log.info("stream %s leaves a replica after %d tokens: %s", request.stream_id, len(live.made), reason)
        if late:
            self._tell_last(live, Tokens(request.stream_id, live.next_offset, (), done=True, reason="deadline"))
        elif live.failures > self._settings.max_failures:
            text = f"{live.failures} replicas in a row failed; {reason}"
            self._tell_last(live, Refused(request.stream_id, "broken", text))
        elif code == "full" and not live.made:
            self._tell_last(live, Refused(request.stream_id, "busy", reason, retry_after_s or 1.0))
        else:
            return False
        return True

    def _tell_last(self, live: _Live, event: Event) -> None:
        """Whoever hears it may ask under the same id at once: for the next rows."""
        if self._live.get(event.stream_id) is live:
            del self._live[event.stream_id]
        self._tell(event)

    def _tell(self, event: Event) -> None:
        if isinstance(event, Refused):
            self._ended[event.code] += 1
        else:
            self._tokens += len(event.tokens)
            self._ended.update([event.reason] if event.done else [])
        try:
            self._emit(event)
        except Exception:  # noqa: BLE001 - the other streams go on
            _log.exception("the receiver of events failed at %r", event)


class _Elsewhere(Exception):  # noqa: N818 - no error: the stream goes on at another replica
    def __init__(self, code: str, reason: str, retry_after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.code, self.reason, self.retry_after_s = code, reason, retry_after_s
