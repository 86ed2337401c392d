"""Backends of programs: the facts of a program, its tokenizer, and where its tokens come from."""

import asyncio
import os
import threading
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager, suppress
from dataclasses import replace

from flagsplit.apps.decoder_service.gateway_backend import BusyError, Cut, ModelFacts, Piece, Sound, Wanted
from flagsplit.apps.decoder_service.gateway_sound import Upload
from flagsplit.apps.decoder_service.gateway_source import Source
from flagsplit.apps.speech.recognizer import Heard, SpeechFacts
from flagsplit.apps.speech.token_recognizer import TokenRecognizer, TokenRun
from flagsplit.apps.speech.transcriber import NewWord, Samples, Segment, Transcriber
from flagsplit.apps.text.tokenizer import Tokenizer
from flagsplit.flagir.programs.program import ProgramFacts
from flagsplit.runtime.generation.options import GenerationOptions
from flagsplit.runtime.generation.stream_events import Place, Scores
from flagsplit.runtime.generation.token_stream import TokenStream
from flagsplit.targets.interface import Array, Executable

_WORDS_AHEAD = 64
_PIECE_SAMPLES = 8000
_MOST_RECORDINGS = 64
"""Each is followed by a thread."""


def model_facts(facts: ProgramFacts, name: str = "", cuts: Mapping[str, Cut] | None = None) -> ModelFacts:
    """What clients are told of a program.

    Args:
        facts: of it.
        name: by which clients ask for it; by default its own.
        cuts: by name of a plan, the tensors that cross its cut.
    """
    return ModelFacts(
        name or facts.name,
        "text" if facts.kind == "decoder-only" else "speech",
        facts.vocabulary,
        facts.max_positions,
        # Moonshine's and Whisper's prompts here are English.
        languages=("en",) if facts.kind == "encoder-decoder" else (),
        begin=facts.prompt if facts.kind == "decoder-only" else (),
        cuts=cuts or {},
    )


class ProgramBackend:
    """A program that goes on from text.

    Args:
        facts: what clients are told.
        tokenizer: of the program.
        source: of its tokens.
    """

    def __init__(self, facts: ModelFacts, tokenizer: Tokenizer, source: Source) -> None:
        self.facts = facts
        self.tokenizer = tokenizer
        self._source = source

    def not_ready(self) -> str:
        """Why it takes no streams now, "" if it does."""
        return self._source.not_ready()

    async def generate(self, wanted: Wanted) -> AsyncGenerator[Piece, None]:
        """See `Backend.generate`."""
        stream = await _begin(self._source, wanted)
        try:
            async for token in stream:
                yield Piece((token.token,), "", where_of(token.place))
            yield Piece((), stream.reason)
        finally:
            stream.cancel()


async def _begin(source: Source, wanted: Wanted) -> TokenStream:
    """Begin a stream on another thread; if nobody waits for it any more, it is cancelled as soon as it began."""
    beginning = asyncio.ensure_future(asyncio.to_thread(source.stream, wanted))
    try:
        return await asyncio.shield(beginning)
    except asyncio.CancelledError:
        beginning.add_done_callback(_cancel_begun)
        raise


def _cancel_begun(beginning: "asyncio.Future[TokenStream]") -> None:
    if not beginning.cancelled() and beginning.exception() is None:
        beginning.result().cancel()


def where_of(place: Place) -> str:
    """A tier, and which of its replicas."""
    return f"{place.tier} {place.replica}".strip()


class SpeechBackend(ProgramBackend):
    """A program that listens.

    Args:
        facts: what clients are told.
        about: the program, what it reads of a sound, and the plan under which it is sent just that.
        source: of its tokens.
        open_detector: opens the network that finds speech; no two recordings use one at once.
    """

    def __init__(
        self, facts: ModelFacts, about: SpeechFacts, source: Source, open_detector: Callable[[], Executable]
    ) -> None:
        super().__init__(facts, about.tokenizer, source)
        self._about = about
        self._open_detector = open_detector
        self._detectors: list[Executable] = []
        self._turns = threading.Semaphore(os.cpu_count() or 1)
        self._threads = ThreadPoolExecutor(_MOST_RECORDINGS, thread_name_prefix="flagsplit-listen")
        self._recordings = 0

    def open_sound(self, data: bytes) -> Sound:
        """A WAV file that somebody sent. It lies in a temporary file until it is closed.

        Raises:
            InputError: it is none.
        """
        return Upload(data)

    def close(self) -> None:
        """Free what no recording needs any more. A second call does nothing."""
        self._threads.shutdown(cancel_futures=True)
        while self._detectors:
            self._detectors.pop().close()

    async def listen(
        self, sound: Sound, wanted: Wanted, *, live: bool = False
    ) -> AsyncGenerator[NewWord | Segment, None]:
        """See `Listener.listen`."""
        if self._recordings >= _MOST_RECORDINGS:
            raise BusyError(f"{_MOST_RECORDINGS} recordings are listened to already; try again soon")
        self._recordings += 1
        try:
            async with aclosing(self._follow(sound, wanted, live=live)) as events:
                async for event in events:
                    yield event
        finally:
            self._recordings -= 1

    async def _follow(self, sound: Sound, wanted: Wanted, *, live: bool) -> AsyncGenerator[NewWord | Segment, None]:
        wanted = replace(wanted, plan=self._about.plan)
        recognizer = GatewayRecognizer(self._about, self._source, wanted, self._turns)
        loop, room = asyncio.get_running_loop(), threading.Semaphore(_WORDS_AHEAD)
        queue: asyncio.Queue[NewWord | Segment | BaseException | None] = asyncio.Queue()

        def put(item: NewWord | Segment | BaseException | None) -> None:
            with suppress(RuntimeError):  # The loop has ended: nobody listens.
                loop.call_soon_threadsafe(queue.put_nowait, item)

        def work() -> None:
            try:
                with self._detector() as detector:
                    transcriber = Transcriber(recognizer, detector, live=live)
                    for event in transcriber.events(recognizer.wanted(sound.blocks(self._about.rate_hz))):
                        if not room.acquire(blocking=False):
                            with recognizer.resting():
                                room.acquire()
                        if recognizer.is_closed:
                            return
                        put(event)
                put(None)
            except Exception as error:  # noqa: BLE001 - it is raised where it is waited for
                put(error)

        working = loop.run_in_executor(self._threads, work)
        try:
            while (item := await queue.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                room.release()
                yield item
        finally:
            recognizer.close()
            room.release()
            sound.interrupt()
            # The thread reads from the recording, which whoever called closes next.
            await asyncio.shield(working)

    @contextmanager
    def _detector(self) -> Iterator[Executable]:
        try:
            detector = self._detectors.pop()
        except IndexError:
            detector = self._open_detector()
        try:
            yield detector
        finally:
            self._detectors.append(detector)


class GatewayRecognizer(TokenRecognizer):
    """Recognizes each window of a recording by a stream; it can be closed from another thread.

    Args:
        about: the model.
        source: of its tokens.
        wanted: what each stream is to be like.
        turns: how many recordings are worked on at once. Threads that all compute keep each other, and the engine,
            waiting for the interpreter; those that wait for sound or tokens need no turn.
    """

    def __init__(self, about: SpeechFacts, source: Source, wanted: Wanted, turns: threading.Semaphore) -> None:
        super().__init__(about, wanted.options)
        self.times = wanted.times
        self._source, self._wanted = source, wanted
        self._lock = threading.Lock()
        self._stream: TokenStream | None = None
        self._closed = threading.Event()
        self._turns = turns

    @property
    def is_closed(self) -> bool:
        """Whether nobody wants more of it."""
        return self._closed.is_set()

    def wanted(self, blocks: Iterable[Samples]) -> Iterator[Samples]:
        """Sound in short pieces, as long as anybody wants more of it."""
        for block in blocks:
            for start in range(0, len(block), _PIECE_SAMPLES):
                if self._closed.is_set():
                    return
                with self._turns:
                    yield block[start : start + _PIECE_SAMPLES]

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Let others have the turn while this one waits."""
        self._turns.release()
        try:
            yield
        finally:
            self._turns.acquire()

    def recognize(self, samples: Samples, *, is_partial: bool = False, shared_s: float = 0.0) -> Iterator[Heard]:
        """The text of a sound; others have the turn meanwhile."""
        if not self._closed.is_set():
            with self.resting():
                yield from super().recognize(samples, is_partial=is_partial, shared_s=shared_s)

    def encode(self, samples: Samples) -> Mapping[str, Array]:
        """What the model reads: its encoder runs where the tokens are made."""
        return self.sound.tensors(samples)

    def run(
        self, encoded: Mapping[str, Array], seconds: float, prompt: tuple[int, ...], options: GenerationOptions
    ) -> TokenRun:
        """The tokens of a sound; none when nobody wants more."""
        if self._closed.is_set():
            return Scores()
        wanted = replace(self._wanted, tensors=encoded, input_s=seconds, prompt=prompt, options=options)
        stream = self._source.stream(wanted)
        with self._lock:
            self._stream = stream
            if self._closed.is_set():
                stream.cancel()
        try:
            for token in stream:
                yield token.token, where_of(token.place)
        finally:
            stream.cancel()
        return stream.scores

    def close(self) -> None:
        """End the stream that goes on, and begin no more. From any thread."""
        with self._lock:
            self._closed.set()
            if self._stream is not None:
                self._stream.cancel()
