"""What a client runs itself: its own loop, to go on without a replica; the first layers of a model whose rest is
elsewhere. What is to run is said by `client_machine.py`.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

from flagsplit.errors import FlagsplitError
from flagsplit.runtime.generation.events import Tokens
from flagsplit.runtime.generation.sequential import events
from flagsplit.runtime.generation.stream_events import Made, MakeRows, RowsMade, RunLocal, Scores, StreamRequest
from flagsplit.targets.generation.step_model import StepModel
from flagsplit.targets.interface import Array

Encode = Callable[[str, Mapping[str, Array]], Mapping[str, Array]]


def _as_they_are(_plan: str, tensors: Mapping[str, Array]) -> Mapping[str, Array]:
    return tensors


class OwnLoop(Protocol):
    """The whole model on this side."""

    def tokens(self, request: StreamRequest, delivered: tuple[int, ...]) -> Iterator[Tokens]:
        """The tokens of a stream after those that were delivered, up to its end, which is told.

        Raises:
            InputError: the model cannot run on what the stream has.
        """


class SequentialLoop:
    """An `OwnLoop` around a step model, one stream after another.

    Args:
        model: used by the client's thread alone from now on; its owner closes it after the client.
        encode: what the steps look at, of a plan and the tensors that cross its cut; by default the tensors themselves.
    """

    def __init__(self, model: StepModel, encode: Encode = _as_they_are) -> None:
        self._model, self._encode = model, encode

    def tokens(self, request: StreamRequest, delivered: tuple[int, ...]) -> Iterator[Tokens]:
        """See `OwnLoop`."""
        context = self._encode(request.plan, request.tensors or {}) or None
        so_far = (*(request.prompt or self._model.facts.prompt), *delivered)
        return events(self._model, context, so_far, request.options, generated=len(delivered), input_s=request.input_s)


class FirstLayers(Protocol):
    """The first layers of a model, with a cache for each stream."""

    def rows(self, rid: int, position: int, tokens: tuple[int, ...]) -> Array:
        """Hidden states float32 [n, width] of the tokens that take the positions from `position` on.

        Raises:
            InputError: a token is none of the model's, or the stream gets too long.
        """

    def forget(self, rid: int) -> None:
        """A stream is over; unknown ones are fine."""


class OwnParts:
    """Runs what the client's machine wants, one thing after another.

    Args:
        loop: the whole model, if it is here.
        layers: the first layers of one, if they are.
        tell: gets what was made, on this object's thread.
    """

    def __init__(
        self, loop: OwnLoop | None, layers: FirstLayers | None, tell: Callable[[Made | RowsMade], None]
    ) -> None:
        self._loop, self._layers, self._tell = loop, layers, tell
        self._jobs: deque[RunLocal | MakeRows] = deque()
        self._changed = threading.Condition()
        self._unwanted: set[int] = set()
        self._stopping = False
        self._thread: threading.Thread | None = None

    def submit(self, job: RunLocal | MakeRows) -> None:
        """Do something when its turn comes."""
        with self._changed:
            self._unwanted.discard(job.rid)
            self._jobs.append(job)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="flagsplit-own-parts", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def forget(self, rid: int) -> None:
        """A stream is over: what runs for it ends with its next token."""
        with self._changed:
            self._jobs = deque(job for job in self._jobs if job.rid != rid)
            self._unwanted.add(rid)
        if self._layers is not None:
            self._layers.forget(rid)

    def stop(self) -> None:
        """End the thread after the token that is being made. A second call does nothing."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopping or bool(self._jobs))
                if self._stopping:
                    return
                job = self._jobs.popleft()
                self._unwanted.intersection_update({each.rid for each in self._jobs} | {job.rid})
            if isinstance(job, MakeRows):
                self._make_rows(job)
            else:
                self._run(job)

    def _is_wanted(self, rid: int) -> bool:
        with self._changed:
            return not self._stopping and rid not in self._unwanted

    def _run(self, job: RunLocal) -> None:
        offset = len(job.delivered)
        try:
            assert self._loop is not None
            for event in self._loop.tokens(job.request, job.delivered):
                if not self._is_wanted(job.rid):
                    return
                scores = Scores(event.logprobs, event.no_speech)
                made = Made(job.rid, job.attempt, offset, event.tokens, event.done, event.reason, scores=scores)
                self._tell(made)
                offset += len(event.tokens)
        except Exception as error:  # noqa: BLE001 - whoever waits for the stream must hear of it
            self._tell(Made(job.rid, job.attempt, offset, error=_text_of(error)))

    def _make_rows(self, job: MakeRows) -> None:
        try:
            assert self._layers is not None
            self._tell(RowsMade(job.rid, job.position, self._layers.rows(job.rid, job.position, job.tokens)))
        except Exception as error:  # noqa: BLE001 - as above
            self._tell(RowsMade(job.rid, job.position, None, _text_of(error)))
        if self._layers is not None and not self._is_wanted(job.rid):
            self._layers.forget(job.rid)  # It was over meanwhile, and the run began its cache anew.


def _text_of(error: Exception) -> str:
    return str(error) if isinstance(error, FlagsplitError) else f"{type(error).__name__}: {error}"
