"""How a request gets where its plan wants it: past tiers that are gone, and round workers that cannot reach each other.

An `Epoch` is one bundle under one policy; a session has the one that answers new requests, and older ones until their
last request is answered.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from flagsplit.errors import InternalError, PolicyError
from flagsplit.runtime.itinerary import itinerary
from flagsplit.runtime.session_facts import SessionFacts
from flagsplit.transport.messages import MAX_HOPS, Hop, Open, encode

_LONGEST_SHUN = 30.0

Pair = frozenset[str]


@dataclass(eq=False)
class Epoch:
    """A bundle under a policy.

    Attributes:
        number: counts up from 0 in a session.
        facts: of the bundle.
        requests: how many are on their way.
    """

    number: int
    facts: SessionFacts
    requests: int = 0
    _routes: dict[tuple[str, tuple[int, ...], frozenset[Pair]], tuple[Hop, ...]] = field(default_factory=dict)

    def route(self, plan: str, alive: Sequence[bool], apart: frozenset[Pair]) -> tuple[Hop, ...]:
        """The hops of a plan.

        Args:
            plan: its name.
            alive: by tier, whether it can relay.
            apart: pairs of tiers that cannot reach each other.

        Raises:
            PolicyError: it is beyond the limits of the protocol.
        """
        passed = self.facts.pool.plan(plan).route or range(len(self.facts.tiers))
        relays = tuple([i for i in passed if i == 0 or alive[i]])
        known = self._routes.get((plan, relays, apart))
        if known is None:
            known = self._routes[plan, relays, apart] = self._make(plan, relays, apart)
        return known

    def _make(self, plan: str, relays: tuple[int, ...], apart: frozenset[Pair]) -> tuple[Hop, ...]:
        facts, tiers = self.facts, self.facts.tiers
        answers = tuple(facts.answers_of(plan).values())
        pairs = [frozenset(tiers.index(tier) for tier in pair) for pair in apart if pair <= set(tiers)]
        hops = itinerary(facts.steps[plan], facts.inputs, answers, relays, pairs)
        route = tuple(Hop(tiers[hop.tier], hop.segment, hop.carry) for hop in hops)
        if len(route) > MAX_HOPS:
            raise PolicyError(
                f"plan {plan!r} goes from tier to tier {len(route) - 1} times, at most {MAX_HOPS - 1} can be sent; "
                "choose another, or build with fewer changes of the tier"
            )
        try:
            encode(Open("0" * 32, 0, 0, 0, plan, 0, route, (), 0, bundle=facts.bundle))
        except InternalError as error:
            raise PolicyError(f"plan {plan!r} cannot be sent: {error}; choose another") from None
        return route


class Rifts:
    """Pairs of workers that could not reach each other, and until when they are led past each other.

    Args:
        first_s: for how long after the first failure; doubled with each further one.
    """

    def __init__(self, first_s: float) -> None:
        self._first_s = first_s
        self._until: dict[Pair, tuple[float, float]] = {}

    def __bool__(self) -> bool:
        return bool(self._until)

    def note(self, pair: Pair, now: float) -> None:
        """They failed to reach each other, as far as it was not known."""
        until, lasted_s = self._until.get(pair, (now, 0.0))
        if until <= now:
            lasted_s = min(max(self._first_s, 2 * lasted_s), _LONGEST_SHUN * self._first_s)
            self._until[pair] = (now + lasted_s, lasted_s)

    def forget(self, route: tuple[Hop, ...]) -> None:
        """A request came through this way."""
        for one, other in pairwise(route):
            self._until.pop(frozenset((one.tier, other.tier)), None)

    def now(self, now: float) -> frozenset[Pair]:
        """The pairs to keep apart."""
        return frozenset(pair for pair, (until, _) in self._until.items() if now < until)


def way_into(route: tuple[Hop, ...], tier: str, home: str) -> Pair | None:
    """The pair of a tier and the worker from which a route first goes there; None if that is the session itself."""
    for one, other in pairwise(route):
        if other.tier == tier:
            return None if home in (one.tier, tier) else frozenset((one.tier, tier))
    return None
