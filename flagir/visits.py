"""The order in which a request visits the tiers: the one rule that the cost model and the cutter share.

A request travels the line of tiers like a lift: at each tier it runs all that is ready there, then goes on in its
direction while there is work ahead, else turns. It starts at tier 0, downwards. Any placement is covered, those that
come back to a tier included; what one visit runs is convex.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from flagsplit.errors import InternalError


@dataclass(frozen=True)
class Visit:
    """One stop of a request at a tier where something runs.

    Attributes:
        tier: the tier's position.
        items: what runs there, in topological order.
    """

    tier: int
    items: tuple[int, ...]


def visits(
    placement: Sequence[int],
    predecessors: Sequence[Sequence[int]],
    tier_count: int,
    readers: Sequence[Sequence[int]] | None = None,
) -> tuple[Visit, ...]:
    """The visits of a request.

    Args:
        placement: the tier of each item (a node or a block), items in topological order.
        predecessors: for each item, the items whose results it needs, without repeats.
        tier_count: how many tiers the line has.
        readers: for each item, the items that need its result, if known already: `readers_of_each(predecessors)`.

    Returns:
        Visits in order; every item is in exactly one. Tiers that only relay do not appear.

    Raises:
        InternalError: the items have a cycle.
    """
    lift = _Lift(placement, predecessors, tier_count, readers or readers_of_each(predecessors))
    found: list[Visit] = []
    tier, direction = 0, 1
    while any(lift.pending):
        ran = lift.run_ready(tier)
        if ran:
            found.append(Visit(tier, tuple(sorted(ran))))
        elif not any(lift.ready):
            raise InternalError("the placed graph has a cycle; canonical graphs have none")
        if not any(lift.pending[tier + 1 :] if direction > 0 else lift.pending[:tier]):
            direction = -direction
        tier += direction if any(lift.pending) else 0
    return tuple(found)


class _Lift:
    """What is ready and what is still to come, by tier."""

    def __init__(
        self,
        placement: Sequence[int],
        predecessors: Sequence[Sequence[int]],
        tier_count: int,
        readers: Sequence[Sequence[int]],
    ) -> None:
        self._placement = placement
        self._waiting = [len(needed) for needed in predecessors]
        self._readers = readers
        self.pending = [0] * tier_count
        self.ready: list[list[int]] = [[] for _ in range(tier_count)]
        for item, tier in enumerate(placement):
            self.pending[tier] += 1
            if not self._waiting[item]:
                self.ready[tier].append(item)

    def run_ready(self, tier: int) -> list[int]:
        """Run all that is ready at a tier, and what becomes ready there by it."""
        ran: list[int] = []
        # Local names: this loop is most of what planning a large graph costs beside the flow.
        waiting, ready, placement, readers, here = (
            self._waiting,
            self.ready,
            self._placement,
            self._readers,
            self.ready[tier],
        )
        while here:
            item = here.pop()
            ran.append(item)
            for reader in readers[item]:
                waiting[reader] -= 1
                if not waiting[reader]:
                    ready[placement[reader]].append(reader)
        self.pending[tier] -= len(ran)
        return ran


def readers_of_each(predecessors: Sequence[Sequence[int]]) -> list[list[int]]:
    """For each item, the items that need its result."""
    found: list[list[int]] = [[] for _ in predecessors]
    for item, needed in enumerate(predecessors):
        for maker in needed:
            found[maker].append(item)
    return found
