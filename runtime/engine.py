"""The thread on which one tier computes, for all clients and bundles that it serves.

Who is next is decided in `flagsplit.runtime.fair_queue`, what is in memory in `flagsplit.runtime.segment_store`, whose
thread loads while this one computes; which runs are put together in `flagsplit.runtime.batching`. Engines let go of
the interpreter while they compute, so messages come and go meanwhile.
"""

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path

from flagsplit.errors import ConfigError, FlagsplitError, InputError
from flagsplit.runtime.batching import BatchOptions, agree, can_batch, form_of, join, rows_of, split
from flagsplit.runtime.codec_check import check_encoded
from flagsplit.runtime.events import Ran, Run
from flagsplit.runtime.fair_queue import FairQueue, Job, SegmentKey
from flagsplit.runtime.residency import Mode, Residency
from flagsplit.runtime.segment_store import Contents, Held, SegmentLoader, SegmentStore
from flagsplit.targets.interface import Array, Executable

SKIPPED = "skipped"
"""`Ran.error` of a run that nobody waited for any more."""

OUT_OF_RANGE = "out of range: "
"""What `Ran.error` begins with where a codec could not carry what it was given."""
_LATE_S = 1e-3
"""A run is late when its deadline has passed, not when it is reached."""

DEADLINE = "deadline"
"""`Ran.error` of a run that did not begin before its deadline."""


def check_slowdown(slowdown: float) -> None:
    """Raises ConfigError unless it is a factor by which a tier can be slowed down."""
    if not 1 <= slowdown < math.inf:
        raise ConfigError(f"slowdown: expected a factor of 1 or more, came {slowdown}; a tier cannot be made faster")


class Engine:
    """A compute thread with its loaded segments.

    Args:
        load: loads a segment of a bundle; called on the loading thread, while other segments run.
        order: ids of all segments of the first bundle, the most likely first.
        size_bytes: for each of them, an estimate of what it holds when loaded.
        budget_bytes: how much the loaded segments of all bundles may hold together; one is always allowed.
        done: called with the result of each run, on the compute thread or the one that submits, skips or removes.
        slowdown: emulates a slower device: a run that took t seconds keeps the engine busy for `slowdown * t` in all;
            t leaves out what its thread waited for a processor that others on this host used.
        bundle: digest of the first bundle, as runs say it.
        parts: for segments that are held as atoms, the ids of these; `size_bytes` then has the atoms.
        batching: whether small runs are put together; off by default.
        mode: how plans are held, for `residency`.
    """

    def __init__(
        self,
        load: SegmentLoader,
        order: Sequence[str],
        size_bytes: Mapping[str, float],
        budget_bytes: float,
        done: Callable[[Ran], None],
        slowdown: float = 1.0,
        *,
        bundle: str = "",
        parts: Mapping[str, Sequence[str]] | None = None,
        batching: BatchOptions | None = None,
        mode: Mode = "segments",
    ) -> None:
        self._done = done
        self._slowdown = slowdown
        self._bundle = bundle
        self._batching = batching or BatchOptions()
        self._mode = mode
        self._rows_are_independent: dict[SegmentKey, bool] = {}
        self._queue = FairQueue()
        self._changed = threading.Condition()
        self._store = SegmentStore(load, budget_bytes, self._changed, lambda key: self._queue.waiting_for(key) > 0)
        with self._changed:
            self._store.add(bundle, Contents(order, size_bytes, parts or {}), ())
        self._stopping = False
        self._thread = threading.Thread(target=self._work, name="flagsplit-engine", daemon=True)

    def start(self, preload: Sequence[str]) -> None:
        """Load what the first requests will need, then take jobs.

        Args:
            preload: ids of segments of the first bundle.

        Raises:
            FlagsplitError: a segment cannot be loaded.
        """
        for segment in preload:
            self._store.load_now((self._bundle, segment))
        self._store.start()
        self._thread.start()

    def add(
        self,
        bundle: str,
        order: Sequence[str],
        size_bytes: Mapping[str, float],
        preload: Sequence[str] = (),
        parts: Mapping[str, Sequence[str]] | None = None,
    ) -> "Future[None]":
        """Serve another bundle too. Runs under way are not held up by its loading.

        Args:
            bundle: its digest.
            order: ids of all its segments, the most likely first; loaded while the budget lasts.
            size_bytes: for each segment, an estimate of what it holds when loaded.
            preload: ids of segments to load in any case; those that were not used for longest make room.
            parts: for segments that are held as atoms, the ids of these; `size_bytes` then has the atoms.

        Returns:
            Done when `preload` is loaded, or with the error of the first that cannot be. The bundle is served before
            that too, and stays after an error until it is removed.
        """
        with self._changed:
            return self._store.add(bundle, Contents(order, size_bytes, parts or {}), preload)

    def remove(self, bundle: str) -> None:
        """Serve a bundle no more: a run under way ends, those that wait are skipped, its segments are freed."""
        with self._changed:
            left = self._queue.skip_bundle(bundle)
            self._store.remove(bundle)
            for key in [key for key in self._rows_are_independent if key[0] == bundle]:
                del self._rows_are_independent[key]
        self._tell(left, SKIPPED)

    def submit(self, run: Run) -> None:
        """Run a segment when its turn comes; `done` gets the result."""
        with self._changed:
            known = self._store.knows(run.bundle)
            if known:
                self._store.want((run.bundle, run.segment))
                self._queue.push(run, time.monotonic())
                self._changed.notify_all()
        if not known:
            self._tell([run], f"bundle {run.bundle[:12] or '(unnamed)'} is not served here")

    def resident(self) -> dict[str, float]:
        """By segment that is loaded, an estimate of the bytes that it holds; from any thread."""
        return {holding.segment: float(holding.estimated_bytes) for holding in self.residency().loaded}

    def skip(self, token: int) -> None:
        """Do not run what did not begin yet; `done` is told all the same."""
        with self._changed:
            left = self._queue.skip(token)
            self._changed.notify_all()
        self._tell(left, SKIPPED)

    def expected_wait_s(self, client: str = "") -> float:
        """Seconds that a run asked for now would wait, as far as earlier runs tell; by default for a new client."""
        with self._changed:
            return self._queue.expected_wait_s(time.monotonic(), client)

    def residency(self) -> Residency:
        """What is loaded, and what it holds."""
        with self._changed:
            return self._store.report(self._mode)

    def stop(self) -> None:
        """Finish the run under way, drop the others, close the segments."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join()
        self._store.stop()

    def _tell(self, runs: Sequence[Run], error: str) -> None:
        for run in runs:
            self._done(Ran(run.token, None, error))

    def _work(self) -> None:
        while (turn := self._next_turn()) is not None:
            for ran in turn:
                self._done(ran)

    def _next_turn(self) -> Iterator[Ran] | None:
        """Wait for something to do; None if the engine is to stop."""
        with self._changed:
            while not self._stopping:
                now = time.monotonic()
                late = self._queue.expired(now)
                if late:
                    return iter([Ran(run.token, None, DEADLINE) for run in late])
                job = self._queue.choose(now, lambda job: self._store.is_ready(job.key))
                pause_s = None if job is None else self._pause_s(job, now)
                if job is not None and pause_s == 0:
                    return self._begin(job, now)
                self._changed.wait(_patience_s(self._queue.first_deadline() - now) if pause_s is None else pause_s)
        return None

    def _pause_s(self, job: Job, now: float) -> float:
        """How long to wait for others to run with a job: not at all if something else could run meanwhile."""
        if not self._can_join(job):
            return 0.0
        alike = self._queue.waiting_for(job.key)
        if alike >= self._batching.max_batch or alike < len(self._queue):
            return 0.0
        until = min(job.asked_s + self._batching.max_wait_s, job.run.deadline - job.expected_s)
        return max(0.0, until - now)

    def _can_join(self, job: Job) -> bool:
        if self._batching.max_batch == 1 or not self._rows_are_independent.get(job.key, True):
            return False
        executable = self._store.peek(job.key)
        return executable is not None and can_batch(executable) and form_of(job.run.inputs) is not None

    def _begin(self, job: Job, now: float) -> Iterator[Ran]:
        jobs = [job]
        self._queue.take(job, now)
        while len(jobs) < self._batching.max_batch and (mate := self._mate_of(job, now)) is not None:
            self._queue.take(mate, now)
            jobs.append(mate)
        try:
            held = self._store.use(job.key)
        except Exception as error:  # noqa: BLE001 - who asked for the segment gets it
            for each in jobs:
                self._queue.finish(each, None)
            return iter([Ran(each.run.token, None, _text_of(error, each.run.segment)) for each in jobs])
        return self._run(jobs, held)

    def _mate_of(self, job: Job, now: float) -> Job | None:
        """The next job that can run together with one, whoever asked for it."""
        if not self._can_join(job):
            return None
        form = form_of(job.run.inputs)
        return self._queue.choose(now, lambda other: other.key == job.key and form_of(other.run.inputs) == form)

    def _run(self, jobs: Sequence[Job], held: Held) -> Iterator[Ran]:
        """Run jobs of one segment; each is told when it has ended, and its client charged."""
        try:
            if len(jobs) > 1 and (batch := self._run_together(jobs, held)) is not None:
                yield from batch
                return
            for job in jobs:
                yield self._run_alone(job, held.executable)
        finally:
            with self._changed:
                self._store.release(held)

    def _run_alone(self, job: Job, executable: Executable) -> Ran:
        started, waited_s = time.monotonic(), self._waited_s()
        outputs, error, is_input = _attempt(executable, job.run.inputs, job.run.segment)
        ended = self._ended(started, waited_s)
        self._finish([job], ended - started)
        if outputs is None:
            return Ran(job.run.token, None, error, is_input=is_input)
        return Ran(job.run.token, outputs, "", _us(started - job.asked_s), _us(ended - started))

    def _run_together(self, jobs: Sequence[Job], held: Held) -> list[Ran] | None:
        """Run jobs as one; None if they are to run one by one after all."""
        started, waited_s = time.monotonic(), self._waited_s()
        inputs = [job.run.inputs for job in jobs]
        try:
            joined = join(inputs)
        except MemoryError:
            return None
        outputs, *_ = _attempt(held.executable, joined, jobs[0].run.segment)
        parts = None if outputs is None else split(outputs, [rows_of(each) for each in inputs])
        if outputs is not None and self._refuted(jobs[0], parts, held.executable):
            return None
        if parts is None:
            return None
        ended = self._ended(started, waited_s)
        self._finish(jobs, ended - started)
        return [
            Ran(job.run.token, part, "", _us(started - job.asked_s), _us(ended - started), len(jobs))
            for job, part in zip(jobs, parts, strict=True)
        ]

    def _refuted(self, job: Job, parts: Sequence[Mapping[str, Array]] | None, executable: Executable) -> bool:
        """Whether a segment's rows turned out to depend on each other: its first batch is compared with a single run.

        A softmax over the first axis has the right shapes and the wrong results.
        """
        if job.key not in self._rows_are_independent:
            alone, *_ = _attempt(executable, job.run.inputs, job.run.segment)
            self._rows_are_independent[job.key] = parts is not None and alone is not None and agree(parts[0], alone)
        return not self._rows_are_independent[job.key]

    def _finish(self, jobs: Sequence[Job], took_s: float) -> None:
        with self._changed:
            for job in jobs:
                self._queue.finish(job, took_s / len(jobs))

    def _waited_s(self) -> float:
        """How long this thread was kept from a processor so far; asked only where another device is emulated."""
        return processor_waits_s() if self._slowdown > 1 else 0.0

    def _ended(self, started: float, waited_s: float) -> float:
        """Be busy for as long as a slower device would, unless the engine is to stop; the time then.

        A device of its own would not have waited for a processor that other tiers on this host use.
        """
        took_s = time.monotonic() - started
        left_s = self._slowdown * max(0.0, took_s - (self._waited_s() - waited_s)) - took_s
        with self._changed:
            until = time.monotonic() + left_s
            while left_s > 0 and not self._stopping:
                self._changed.wait(left_s)
                left_s = until - time.monotonic()
        return time.monotonic()


def _patience_s(seconds: float) -> float | None:
    """How long to sleep until something is late; None is for ever."""
    return min(max(0.0, seconds) + _LATE_S, threading.TIMEOUT_MAX) if seconds < math.inf else None


def processor_waits_s() -> float:
    """Seconds that this thread could have run and had no processor; 0.0 where the operating system does not tell."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


def _us(seconds: float) -> int:
    return int(seconds * 1e6)


def _attempt(
    executable: Executable, inputs: Mapping[str, Array], segment: str
) -> tuple[dict[str, Array] | None, str, bool]:
    """The outputs, or why there are none, and whether the inputs are to blame."""
    try:
        outputs = executable.run(inputs)
        unfit = check_encoded(outputs)
        return (None, OUT_OF_RANGE + unfit, False) if unfit else (outputs, "", False)
    except Exception as error:  # noqa: BLE001 - an engine that breaks its word must not leave its callers waiting
        return None, _text_of(error, segment), isinstance(error, InputError)


def _text_of(error: Exception, segment: str) -> str:
    if isinstance(error, FlagsplitError):
        return str(error)
    if isinstance(error, MemoryError):
        return f"out of memory while running segment {segment}"
    return f"segment {segment} broke: {type(error).__name__}: {error}"
