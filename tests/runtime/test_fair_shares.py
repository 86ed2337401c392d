"""Shares of a worker's memory against a plain model: clients come, ask, get done and go in any order."""

import random
from dataclasses import dataclass, field

import numpy as np
import pytest

from flagsplit.runtime.relay import Flight
from flagsplit.runtime.worker_options import WorkerOptions
from flagsplit.runtime.worker_shares import ENTRY_BYTES, Shares

_SIDS = "abcdef"


@dataclass
class _Model:
    """What is held, by client and request, and the rules in the fewest words."""

    places: int
    room: int
    held: dict[str, dict[int, int]] = field(default_factory=dict)
    connected: set[str] = field(default_factory=set)

    @property
    def taken(self) -> int:
        return sum(map(sum, (requests.values() for requests in self.held.values())))

    @property
    def count(self) -> int:
        return sum(map(len, self.held.values()))

    def clients(self, sid: str) -> int:
        return len({sid} | self.connected | {other for other, requests in self.held.items() if requests})

    def wanted(self, sid: str, cost: int) -> tuple[int, int]:
        mine = self.held.get(sid, {})
        return len(mine) + 1, sum(mine.values()) + cost

    def is_within(self, sid: str, cost: int) -> bool:
        """Whether the client would stay within an equal part of everything."""
        count, size = self.wanted(sid, cost)
        clients = self.clients(sid)
        return count <= self.places // clients and size <= self.room // clients

    def may(self, sid: str, cost: int) -> bool:
        """Whether a client gets it beside what is held now."""
        count, size = self.wanted(sid, cost)
        free_places, free_room = self.places - self.count - 1, self.room - self.taken - cost
        if min(free_places, free_room) < 0:
            return False
        clients = self.clients(sid)
        fits_places = clients == 1 or count <= max(1, self.places // clients) or count <= free_places
        return fits_places and (clients == 1 or size <= self.room // clients or size <= free_room)


class _World:
    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.model = _Model(self.rng.choice([6, 12, 1000]), self.rng.choice([20_000, 100_000]))
        options = WorkerOptions(max_flights=self.model.places, max_held_bytes=self.model.room)
        self.shares = Shares(options)
        self.flights: dict[tuple[str, int], Flight] = {}
        self.rid = 0
        self.evicted = self.granted = self.refused = 0

    def step(self) -> None:
        rng, model = self.rng, self.model
        sid = rng.choice(_SIDS)
        kind = rng.random()
        if kind < 0.1:
            model.connected.add(sid)
        elif kind < 0.15:
            model.connected.discard(sid)
        elif kind < 0.4 and model.held.get(sid):
            self.drop(sid, rng.choice(list(model.held[sid])))
        else:
            self.ask(sid, rng.choice([0, 100, 3000, 3000, 15_000, 60_000]))
        assert self.shares.held_bytes == model.taken <= model.room
        assert model.count == len(self.flights) <= model.places

    def ask(self, sid: str, size: int) -> None:
        model, cost = self.model, size + ENTRY_BYTES
        entitled, connected = model.is_within(sid, cost), sorted(model.connected)
        before = {other: dict(requests) for other, requests in model.held.items()}
        while (key := self.shares.debtor(sid, cost, is_new=True, connected=connected)) is not None:
            self.check_debtor(sid, cost, key, entitled=entitled)
            self.drop(*key)
        reason = self.shares.refusal(sid, cost, is_new=True, connected=connected)
        assert (not reason) == model.may(sid, cost), reason
        assert entitled <= (not reason), "an equal part is everyone's for sure"
        if reason:
            assert before == model.held, "nobody gives way for nothing"
            self.refused += 1
            return
        self.rid += 1
        self.granted += 1
        flight = Flight(sid, self.rid, 1, "", (), 0.0, values={"v": np.zeros(size, np.uint8)})
        self.shares.update(flight)
        self.flights[flight.key] = flight
        model.held.setdefault(sid, {})[self.rid] = cost

    def check_debtor(self, sid: str, cost: int, key: tuple[str, int], *, entitled: bool) -> None:
        """Who gives way has more than an equal part of what is short, and gives what came last."""
        model, (other, rid) = self.model, key
        clients = model.clients(sid)
        having = model.held[other]
        assert entitled
        assert other != sid
        if model.count >= model.places:
            assert len(having) > model.places // clients
        else:
            assert model.taken + cost > model.room
            assert sum(having.values()) > model.room // clients
        assert rid == max(having)
        self.evicted += 1

    def drop(self, sid: str, rid: int) -> None:
        self.shares.remove(self.flights.pop((sid, rid)))
        del self.model.held[sid][rid]
        if not self.model.held[sid]:
            del self.model.held[sid]


@pytest.mark.parametrize("block", range(4))
def test_everyone_gets_an_equal_part_and_what_nobody_uses(block: int) -> None:
    evicted = granted = refused = 0
    for seed in range(block * 50, block * 50 + 50):
        world = _World(seed)
        for _ in range(150):
            world.step()
        evicted, granted, refused = evicted + world.evicted, granted + world.granted, refused + world.refused
    assert min(evicted, granted, refused) > 15, "each must happen, or nothing is tried"


@pytest.mark.parametrize("clients", [1, 2, 3, 10, 100])
def test_what_one_client_can_take_shrinks_with_those_that_ask_too(clients: int) -> None:
    """All want more than there is, in small pieces: each ends with about as much, and one alone with all."""
    room = 1_000_000
    shares = Shares(WorkerOptions(max_held_bytes=room))
    sids = [f"{number:03}" for number in range(clients)]
    flights: dict[tuple[str, int], Flight] = {}
    rid = 0
    for _ in range(2 * room // 1000 // clients):
        for sid in sids:
            while (key := shares.debtor(sid, 1000, is_new=True, connected=sids)) is not None:
                shares.remove(flights.pop(key))
            if shares.refusal(sid, 1000, is_new=True, connected=sids):
                continue
            rid += 1
            flight = Flight(sid, rid, 1, "", (), 0.0, values={"v": np.zeros(1000 - ENTRY_BYTES, np.uint8)})
            shares.update(flight)
            flights[flight.key] = flight
    held = [size for _, size in shares.clients.values()]
    assert len(held) == clients
    assert max(held) <= room // clients <= min(held) + 1000
