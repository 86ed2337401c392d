"""What the plans of a pool are worth in one state: worked out once, however many requests ask.

When a tier goes, all requests that are under way need another plan at the same moment and in the same state. Which of
the plans is followed, and when to leave it, is decided in `flagsplit.runtime.decisions`.
"""

from collections.abc import Collection
from functools import cached_property

from flagsplit.splitter.plan import Plan
from flagsplit.splitter.pool import Choice, Pool
from flagsplit.splitter.state import State


class Outlook:
    """A pool in a state.

    Args:
        pool: the plans.
        state: theta.
    """

    def __init__(self, pool: Pool, state: State) -> None:
        self.pool = pool
        self.state = state
        self._choices: dict[tuple[str | None, frozenset[str]], Choice] = {}
        self._rescues: dict[frozenset[str], Plan | None] = {}

    @cached_property
    def _latencies_s(self) -> list[float]:
        latencies_s: list[float] = self.pool.latencies_s(self.state).tolist()
        return latencies_s

    def latency_s(self, plan: str) -> float:
        """Seconds that a request takes by a plan."""
        return self._latencies_s[self.pool.index(plan)]

    def choose(self, current: str | None, margin: float, switch_s: float, without: Collection[str] = ()) -> Choice:
        """What the pool chooses; margin and cost of a change must be the same each time.

        Args:
            current: name of the plan in use, if any.
            margin: another plan's score must be better by this share.
            switch_s: seconds that a change costs.
            without: names of plans that are out.

        Raises:
            UnavailableError: no plan of the pool can do with the tiers that are alive.
        """
        key = current, frozenset(without)
        if key not in self._choices:
            self._choices[key] = self.pool.choose(self.state, current, margin, switch_s, without)
        return self._choices[key]

    def rescue(self, exclude: Collection[str] = ()) -> Plan | None:
        """What a request in need goes on with: the first tier alone, or else the fastest of what is left."""
        key = frozenset(exclude)
        if key not in self._rescues:
            alive = self.state.alive
            usable = [
                plan for plan in self.pool.plans if plan.name not in exclude and all(alive[k] for k in plan.used_tiers)
            ]
            alone = [plan for plan in usable if plan.used_tiers == (0,)]
            self._rescues[key] = min(alone or usable, key=lambda plan: self.latency_s(plan.name), default=None)
        return self._rescues[key]
