"""What only the session knows of a request, and how long it waits for what."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from flagsplit.runtime.relay import Flight
from flagsplit.runtime.session_guide import Patience
from flagsplit.runtime.session_routes import Epoch

_MOST_DOUBLINGS = 32


@dataclass
class Request:
    """A request of this session.

    Attributes:
        flight: what every tier knows of it.
        epoch: in which it is answered.
        wanted: the plan that was asked for, or "".
        submitted: when it began.
        expires: when its attempt, or its wait for a tier, has taken too long.
        avoid: tiers that it does without, because they failed it.
        asked: tiers that may know of it.
        last_reason: why its last attempt failed.
        compute_error: what an engine said that may be the inputs' fault, or "".
        waits: how often it waited for a tier.
        exact: whether it goes by plans that lose nothing.
        cause: why it needs another plan, for the log of decisions.
        rescue: when it must go on without others to keep its deadline.
        waited: whether its attempt was given more time already.
        on_its_way: the other tiers of its attempt.
    """

    flight: Flight
    epoch: Epoch
    wanted: str
    submitted: float
    expires: float = 0.0
    avoid: set[str] = field(default_factory=set)
    asked: set[str] = field(default_factory=set)
    last_reason: str = ""
    compute_error: str = ""
    waits: int = 0
    exact: bool = False
    cause: str = ""
    rescue: float = math.inf
    waited: bool = False
    on_its_way: frozenset[str] = frozenset()

    @property
    def waits_for_tier(self) -> bool:
        """Whether no plan can do with the tiers that are there."""
        return not self.flight.route

    def can_have_its_way(self, alive: Sequence[bool]) -> bool:
        """Whether the plan that was asked for is there, can run, and can carry its values."""
        facts, wanted = self.epoch.facts, self.wanted
        if wanted not in facts.steps or (self.exact and wanted in facts.lossy):
            return False
        return all(alive[tier] for tier in facts.pool.plan(wanted).used_tiers)

    def enter(self, epoch: Epoch) -> None:
        """Be answered in another epoch."""
        self.epoch.requests -= 1
        epoch.requests += 1
        self.epoch = epoch
        self.flight.bundle, self.flight.epoch = epoch.facts.bundle, epoch.number

    def wait_s(self, now: float, first_s: float, times: int, least_s: float) -> float:
        """How long to wait: twice as long each time, but never all the time that is left.

        Args:
            now: the time.
            first_s: the first time.
            times: that it waited before.
            least_s: half the time that is left is not taken to be less.
        """
        left_s = max((self.flight.deadline - now) / 2, least_s)
        return min(first_s * 2.0 ** min(times, _MOST_DOUBLINGS), left_s)

    def begin(self, now: float, patience: Patience, longest_s: float, under_way: int) -> None:
        """Give the attempt as long as is predicted and some more, or until nothing but a rescue can help.

        Args:
            now: the time.
            patience: with the plan and tiers of the attempt.
            longest_s: at most so long.
            under_way: requests; they share tiers and links, so each may take as long as all of them.
        """
        flight = self.flight
        busy_s = patience.stalled_s * max(1, under_way) * 2.0 ** min(flight.attempt - 1, _MOST_DOUBLINGS)
        rescue = math.inf if patience.rescue_s is None else flight.deadline - patience.rescue_s
        self.rescue = rescue if rescue > now else math.inf
        self.expires = min(now + min(busy_s, longest_s), self.rescue)
        self.waited = False
