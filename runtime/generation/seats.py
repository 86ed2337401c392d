"""Who has which slots: streams that run, those that wait for a slot, and those that keep one for their next rows.

A stream gets in when a slot and room in the memory of the caches are free, clients by turns. When there is no room for
those that run to get longer, or a client waits that has fewer slots than another, the newest stream of the client with
most slots is evicted: it waits again, later puts its tokens in again, and goes on as if nothing had been.

What there is room for is tried on a sketch of the step model's memory; it is then asked for the same changes in the
same order.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from flagsplit.runtime.generation.admission import SchedulerSettings
from flagsplit.runtime.generation.shares import Shares
from flagsplit.runtime.generation.step import Change, Close, Copy, Open, Reserve
from flagsplit.runtime.generation.stream import State, Stream
from flagsplit.targets.generation.step_model import Room, StepModel

_FULL = 15 / 16
"""Beyond this part of the budget no stream joins others: those that run need room to grow."""
_AHEAD = 16
"""Room is made for multiples of so many tokens, so that most steps need no more."""


class Seats:
    """The streams of a scheduler and their slots.

    Args:
        model: whose slots; it is asked for its room only.
        settings: limits.
    """

    def __init__(self, model: StepModel, settings: SchedulerSettings) -> None:
        self._free = list(reversed(range(model.slots)))
        self._model = model
        self._room: Room | None = None
        self._is_full = False
        """Whether a stream waits for room, and not for a slot."""
        self._settings = settings
        self._streams: dict[str, Stream] = {}
        self._shares = Shares()
        self._changes: list[Change] = []
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

    def most_bytes(self, stream: Stream) -> int:
        """What caches may take when a stream is alone and longest."""
        return self._model.bytes_for(stream.longest, stream.frames, stream.beams)

    def queue_before(self, client: str) -> tuple[int, int]:
        """How many streams would wait for the slots of others before a new one of a client, and how many run meanwhile.

        The first is -1 if there is a slot left for it when all that wait have got theirs.
        """
        waiting = self.in_state(State.WAITING)
        running = len(self.in_state(State.RUNNING))
        free = 0 if self._is_full else len(self._free)
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
        for stream in self.in_state(State.RUNNING):
            while stream.slots and not self._grow(stream):
                if not self._forget_parked():
                    self.evict(self._newest_of_richest(self.in_state(State.RUNNING)), now)
                    evicted += 1
        return evicted

    def admit(self, now: float) -> int:
        """Give slots to those that wait; how many others lost theirs."""
        opened, evicted, cost, first = list[Stream](), 0, 0.0, None
        self._is_full = False
        while cost < self._settings.step_tokens:
            waiting = [first] if first is not None else self.in_turn(self.in_state(State.WAITING))
            if not waiting:
                break
            stream, first = waiting[0], None
            if self._seat(stream):
                stream.state = State.RUNNING
                stream.seated(now)
                opened.append(stream)
                cost += stream.length + stream.frames * self._settings.frame_tokens
            elif self._forget_parked():
                continue
            elif victims := self._unfair(stream, opened, now):
                for victim in victims:
                    self.evict(victim, now)
                evicted += len(victims)
                first = stream  # Else one that was evicted might come first again, and so on for ever.
            else:
                self._is_full = len(self._free) >= stream.beams
                break
        return evicted

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

    def take_changes(self) -> list[Change]:
        """What the step model is to do to its slots, as planned."""
        changes, self._changes, self._room = self._changes, [], None
        return changes

    def _grow(self, stream: Stream) -> bool:
        """Plan what a stream needs for its next step; whether there is room for all of it."""
        for source, target in [pair for pair in self._copied if pair[0] in stream.slots]:
            if not self._sketch().copy(source, target):
                return False
            self._copied.remove((source, target))
            self._changes.append(Copy(source, target))
        if stream.length > stream.room:
            wanted = _ahead(stream)
            for slot in stream.slots:
                if not self._sketch().reserve(slot, wanted):
                    return False
                self._changes.append(Reserve(slot, wanted))
            stream.room = wanted
        return True

    def _sketch(self) -> Room:
        """The room as it will be after the changes that are planned so far."""
        if self._room is None:
            self._room = self._model.room()
            for change in self._changes:
                if isinstance(change, Close):  # All others were tried on a sketch.
                    self._room.remove(change.slot)
        return self._room

    def _seat(self, stream: Stream) -> bool:
        """Plan to open a stream in free slots, if there are such and there is room beside others."""
        room = self._sketch().sketch()
        if not self._fits(stream, room, self._free, is_alone=not any(each.slots for each in self)):
            return False
        first, *others = slots = self._free[-stream.beams :]
        self._room, stream.slots, stream.room = room, slots, _ahead(stream)
        del self._free[-stream.beams :]
        self._changes += [Open(stream, first, stream.room), *(Copy(first, slot) for slot in others)]
        return True

    def _fits(self, stream: Stream, room: Room, free: Sequence[int], *, is_alone: bool) -> bool:
        """Whether a stream can be opened in the last of the free slots; changes the room."""
        if len(free) < stream.beams:
            return False
        first, *others = free[-stream.beams :]
        fits = room.add(first, stream.frames, _ahead(stream)) and all(room.copy(first, slot) for slot in others)
        return fits and room.kv_bytes <= self._settings.kv_bytes * (1 if is_alone else _FULL)

    def _forget_parked(self) -> bool:
        """Make room by dropping the stream that would be dropped first anyway."""
        parked = min(self.in_state(State.PARKED), key=lambda each: each.deadline, default=None)
        if parked is not None:
            self.remove(parked)
        return parked is not None

    def _unfair(self, stream: Stream, opened: Sequence[Stream], now: float) -> list[Stream]:
        """Streams that are to make way for one that waits, if that is enough for it.

        Afterwards their clients must not have fewer slots than the other.
        """
        victims = list[Stream]()
        if now - stream.since < self._settings.fair_after_s:
            return victims
        running, free, room = self.in_state(State.RUNNING), list(self._free), self._sketch().sketch()
        wanted = _slots_by_client(running)[stream.client] + stream.beams
        while True:
            slots = _slots_by_client(running)
            rich = [each for each in running if each not in opened and slots[each.client] - each.beams >= wanted]
            if not rich:
                return []
            victims.append(self._newest_of_richest(rich))
            running.remove(victims[-1])
            for slot in victims[-1].slots:
                room.remove(slot)
            free += victims[-1].slots
            if self._fits(stream, room.sketch(), free, is_alone=not running):
                return victims

    @staticmethod
    def _newest_of_richest(streams: Sequence[Stream]) -> Stream:
        slots = _slots_by_client(streams)
        return max(streams, key=lambda each: (slots[each.client], each.number))

    def _release(self, stream: Stream) -> None:
        gone = set(stream.slots)
        self._copied = [pair for pair in self._copied if not gone & set(pair)]
        self._changes += [Close(slot) for slot in stream.slots]
        if self._room is not None:
            for slot in stream.slots:
                self._room.remove(slot)
        self._free += stream.slots
        stream.slots = []


def _ahead(stream: Stream) -> int:
    """How many tokens to make room for."""
    return min(-(-stream.length // _AHEAD) * _AHEAD, stream.longest)


def _slots_by_client(streams: Iterable[Stream]) -> Counter[str]:
    found = Counter[str]()
    for stream in streams:
        found[stream.client] += stream.beams
    return found
