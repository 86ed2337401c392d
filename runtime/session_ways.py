"""Which plan and route the next attempt of a request takes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from flagsplit.runtime.decisions import Decision
from flagsplit.runtime.session_guide import Patience, SessionGuide
from flagsplit.runtime.session_requests import Request
from flagsplit.runtime.session_routes import Epoch, Rifts
from flagsplit.transport.messages import Hop


@dataclass(frozen=True)
class Way:
    """How an attempt goes: its plan and route, the tiers that it asks, and how long it may take."""

    plan: str
    route: tuple[Hop, ...]
    others: frozenset[str]
    patience: Patience


class Ways:
    """Finds the way of an attempt.

    Args:
        home: the session's own tier.
        guide: knows the plans of the current epoch.
        rifts: pairs of workers to keep apart.
    """

    def __init__(self, home: str, guide: SessionGuide, rifts: Rifts) -> None:
        self._home, self._guide, self._rifts = home, guide, rifts
        self._known: dict[tuple[int, tuple[bool, ...]], Way] = {}

    def forget(self) -> None:
        """The world may have changed."""
        self._known.clear()

    def find(
        self, request: Request, alive: tuple[bool, ...], current: Epoch, now: float
    ) -> tuple[Way, Decision | None]:
        """How an attempt goes; for all requests that have no case of their own, worked out once for an event.

        Args:
            request: that needs it.
            alive: by tier of the request's epoch, whether it may be used.
            current: the epoch that answers new requests.
            now: the time.

        Raises:
            UnavailableError: no plan can do with the tiers that are there.
            PolicyError: the plan is beyond the limits of the protocol.
        """
        is_usual = not request.avoid and not request.exact and not request.can_have_its_way(alive)
        key = (request.epoch.number, alive)
        if is_usual and key in self._known:
            return self._known[key], None
        plan, decision = self.choose(request, alive, current, now)
        route = request.epoch.route(plan, alive, self._rifts.now(now))
        others = frozenset(hop.tier for hop in route[1:] if hop.tier != self._home)
        way = Way(plan, route, others, self._guide.patience(request.epoch.facts, plan, alive, now))
        if is_usual:
            self._known[key] = way
        return way, decision

    def choose(
        self, request: Request, alive: Sequence[bool], current: Epoch, now: float
    ) -> tuple[str, Decision | None]:
        """The plan for an attempt: the one asked for, the one that all follow, or the best for this request's case.

        Args, Raises: as for `find`.
        """
        facts, rid, is_current = request.epoch.facts, request.flight.rid, request.epoch is current
        if request.can_have_its_way(alive):
            # The guide knows the plans of the current epoch only.
            return request.wanted, self._guide.asked(now, alive, request.wanted, rid) if is_current else None
        if not is_current:
            pool = facts.pool
            without = facts.lossy if request.exact else ()
            return pool.choose(replace(facts.nominal, alive=tuple(alive)), without=without).plan.name, None
        is_usual = not request.avoid and not request.exact
        return self._guide.choose(
            now, alive, avoid_lossy=request.exact, rid=None if is_usual else rid, reason=request.cause
        )
