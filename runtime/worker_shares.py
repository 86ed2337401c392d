"""How much each client holds at a worker, what it may hold, and who is paused while memory is short.

A client is a session, whatever way its requests came. Each may have all of the limit while it is alone, and by default
half of it while others are there. Counting is by request: `update` after anything that changes what one holds.
"""

from collections.abc import Callable, Iterator

from flagsplit.runtime.events import Instruction, Pause
from flagsplit.runtime.relay import Flight, FlightKey
from flagsplit.runtime.worker_options import WorkerOptions

# What a name and its array cost beside the bytes: a flood of tiny tensors must reach the limit too.
ENTRY_BYTES = 512


def cost_bytes(flight: Flight) -> int:
    """What a request holds."""
    coming = sum(len(opened.tensors) for opened, _ in flight.arrivals.values())
    entries = len(flight.values) + len(flight.partial) + coming
    return flight.held_bytes + ENTRY_BYTES * entries


class Shares:
    """The books of a worker: requests and bytes, by client and in all."""

    def __init__(self, options: WorkerOptions) -> None:
        self._options = options
        self._costs: dict[FlightKey, int] = {}
        self.held_bytes = 0
        self.clients: dict[str, tuple[int, int]] = {}
        self.paused: set[str] = set()

    def update(self, flight: Flight) -> None:
        """Count what a request holds now."""
        cost = cost_bytes(flight)
        before = self._costs.get(flight.key)
        self._costs[flight.key] = cost
        self._add(flight.sid, int(before is None), cost - (before or 0))

    def remove(self, flight: Flight) -> None:
        """A request is gone."""
        cost = self._costs.pop(flight.key, None)
        if cost is not None:
            self._add(flight.sid, -1, -cost)

    def _add(self, sid: str, requests: int, size_bytes: int) -> None:
        self.held_bytes += size_bytes
        count, held = self.clients.get(sid, (0, 0))
        self.clients[sid] = (count + requests, held + size_bytes)
        if not count + requests:
            del self.clients[sid]

    def is_full(self, coming_bytes: int, *, is_new: bool) -> bool:
        """Whether all clients together hold too much for a request of that size."""
        too_many = is_new and len(self._costs) >= self._options.max_flights
        return too_many or self.held_bytes + coming_bytes > self._options.max_held_bytes

    def refusal(self, sid: str, coming_bytes: int, *, is_new: bool, alone: bool) -> str:
        """Why a client's request cannot be taken, or "". The limit is named.

        Args:
            sid: of the client.
            coming_bytes: what the request announces.
            is_new: whether it is a request more.
            alone: whether no other session is connected.
        """
        options = self._options
        alone = alone and self.clients.keys() <= {sid}
        count, held = self.clients.get(sid, (0, 0))
        most, share = _share(options.max_flights_per_client, options.max_flights, alone=alone)
        if is_new and count >= most:
            return f"this session has {count} requests here, max_flights_per_client is {most}{share}"
        most, share = _share(options.max_held_bytes_per_client, options.max_held_bytes, alone=alone)
        if held + coming_bytes > most:
            return f"this session would hold {held + coming_bytes} bytes, max_held_bytes_per_client is {most}{share}"
        if is_new and len(self._costs) >= options.max_flights:
            return f"there are {len(self._costs)} requests here, max_flights is {options.max_flights}"
        if self.held_bytes + coming_bytes > options.max_held_bytes:
            return f"{self.held_bytes + coming_bytes} bytes would be held, max_held_bytes is {options.max_held_bytes}"
        return ""

    def balance(self, peers_of: Callable[[str], str | None], *, is_working: bool) -> Iterator[Instruction]:
        """Pause the largest clients while memory is short and runs will free some; let them go on afterwards.

        Args:
            peers_of: the peer by which a client's data comes, if it is connected.
            is_working: whether runs are under way. Without one, nothing but the client's own data may bring a request
                to its end, so nobody is paused.
        """
        limit = self._options.max_held_bytes
        if self.paused and (not is_working or self.held_bytes < self._options.resume_below * limit):
            yield from (Pause(peer, False) for peer in sorted(self.paused))
            self.paused.clear()
        if not is_working or self.held_bytes < self._options.pause_from * limit:
            return
        even = self.held_bytes / max(1, len(self.clients))
        for sid, (_, held) in self.clients.items():
            peer = peers_of(sid)
            if held >= even and peer is not None and peer not in self.paused:
                self.paused.add(peer)
                yield Pause(peer, True)

    def forget_peer(self, peer: str) -> None:
        """A peer is gone; a later connection of that name is not paused."""
        self.paused.discard(peer)


def _share(own: int | None, total: int, *, alone: bool) -> tuple[int, str]:
    if own is not None:
        return own, ""
    return (total, "") if alone else (max(1, total // 2), f" (half of {total} while others are connected)")
