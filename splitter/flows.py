"""Maximum flows whose arcs stay while their capacities change: of the whole network, and of one link alone.

Arcs are rows (tail, head, first, second); what the last two mean is for whoever sets the capacities. OR-Tools' flow is
imported when first used.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flagsplit.errors import InternalError
from flagsplit.splitter.charges import Charges
from flagsplit.splitter.rates import Rates

SOURCE, SINK = 0, 1
SCALED_TOTAL = 1 << 52
INFINITE = 1 << 53
"""Capacity of what must not be cut; all finite ones together stay below `SCALED_TOTAL`, so that sums fit 64 bits."""

Arc = tuple[int, int, int, int]


def arc_table(arcs: Sequence[Arc]) -> NDArray[np.int64]:
    """Arcs as an array, shape (arcs, 4)."""
    return np.array(arcs, dtype=np.int64).reshape(-1, 4)


class Flow:
    """A maximum flow whose arcs stay while their capacities change."""

    def __init__(
        self, nodes: int, fixed: NDArray[np.int64], trips: NDArray[np.int64], infinite: NDArray[np.int64]
    ) -> None:
        from ortools.graph.python import max_flow

        self.trips = trips
        self._nodes = nodes
        self._count = len(fixed) + len(trips)
        flow: Any = max_flow.SimpleMaxFlow()
        self._flow = flow
        arcs = np.concatenate([fixed, trips, infinite])
        capacities = np.full(len(arcs), INFINITE)
        tails, heads = arcs[:, 0].astype(np.int32), arcs[:, 1].astype(np.int32)
        self._arcs = self._flow.add_arcs_with_capacity(tails, heads, capacities)[: self._count]

    @property
    def value(self) -> int:
        """Of the cut that was found last, in units of the capacities."""
        return int(self._flow.optimal_flow())

    def source_side(self, capacities: NDArray[np.int64], name: str) -> NDArray[np.bool_]:
        """The nodes that are on the source's side of a minimum cut."""
        self._flow.set_arcs_capacity(self._arcs, capacities)
        status = self._flow.solve(SOURCE, SINK)
        if status != self._flow.OPTIMAL or self._flow.optimal_flow() >= INFINITE:
            raise InternalError(f"the flow of {name!r} ended as {status}; please report the model")
        side = np.zeros(self._nodes, dtype=bool)
        side[self._flow.get_source_side_min_cut()] = True
        side[SOURCE] = True
        return side


class LinkFlow:
    """Which blocks are beyond one link, the others left aside: a cut of its own, and a much smaller one.

    The round trip is not in the network: it is the same for all answers but the one that leaves the link unused.

    Args:
        k: the tier that the link leads to.
        nodes: of each block, that which says whether it is beyond.
        transfers: arcs of the values that cross the link.
        kinds: of those, 0 away from the first tier, 1 towards it.
        inner: infinite arcs between these nodes and their helpers.
    """

    def __init__(
        self,
        k: int,
        nodes: NDArray[np.int64],
        transfers: NDArray[np.int64],
        kinds: NDArray[np.int64],
        inner: NDArray[np.int64],
    ) -> None:
        self._k = k
        self._free = np.flatnonzero(nodes > SINK)
        self._fixed = nodes == SOURCE
        unary = [(SOURCE, int(nodes[v]), int(v), 0) for v in self._free]
        unary += [(int(nodes[v]), SINK, int(v), 0) for v in self._free]
        arcs = np.concatenate([arc_table(unary), transfers])
        used = np.unique(np.concatenate([[SOURCE, SINK], *(t[:, :2].ravel() for t in (arcs, inner))]))
        number = np.zeros(int(used.max()) + 1, dtype=np.int64)
        number[used] = np.arange(len(used))

        def renamed(table: NDArray[np.int64]) -> NDArray[np.int64]:
            return np.concatenate([number[table[:, :2]], table[:, 2:]], axis=1)

        self._node = number[nodes]
        self._values, self._kinds = transfers[:, 2], kinds
        self._flow = Flow(len(used), renamed(arcs), arc_table([]), renamed(inner))

    def beyond(self, rates: Rates, charges: Charges, name: str) -> tuple[NDArray[np.bool_], float, float]:
        """Whether each block is beyond the link in the best cut, what that adds to leaving all on this side, and by
        how much rounding can have misled it."""
        link = self._k - 1
        more = rates.unary[self._free, self._k] - rates.unary[self._free, link]
        moved = np.where(self._kinds == 0, charges[0][link, self._values], charges[1][link, self._values])
        gains, losses = np.maximum(-more, 0.0), np.maximum(more, 0.0)
        must = bool(self._fixed.any())
        # Twice a cut that is there is as good as infinite: all on this side, or all that may be on the other.
        reachable = min(gains.sum() + moved.sum() * must, losses.sum() + moved.sum())
        capacities = np.concatenate([gains, losses, moved])
        capacities = np.minimum(capacities, 2 * reachable) if reachable > 0 else capacities
        total = float(capacities.sum())
        if not len(self._free) or total == 0:
            return self._fixed.copy(), rates.message[link] * must, 0.0
        scale = SCALED_TOTAL / total
        side = self._flow.source_side(np.rint(capacities * scale).astype(np.int64), name)
        used = self._flow.value / scale + float(rates.message[link])
        if not must and gains.sum() <= used:
            return self._fixed.copy(), 0.0, len(capacities) / scale
        return side[self._node], used - float(gains.sum()), len(capacities) / scale
