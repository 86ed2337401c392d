"""How much each client holds at a worker, what it may hold, and who is paused while memory is short.

A client is whoever has a public key, with all of its sessions; where there are no keys, or a session is known by what a
worker passes on alone, it is that session (`Flight.client`). While it is alone it may have all there is. When others
are connected, an equal share is each one's for sure: who has more gives way, the newest request first. Beyond its share
a client may have what nobody uses, as long as it leaves as much free as it holds: so there is room for whoever comes,
and for a tensor that is larger than a share. Counting is by request: `update` after all that changes what one holds.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

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
        self._costs: dict[FlightKey, tuple[str, int]] = {}
        self._requests: Counter[str] = Counter()
        self._sessions: dict[str, Counter[str]] = {}
        self.held_bytes = 0
        self.clients: dict[str, tuple[int, int]] = {}
        self.paused: set[str] = set()

    def update(self, flight: Flight) -> None:
        """Count what a request holds now."""
        cost = cost_bytes(flight)
        before = self._costs.get(flight.key)
        self._costs[flight.key] = flight.client, cost
        self._add(flight, int(before is None), cost - (before[1] if before else 0))

    def remove(self, flight: Flight) -> None:
        """A request is gone."""
        counted = self._costs.pop(flight.key, None)
        if counted is not None:
            self._add(flight, -1, -counted[1])

    def has_any(self, sid: str) -> bool:
        """Whether a session has requests here."""
        return self._requests[sid] > 0

    def _add(self, flight: Flight, requests: int, size_bytes: int) -> None:
        client = flight.client
        self.held_bytes += size_bytes
        count, held = self.clients.get(client, (0, 0))
        self.clients[client] = (count + requests, held + size_bytes)
        sessions = self._sessions.setdefault(client, Counter())
        for counted in (self._requests, sessions):
            counted[flight.sid] += requests
            if not counted[flight.sid]:
                del counted[flight.sid]
        if not count + requests:
            del self.clients[client], self._sessions[client]

    def is_full(self, coming_bytes: int, *, is_new: bool) -> bool:
        """Whether all clients together hold too much for a request of that size."""
        too_many = is_new and len(self._costs) >= self._options.max_flights
        return too_many or self.held_bytes + coming_bytes > self._options.max_held_bytes

    def refusal(self, client: str, coming_bytes: int, *, is_new: bool, connected: Collection[str]) -> str:
        """Why a client's request cannot be taken, or "". The limit is named.

        Args:
            client: who asks.
            coming_bytes: what the request announces.
            is_new: whether it is a request more.
            connected: the clients that are connected.
        """
        options, clients = self._options, self._among(client, connected)
        count, held = self.clients.get(client, (0, 0))
        requests = _Limit("requests", "max_flights", options.max_flights, options.max_flights_per_client, clients)
        size = _Limit("bytes", "max_held_bytes", options.max_held_bytes, options.max_held_bytes_per_client, clients)
        reason = requests.refusal(count, len(self._costs), int(is_new))
        return reason or size.refusal(held, self.held_bytes, coming_bytes)

    def debtor(self, client: str, coming_bytes: int, *, is_new: bool, connected: Collection[str]) -> FlightKey | None:
        """The request to end so that there is room for another client's, None if nobody has to give way.

        Asked again as long as it is full. Only for what stays within a client's share somebody has to, and only who has
        more than a share; of those the one with most, and of its requests the newest.

        Args:
            client, coming_bytes, is_new, connected: as in `refusal`.
        """
        if not self.is_full(coming_bytes, is_new=is_new):
            return None
        options, clients = self._options, self._among(client, connected)
        most = _share(options.max_flights, clients), _share(options.max_held_bytes, clients)
        count, held = self.clients.get(client, (0, 0))
        if count + is_new > most[0] or held + coming_bytes > most[1]:
            return None
        short = 0 if is_new and len(self._costs) >= options.max_flights else 1
        over = {other: having[short] for other, having in self.clients.items() if having[short] > most[short]}
        largest = max(over, key=over.__getitem__, default=None)
        return next((key for key, (of, _) in reversed(self._costs.items()) if of == largest), None)

    def _among(self, client: str, connected: Collection[str]) -> int:
        """How many share: who is connected, and whoever has requests here."""
        return len({client, *connected, *self.clients})

    def balance(self, peer_of: Callable[[str], str | None], *, is_working: bool) -> Iterator[Instruction]:
        """Pause the largest clients while memory is short and runs will free some; let them go on afterwards.

        Args:
            peer_of: the peer by which a session's data comes, if it is connected.
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
        largest = [client for client, (_, held) in self.clients.items() if held >= even]
        for peer in [peer_of(sid) for client in largest for sid in self._sessions[client]]:
            if peer is not None and peer not in self.paused:
                self.paused.add(peer)
                yield Pause(peer, True)

    def forget_peer(self, peer: str) -> None:
        """A peer is gone; a later connection of that name is not paused."""
        self.paused.discard(peer)


def _share(total: int, clients: int) -> int:
    return max(1, total // clients)


@dataclass(frozen=True)
class _Limit:
    """What all clients together may have of something, and one of them.

    Attributes:
        what: it is called.
        name: of the option that says how much there is.
        total: how much there is.
        own: what one client may have, if the operator said so.
        clients: how many share it.
    """

    what: str
    name: str
    total: int
    own: int | None
    clients: int

    def refusal(self, having: int, taken: int, coming: int) -> str:
        """Why a client cannot have more of it, or "".

        Args:
            having: what the client has.
            taken: what all clients together have.
            coming: what the client wants more.
        """
        wanted, free = having + coming, self.total - taken - coming
        if not coming:
            return ""
        if self.own is not None and wanted > self.own:
            return f"this client would have {wanted} {self.what}, {self.name}_per_client is {self.own}"
        share = _share(self.total, self.clients)
        if self.own is None and self.clients > 1 and wanted > share and wanted > free:
            return (
                f"this client would have {wanted} {self.what}; of {self.name} {self.total} the share of each of "
                f"{self.clients} clients is {share}, and with more it has to leave as much free as it has"
            )
        if free < 0:
            return f"there would be {taken + coming} {self.what}, {self.name} is {self.total}"
        return ""
