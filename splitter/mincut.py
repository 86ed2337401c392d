"""Placement for any linear measure: a multi-label minimum cut, solved as one maximum flow.

Block v has K-1 binary nodes y[v,k] = [tier(v) >= k], on the source side when 1. Round trips are allowed: a value that
moves away from the first tier pays on links between its producer and its farthest consumer (helper z = max of the
consumers), one that moves back pays likewise (helper q = min of the consumers). The request is pinned to tier 0 as the
producer of the inputs and the consumer of the outputs.

How often a request goes round over a link is not submodular, so a flow can only charge less: once for each link in use
(a node Z per link), or the turns along one chain of dependent blocks. Where the charge is what the placement really
does the cut is exact; that is always so with one round trip per link. Otherwise the result's bound stays below its
objective, and `flagsplit.splitter.milp` can close the gap. The same goes for lossy codecs on lines of three tiers and
more: a value that crosses several links is encoded once, which a flow can only charge in parts.

The arcs are built once; another measure sets their capacities in place, so solving again costs one flow.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from flagsplit.splitter.charges import Charges, charged_trips, transfer_charges, worst_chain
from flagsplit.splitter.evaluate import Usage
from flagsplit.splitter.flows import SCALED_TOTAL, SINK, SOURCE, Arc, Flow, LinkFlow, arc_table
from flagsplit.splitter.problem import Problem
from flagsplit.splitter.rates import Rates

_TIGHT = 1e-7


@dataclass(frozen=True)
class CutResult:
    """A placement of small measure.

    Attributes:
        placement: tier index of each block.
        objective: its measure.
        bound: no placement has a measure below this.
    """

    placement: tuple[int, ...]
    objective: float
    bound: float

    @property
    def gap(self) -> float:
        """Relative distance between objective and bound."""
        return (self.objective - self.bound) / self.objective if self.objective > 0 else 0.0

    @property
    def exact(self) -> bool:
        """Whether no other placement is better, up to rounding."""
        return self.gap <= _TIGHT


class CutNetwork:
    """The flow network of a problem for a table of allowed tiers; solve it for as many measures as needed.

    Args:
        problem: where values, blocks and links come from.
        allowed: shape (n, K), at least one true in each row.
    """

    def __init__(self, problem: Problem, allowed: NDArray[np.bool_]) -> None:
        self.problem = problem
        self.allowed = allowed
        self._nodes = 2
        self._unary: list[Arc] = []
        self._ups: list[Arc] = []
        self._downs: list[Arc] = []
        self._infinite: list[Arc] = []
        self._y = self._place_nodes()
        self._add_unary()
        self._add_values()
        once: list[Arc] = []
        for k in range(1, allowed.shape[1]):
            self._arc(once, self._any_of(sorted({int(node) for node in self._y[:-1, k]}), -k), SINK, 0, k - 1)
        self._sections = np.cumsum([len(self._unary), len(self._ups), len(self._downs)])
        self._fixed_arcs = arc_table([*self._unary, *self._ups, *self._downs])
        self._infinite_arcs = arc_table(self._infinite)
        self._once = Flow(self._nodes, self._fixed_arcs, arc_table(once), self._infinite_arcs)
        self._links = self._apart()
        self._in_order = tuple(range(len(allowed)))
        self._order_flow: Flow | None = None
        self._whole_tiers = np.flatnonzero(allowed.all(axis=0))

    def _apart(self) -> "list[LinkFlow]":
        """A flow for each link alone, where there are two and every block's tiers are neighbors.

        Of more links the answers seldom nest, and the attempt would cost more than it saves.
        """
        spread = [np.flatnonzero(row) for row in self.allowed]
        if self.allowed.shape[1] != 3 or any(options[-1] - options[0] + 1 != len(options) for options in spread):
            return []
        transfers = self._fixed_arcs[self._sections[0] :]
        kinds = np.repeat([0, 1], [len(self._ups), len(self._downs)])
        found = []
        for k in range(1, self.allowed.shape[1]):
            mine = transfers[:, 3] == k - 1
            inner = self._infinite_arcs[self._infinite_arcs[:, 3] == k]
            found.append(LinkFlow(k, self._y[:-1, k], transfers[mine], kinds[mine], inner))
        return found

    def _new_node(self) -> int:
        self._nodes += 1
        return self._nodes - 1

    def _place_nodes(self) -> NDArray[np.int64]:
        """y[v,k] for k = 0..K; what the allowed tiers already decide is the source or the sink itself.

        So no infinite arc leaves the source, and the flow stays within 64 bits for any number of pins.
        """
        n, tiers = self.allowed.shape
        y = np.full((n + 1, tiers + 1), SINK, dtype=np.int64)
        y[:, 0] = SOURCE
        for v in range(n):
            options = np.flatnonzero(self.allowed[v])
            y[v, : options[0] + 1] = SOURCE
            for k in range(int(options[0]) + 1, int(options[-1]) + 1):
                y[v, k] = self._new_node()
        return y

    def _arc(self, arcs: list[Arc], tail: int, head: int, first: int = 0, second: int = 0) -> None:
        """An arc counts when its tail is on the source side and its head is not."""
        if tail not in (head, SINK) and head != SOURCE:
            arcs.append((tail, head, first, second))

    def _add_unary(self) -> None:
        for v, row in enumerate(self.allowed):
            for k, allowed in enumerate(row):
                tail, head = int(self._y[v, k]), int(self._y[v, k + 1])
                self._arc(self._unary if allowed else self._infinite, tail, head, v, k)
                self._arc(self._infinite, head, tail)

    def _add_values(self) -> None:
        values = self.problem.values
        ends = np.split(values.endpoints, values.starts[1:])
        for t, (producer, *consumers) in enumerate(ends):
            if not consumers or values.size_bytes[t] == 0:
                continue
            for k in range(1, self.allowed.shape[1]):
                made = int(self._y[producer, k])
                readers = sorted({int(self._y[c, k]) for c in consumers})
                self._arc(self._ups, self._any_of(readers, k), made, t, k - 1)
                self._arc(self._downs, made, self._all_of(readers, k), t, k - 1)

    def _any_of(self, nodes: Sequence[int], k: int) -> int:
        """A node that is on the source side as soon as one of `nodes` is."""
        inner = [node for node in nodes if node != SINK]
        if SOURCE in inner:
            return SOURCE
        if len(inner) < 2:
            return inner[0] if inner else SINK
        helper = self._new_node()
        for node in inner:
            self._arc(self._infinite, node, helper, 0, k)
        return helper

    def _all_of(self, nodes: Sequence[int], k: int) -> int:
        """A node that is on the source side only if all of `nodes` are."""
        inner = [node for node in nodes if node != SOURCE]
        if SINK in inner:
            return SINK
        if len(inner) < 2:
            return inner[0] if inner else SOURCE
        helper = self._new_node()
        for node in inner:
            self._arc(self._infinite, helper, node, 0, k)
        return helper

    def _turns(self, chain: Sequence[int]) -> NDArray[np.int64]:
        """A round trip over a link each time that control goes beyond it along a chain of blocks."""
        walk = np.array([self.allowed.shape[0], *chain])
        tails, heads = self._y[walk[1:], 1:-1], self._y[walk[:-1], 1:-1]
        links = np.broadcast_to(np.arange(tails.shape[1]), tails.shape)
        arcs = np.stack([tails, heads, np.zeros_like(tails), links], axis=2).reshape(-1, 4)
        counts = (arcs[:, 0] != arcs[:, 1]) & (arcs[:, 0] != SINK) & (arcs[:, 1] != SOURCE)
        turns: NDArray[np.int64] = arcs[counts]
        return turns

    def least(self, rates: Rates, good_enough: float = 0.0) -> CutResult:
        """The best placement that cuts alone can find, with the best bound that they prove.

        Args:
            rates: the measure.
            good_enough: gap, relative, at which not to look further; looking further takes three more flows.
        """
        result = self.solve(rates, good_enough=good_enough)
        if result.exact or result.gap <= good_enough:
            return result
        # Block order is no chain of dependent blocks, so it proves nothing, but its plans seldom turn back. Nor does
        # charging a codec's whole work on each link, but it seldom sends a value coded where that does not pay.
        found = [result, self.solve(rates, self._in_order), *self._with_whole_codecs(rates)]
        best, bound = min(found, key=lambda r: (r.objective, r.placement)), result.bound
        if best.objective - bound > good_enough * best.objective:
            chain = worst_chain(self.problem, result.placement)
            other = self.solve(rates, chain) if chain else result
            best, bound = min(best, other, key=lambda r: (r.objective, r.placement)), max(bound, other.bound)
        return replace(best, bound=min(bound, best.objective))

    def _with_whole_codecs(self, rates: Rates) -> list[CutResult]:
        if len(self.problem.codecs) == 1 or len(self.problem.tiers) == 2:
            return []
        return [self._solve_charged(rates, transfer_charges(self.problem, rates, 1.0), None)]

    def solve(self, rates: Rates, chain: Sequence[int] | None = None, good_enough: float = 0.0) -> CutResult:
        """The placement of least measure if round trips are charged once per link, or by the turns along a chain.

        `rates` must not be negative anywhere. The bound holds for the real measure if the chain is one of dependence.
        """
        return self._solve_charged(rates, transfer_charges(self.problem, rates), chain, good_enough)

    def _link_by_link(self, rates: Rates, charges: Charges, good_enough: float) -> CutResult | None:
        """The answer where each link may decide by itself, or one that is made of those answers and good enough.

        Where the answers nest they are the answer of all together. Where they do not, a block is beyond the second link
        and not beyond the first: it is taken back, or along, and what each link would have liked bounds the measure.
        """
        sides = [link.beyond(rates, charges, self.problem.graph.name) for link in self._links]
        first, second = (side for side, _, _ in sides)
        error = sum(each for _, _, each in sides)
        if not (second & ~first).any():
            return self._result(first.astype(np.int64) + second, rates, charges, None, error)
        if not good_enough:
            return None
        nearest = np.where(self.allowed, np.arange(self.allowed.shape[1]), len(self.allowed[0])).min(axis=1)
        start = float(rates.unary[np.arange(len(nearest)), nearest].sum())
        bound = start + sum(value for _, value, _ in sides) - error
        merged = np.array([(first | second) + second.astype(np.int64), first + (first & second).astype(np.int64)])
        usage = Usage.for_measure(self.problem, merged, rates)
        charged = usage.measure(rates, usage.used_links)
        at = int(charged.argmin())
        if charged[at] - bound > good_enough * charged[at]:
            return None
        best = replace(self._result(merged[at], rates, charges, None, error), bound=bound)
        return best if best.gap <= good_enough else None

    def _solve_charged(
        self, rates: Rates, charges: Charges, chain: Sequence[int] | None, good_enough: float = 0.0
    ) -> CutResult:
        if chain is None and self._links:
            found = self._link_by_link(rates, charges, good_enough)
            if found is not None:
                return found
        flow = self._once if chain is None else self._along(chain)
        least = np.where(self.allowed, rates.unary, np.inf).min(axis=1)
        unary, ups, downs = np.split(self._fixed_arcs, self._sections[:-1])
        capacities = np.concatenate(
            [
                rates.unary[unary[:, 2], unary[:, 3]] - least[unary[:, 2]],
                charges[0][ups[:, 3], ups[:, 2]],
                charges[1][downs[:, 3], downs[:, 2]],
                rates.message[flow.trips[:, 3]],
            ]
        )
        # Twice a reachable measure is as good as infinite, and keeps one hopeless tier from using up the precision.
        ceiling = self._ceiling(rates, chain)
        capacities = np.minimum(capacities, 2 * ceiling) if ceiling > 0 else capacities
        total = float(capacities.sum())
        if self._nodes == 2 or total == 0:
            return self._result(self.allowed.argmax(axis=1), rates, charges, chain, 0.0)
        scale = SCALED_TOTAL / total
        side = flow.source_side(np.rint(capacities * scale).astype(np.int64), self.problem.graph.name)
        placement: NDArray[np.int64] = side[self._y[:-1, 1:-1]].sum(axis=1)
        # Rounding moves any cut by at most half a unit for each finite arc, so two cuts swap by at most one unit each.
        return self._result(placement, rates, charges, chain, len(capacities) / scale)

    def _along(self, chain: Sequence[int]) -> "Flow":
        key = tuple(chain)
        if key != self._in_order:
            return Flow(self._nodes, self._fixed_arcs, self._turns(chain), self._infinite_arcs)
        if self._order_flow is None:
            self._order_flow = Flow(self._nodes, self._fixed_arcs, self._turns(chain), self._infinite_arcs)
        return self._order_flow

    def _ceiling(self, rates: Rates, chain: Sequence[int] | None) -> float:
        """The charged measure of the best of a few obvious placements, without codecs."""
        guesses = [np.where(self.allowed, rates.unary, np.inf).argmin(axis=1)]
        guesses += [np.full(len(self.allowed), k) for k in self._whole_tiers]
        usage = Usage(self.problem, np.array(guesses))
        return float(usage.measure(rates, charged_trips(usage, chain)).min())

    def _result(
        self,
        placement: NDArray[np.int64],
        rates: Rates,
        charges: Charges,
        chain: Sequence[int] | None,
        error: float,
    ) -> CutResult:
        usage = Usage.for_measure(self.problem, placement[np.newaxis], rates)
        trips = charged_trips(usage, chain)
        real = float(usage.measure(rates)[0])
        if usage.codecs is None:
            charged = float(usage.measure(rates, trips)[0])
        else:
            sent = sum(float((charges[i] * usage.crossing[0, i]).sum()) for i in (0, 1))
            run = float(rates.unary[np.arange(len(placement)), placement].sum())
            charged = run + sent + float(trips[0] @ rates.message)
        return CutResult(tuple(placement.tolist()), real, min(charged - error, real))


def min_cut(problem: Problem, rates: Rates) -> CutResult:
    """The best placement that cuts find among those that the constraints allow, caps and bounds aside."""
    return CutNetwork(problem, problem.constraints.allowed).least(rates)
