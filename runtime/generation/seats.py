"""Who has which slots: streams that run, those that wait for a slot, and those that keep one for their next rows.

A stream gets in when a slot and room in the budget of cache bytes are free, clients by turns. When the caches outgrow
the budget, or a client waits that has fewer slots than another, the newest stream of the client with most slots is
evicted: it waits again, later puts its tokens in again, and goes on as if nothing had been.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

from flagsplit.runtime.generation.admission import SchedulerSettings
from flagsplit.runtime.generation.shares import Shares
from flagsplit.runtime.generation.stream import State, Stream

_FULL = 15 / 16
"""Beyond this part of the budget no stream joins others: those that run need room to grow."""


class Seats:
    """The streams of a scheduler and their slots.

    Args:
        slots: how many there are.
        bytes_for: cache bytes of a slot with so many tokens and frames.
        settings: limits.
    """

    def __init__(self, slots: int, bytes_for: Callable[[int, int], int], settings: SchedulerSettings) -> None:
        self._free = list(reversed(range(slots)))
        self._bytes_for = bytes_for
        self._settings = settings
        self._streams: dict[str, Stream] = {}
        self._shares = Shares()
        self._closed: list[int] = []
        self._copied: list[tuple[int, int]] = []

    def __iter__(self) -> Iterator[Stream]:
        return iter(self._streams.values())

    def find(self, stream_id: str) -> Stream | None:
        """The stream of that name, if it is here."""
        return self._streams.get(stream_id)

    def in_state(self, state: State) -> list[Stream]:
        """The streams in a state, in the order of asking."""
        return sorted((each for each in self if each.state is state), key=lambda each: each.number)

    def in_turn(self, streams: Iterable[Stream]) -> list[Stream]:
        """By clients, the one that had least first; in the order of asking within a client."""
        streams = list(streams)
        place = {client: at for at, client in enumerate(self._shares.order({each.client for each in streams}))}
        return sorted(streams, key=lambda each: (place[each.client], each.number))

    @property
    def kv_bytes(self) -> int:
        """What the streams that have slots hold, or will after their next step."""
        return sum(self._bytes(each) for each in self if each.slots)

    def most_bytes(self, stream: Stream) -> int:
        """What a stream may hold when it is longest."""
        return self._bytes_for(stream.length + stream.limit - stream.generated, stream.frames) * stream.beams

    def queue_before(self, client: str) -> tuple[int, int]:
        """How many streams would wait for the slots of others before a new one of a client, and how many run meanwhile.

        The first is -1 if there is a slot left for it when all that wait have got theirs.
        """
        waiting = self.in_state(State.WAITING)
        running = len(self.in_state(State.RUNNING))
        wanted = self.kv_bytes + sum(self._bytes(each) for each in waiting)
        free = len(self._free) if wanted < self._settings.kv_bytes * _FULL else 0
        if sum(each.beams for each in waiting) < free:
            return -1, running
        counts = Counter(each.client for each in waiting)
        own = counts[client]
        ahead = own + sum(min(count, own + 1) for other, count in counts.items() if other != client)
        return max(0, ahead - free), running + min(free, len(waiting))

    def add(self, stream: Stream, now: float) -> None:
        """A stream waits for a slot."""
        self._streams[stream.id] = stream
        self._shares.enter(stream.client)
        stream.since = now

    def remove(self, stream: Stream) -> None:
        """A stream has ended."""
        del self._streams[stream.id]
        self._release(stream)
        self._shares.keep({each.client for each in self})

    def replace(self, before: Stream, after: Stream) -> None:
        """A parked stream goes on as another one, that has its slots."""
        self._streams[before.id] = after
        self._shares.enter(after.client)
        after.state = State.RUNNING

    def park(self, stream: Stream, now: float) -> None:
        """A stream keeps its slots for a while."""
        stream.state = State.PARKED
        stream.deadline = now + self._settings.park_s

    def evict(self, stream: Stream, now: float) -> None:
        """A stream loses its slots and waits again."""
        self._release(stream)
        stream.start_over()
        stream.since = now

    def charge(self, stream: Stream, work: float) -> None:
        """Work was done for a stream."""
        self._shares.charge(stream.client, work)

    def make_room(self, now: float) -> int:
        """Evict until all that run can grow; how many were evicted."""
        evicted = 0
        while self.kv_bytes > self._settings.kv_bytes:
            if not self._forget_parked():
                self.evict(self._newest_of_richest(self.in_state(State.RUNNING)), now)
                evicted += 1
        return evicted

    def admit(self, now: float) -> tuple[list[Stream], int]:
        """Give slots to those that wait; which got some, and how many others lost theirs."""
        opened, evicted, cost = list[Stream](), 0, 0.0
        while cost < self._settings.step_tokens:
            waiting = self.in_turn(self.in_state(State.WAITING))
            if not waiting:
                break
            stream = waiting[0]
            if self._fits(stream):
                stream.slots = [self._free.pop() for _ in range(stream.beams)]
                stream.state = State.RUNNING
                stream.seated(now)
                opened.append(stream)
                cost += stream.length + stream.frames * self._settings.frame_tokens
            elif self._forget_parked():
                continue
            elif (victim := self._unfair(stream, opened, now)) is not None:
                self.evict(victim, now)
                evicted += 1
            else:
                break
        return opened, evicted

    def reorder(self, stream: Stream, parents: Sequence[int]) -> None:
        """The candidates of a search continue those with these indices: copy what several of them continue."""
        before, taken = stream.slots, list[int]()
        kept = {before[parent] for parent in parents}
        spare = [slot for slot in before if slot not in kept]
        for parent in parents:
            source = before[parent]
            if source in taken:
                self._copied.append((source, spare[-1]))
                source = spare.pop()
            taken.append(source)
        stream.slots = taken + spare

    def take_changes(self) -> tuple[list[int], list[tuple[int, int]]]:
        """Slots that were freed, and that are to be copied, since this was last asked."""
        changes = self._closed, self._copied
        self._closed, self._copied = [], []
        return changes

    def _bytes(self, stream: Stream) -> int:
        return self._bytes_for(stream.length, stream.frames) * stream.beams

    def _fits(self, stream: Stream) -> bool:
        if len(self._free) < stream.beams:
            return False
        seated = any(each.slots for each in self)
        return self.kv_bytes + self._bytes(stream) <= self._settings.kv_bytes * (_FULL if seated else 1)

    def _forget_parked(self) -> bool:
        """Make room by dropping the stream that would be dropped first anyway."""
        parked = min(self.in_state(State.PARKED), key=lambda each: each.deadline, default=None)
        if parked is not None:
            self.remove(parked)
        return parked is not None

    def _unfair(self, stream: Stream, opened: Sequence[Stream], now: float) -> Stream | None:
        """A stream that is to make way for one that waits; afterwards its client must not have fewer slots."""
        if now - stream.since < self._settings.fair_after_s:
            return None
        running = self.in_state(State.RUNNING)
        slots = _slots_by_client(running)
        wanted = slots[stream.client] + stream.beams
        rich = [each for each in running if each not in opened and slots[each.client] - each.beams >= wanted]
        return self._newest_of_richest(rich) if rich else None

    @staticmethod
    def _newest_of_richest(streams: Sequence[Stream]) -> Stream:
        slots = _slots_by_client(streams)
        return max(streams, key=lambda each: (slots[each.client], each.number))

    def _release(self, stream: Stream) -> None:
        gone = set(stream.slots)
        self._copied = [pair for pair in self._copied if not gone & set(pair)]
        self._closed += stream.slots
        self._free += stream.slots
        stream.slots = []


def _slots_by_client(streams: Iterable[Stream]) -> Counter[str]:
    found = Counter[str]()
    for stream in streams:
        found[stream.client] += stream.beams
    return found
