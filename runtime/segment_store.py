"""The loaded segments of one tier, of any number of bundles: who is in memory, who makes room, who is loaded next.

A thread of its own loads, so that what is loaded already goes on computing meanwhile. What is waited for is loaded
first; then come, while the budget lasts, the segments that may be needed. Beyond the budget the segment that was not
used for longest makes room; one is always allowed. What the segments hold is told by `report`.
"""

import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol

from flagsplit.errors import BundleError, PeerError
from flagsplit.runtime.fair_queue import SegmentKey
from flagsplit.runtime.residency import Holding, Mode, Residency, private_bytes
from flagsplit.targets.interface import Executable

_log = logging.getLogger(__name__)


class SegmentLoader(Protocol):
    """Loads a segment of a bundle, both given by id; raises a FlagsplitError if it cannot."""

    def __call__(self, bundle: str, segment: str) -> Executable: ...


PartKey = tuple[str, int, str]
"""A part that loaded segments may share: its bundle, in which turn that was added, and the part's id.

A bundle that was removed and added again is loaded anew, while a run may still hold what was loaded first.
"""


@dataclass(frozen=True)
class Contents:
    """The segments of a bundle that a tier may run.

    Attributes:
        order: their ids, the most likely first.
        size_bytes: for each part, an estimate of what it holds when loaded.
        parts: for segments that are held as atoms, the ids of these; any other is its own only part.
    """

    order: Sequence[str] = ()
    size_bytes: Mapping[str, float] = field(default_factory=dict)
    parts: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Added:
    """A bundle's contents, and its turn among all that were added."""

    contents: Contents
    turn: int


@dataclass(eq=False)
class Held:
    """A loaded segment.

    Attributes:
        key: its bundle and id.
        executable: what runs.
        parts: what it is made of, segments or atoms that others may have too, and what each is expected to hold.
        measured_bytes: by how much the process grew when it was loaded, or None where that cannot be told.
        users: runs under way.
        fresh: whether it was loaded because a run waits for it, and that did not begin yet.
    """

    key: SegmentKey
    executable: Executable
    parts: Mapping[PartKey, float]
    measured_bytes: int | None
    users: int = 0
    fresh: bool = False


@dataclass(eq=False)
class _Preload:
    """Segments that somebody waits for, without a run."""

    left: set[SegmentKey]
    done: "Future[None]"


class SegmentStore:
    """What is loaded. All methods but `start`, `load_now` and `stop` are called with the lock held.

    Args:
        load: loads a segment.
        budget_bytes: how much the loaded segments may hold together, by their estimates.
        lock: shared with who runs the segments; notified when something was loaded or freed.
        is_wanted: whether a run waits for a segment.
    """

    def __init__(
        self,
        load: SegmentLoader,
        budget_bytes: float,
        lock: threading.Condition,
        is_wanted: Callable[[SegmentKey], bool],
    ) -> None:
        self._load = load
        self._budget_bytes = budget_bytes
        self._lock = lock
        self._is_wanted = is_wanted
        self._added: dict[str, _Added] = {}
        self._turn = 0
        self._loaded: OrderedDict[SegmentKey, Held] = OrderedDict()
        self._leaving: list[Held] = []
        self._demands: deque[SegmentKey] = deque()
        self._spare: list[SegmentKey] = []
        self._chores: deque[Callable[[], None]] = deque()
        self._preloads: list[_Preload] = []
        self._errors: dict[SegmentKey, Exception] = {}
        self._loading: SegmentKey | None = None
        self._stopping = False
        self._thread = threading.Thread(target=self._work, name="flagsplit-loader", daemon=True)

    def start(self) -> None:
        """Start to load what is waited for, and what may be."""
        self._thread.start()

    def load_now(self, key: SegmentKey) -> None:
        """Load a segment on the calling thread, before `start`.

        Raises:
            FlagsplitError: it cannot be loaded.
        """
        if key in self._loaded:
            return
        while self._loaded and not self._fits(key):
            self._loaded.popitem(last=False)[1].executable.close()
        self._loaded[key] = self._open(key, self._parts_of(key))

    def stop(self) -> None:
        """End the thread when it has loaded what it is loading, and free everything."""
        with self._lock:
            self._stopping = True
            self._lock.notify_all()
        if self._thread.ident is not None:
            self._thread.join()
        for held in (*self._loaded.values(), *self._leaving):
            held.executable.close()
        self._loaded.clear()
        self._leaving.clear()
        self._chores.extend(_tell_later(preload, PeerError("the engine was stopped")) for preload in self._preloads)
        self._preloads.clear()
        while self._chores:
            self._chores.popleft()()

    def add(self, bundle: str, contents: Contents, preload: Sequence[str]) -> "Future[None]":
        """Take segments of a bundle; those of `preload` are loaded even if others have to make room."""
        if self._stopping:
            late: Future[None] = Future()
            late.set_exception(PeerError("the engine was stopped"))
            return late
        self._turn += 1
        self._added[bundle] = _Added(contents, self._turn)
        waited = _Preload({(bundle, segment) for segment in preload} - self._loaded.keys(), Future())
        for segment in preload:
            self.want((bundle, segment))
        self._spare.extend((bundle, segment) for segment in contents.order)
        if waited.left:
            self._preloads.append(waited)
        else:
            waited.done.set_result(None)
        self._lock.notify_all()
        return waited.done

    def remove(self, bundle: str) -> None:
        """Free a bundle's segments, each when its run has ended; what is waited for is not loaded any more."""
        self._added.pop(bundle, None)
        self._demands = deque(key for key in self._demands if key[0] != bundle)
        self._spare = [key for key in self._spare if key[0] != bundle]
        for key in [key for key in self._loaded if key[0] == bundle]:
            self._leaving.append(self._loaded.pop(key))
        self._errors = {key: error for key, error in self._errors.items() if key[0] != bundle}
        gone = BundleError(f"bundle {bundle[:12]} was removed before it was loaded; add it again")
        for preload in [each for each in self._preloads if any(key[0] == bundle for key in each.left)]:
            self._preloads.remove(preload)
            self._chores.append(_tell_later(preload, gone))
        self._lock.notify_all()

    def knows(self, bundle: str) -> bool:
        """Whether a bundle was added and not removed."""
        return bundle in self._added

    def want(self, key: SegmentKey) -> None:
        """A run waits for a segment, or will. What an earlier loading of it ended in counts no more."""
        if not self._is_wanted(key):
            self._errors.pop(key, None)
        if key not in self._loaded and key != self._loading and key not in self._demands:
            self._demands.append(key)
            self._lock.notify_all()

    def is_ready(self, key: SegmentKey) -> bool:
        """Whether `use` answers at once, with the segment or the reason why it could not be loaded."""
        return key in self._loaded or key in self._errors

    def peek(self, key: SegmentKey) -> Executable | None:
        """The loaded segment, not to be run."""
        held = self._loaded.get(key)
        return None if held is None else held.executable

    def use(self, key: SegmentKey) -> Held:
        """A loaded segment, which stays until `release`.

        Raises:
            Exception: what its loading raised; asking again tries again.
        """
        error = self._errors.pop(key, None)
        if error is not None and key not in self._loaded:
            if self._is_wanted(key):
                self.want(key)
            raise error
        held = self._loaded[key]
        held.users += 1
        held.fresh = False
        self._loaded.move_to_end(key)
        self._lock.notify_all()
        return held

    def release(self, held: Held) -> None:
        """A run has ended."""
        held.users -= 1
        if not held.users and held in self._leaving:
            self._lock.notify_all()

    def report(self, mode: Mode) -> Residency:
        """What is loaded and what it holds."""
        held = (*self._loaded.values(), *self._leaving)
        return Residency(
            mode,
            self._budget_bytes,
            _bytes_of(*(each.parts for each in held)),
            tuple(Holding(*each.key, _bytes_of(each.parts), each.measured_bytes) for each in held),
        )

    def _work(self) -> None:
        while (task := self._await_task()) is not None:
            try:
                task()
            except Exception:  # noqa: BLE001 - an engine that fails to close must not end all loading
                _log.exception("a segment could not be freed")

    def _await_task(self) -> Callable[[], None] | None:
        with self._lock:
            while not self._stopping:
                task = self._next_task()
                if task is not None:
                    return task
                self._lock.wait()
        return None

    def _next_task(self) -> Callable[[], None] | None:
        """What to do outside of the lock: free a segment that makes room, load one, or nothing."""
        if self._chores:
            return self._chores.popleft()
        for held in self._leaving:
            if not held.users:
                self._leaving.remove(held)
                return held.executable.close
        while self._demands and not self._is_waited_for(self._demands[0]):
            self._demands.popleft()
        if self._demands:
            key = self._demands[0]
            if not self._fits(key):
                self._make_room(key)
                return self._next_task() if any(not held.users for held in self._leaving) else None
            self._demands.popleft()
            self._loading = key
            parts = self._parts_of(key)
            return lambda: self._bring(key, parts, spare=False)
        if (spare := self._next_spare()) is not None:
            self._loading = spare
            parts = self._parts_of(spare)
            return lambda: self._bring(spare, parts, spare=True)
        return None

    def _is_waited_for(self, key: SegmentKey) -> bool:
        """Whether somebody still wants it: the runs that did may have been skipped."""
        return self._is_wanted(key) or any(key in preload.left for preload in self._preloads)

    def _bring(self, key: SegmentKey, parts: Mapping[PartKey, float], *, spare: bool) -> None:
        held, error = None, None
        try:
            held = self._open(key, parts)
        except Exception as raised:  # noqa: BLE001 - who waits for the segment gets it; nobody else is to suffer
            error = raised
        with self._lock:
            self._loading = None
            wanted = self._is_wanted(key)
            if held is not None and not self.knows(key[0]):
                self._leaving.append(held)
            elif held is not None:
                held.fresh = wanted
                self._loaded[key] = held
                self._loaded.move_to_end(key, last=not spare or wanted)
            elif error is not None and wanted:
                self._errors[key] = error
            self._note_preloads(key, error)
            self._lock.notify_all()

    def _note_preloads(self, key: SegmentKey, error: Exception | None) -> None:
        for preload in [each for each in self._preloads if key in each.left]:
            preload.left.discard(key)
            if error is not None or not preload.left:
                self._preloads.remove(preload)
                self._chores.append(_tell_later(preload, error))

    def _open(self, key: SegmentKey, parts: Mapping[PartKey, float]) -> Held:
        before = private_bytes()
        executable = self._load(*key)
        after = private_bytes()
        grown = None if before is None or after is None else max(0, after - before)
        return Held(key, executable, parts, grown)

    def _parts_of(self, key: SegmentKey) -> Mapping[PartKey, float]:
        bundle, segment = key
        added = self._added[bundle]
        sizes, parts = added.contents.size_bytes, added.contents.parts.get(segment, (segment,))
        return {(bundle, added.turn, part): sizes.get(part, 0.0) for part in parts}

    def _fits(self, key: SegmentKey) -> bool:
        held = [each.parts for each in (*self._loaded.values(), *self._leaving)]
        return not held or _bytes_of(*held, self._parts_of(key)) <= self._budget_bytes

    def _make_room(self, key: SegmentKey) -> None:
        """Let those go that were not used for longest, first of those that no run waits for.

        One that was just loaded for a run stays until that run began; otherwise two that do not fit together could
        push each other out for ever.
        """
        for held in sorted(self._loaded.values(), key=lambda held: self._is_wanted(held.key)):
            kept = [each.parts for each in self._loaded.values()]
            if _bytes_of(*kept, self._parts_of(key)) <= self._budget_bytes:
                return
            if held.fresh and self._is_wanted(held.key):
                continue
            self._leaving.append(self._loaded.pop(held.key))
            if self._is_wanted(held.key):
                self._demands.append(held.key)

    def _next_spare(self) -> SegmentKey | None:
        """The first segment that fits beside those that are loaded; the others wait until there is room."""
        self._spare = [key for key in self._spare if key not in self._loaded]
        found = next((key for key in self._spare if self._fits(key)), None)
        if found is not None:
            self._spare.remove(found)
        return found


def _bytes_of(*parts: Mapping[PartKey, float]) -> float:
    """What segments hold together: a part that several have is there once."""
    return sum({part: size for each in parts for part, size in each.items()}.values())


def _tell_later(preload: _Preload, error: Exception | None) -> Callable[[], None]:
    """To be called without the lock: whoever waits may do anything then."""

    def tell() -> None:
        if not preload.done.set_running_or_notify_cancel():
            return
        if error is not None:
            preload.done.set_exception(error)
        else:
            preload.done.set_result(None)

    return tell
