"""From placements to figures: the one definition of cost and memory, vectorized over many placements.

`Usage` holds what a batch of placements does to tiers and links; `make_plan` turns one of them into a `Plan`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from flagsplit.flagir.visits import visits
from flagsplit.splitter.plan import Cut, Features, Plan, Predicted
from flagsplit.splitter.problem import Problem
from flagsplit.splitter.rates import REQUESTS, Rates, bound_rates
from flagsplit.splitter.sla import BYTES_PER_MB
from flagsplit.splitter.state import State


class Usage:
    """What m placements of the same problem use; arrays have a first axis of length m."""

    def __init__(self, problem: Problem, placements: NDArray[np.int64]) -> None:
        self.problem = problem
        self.placements = placements
        request = np.zeros((len(placements), 1), dtype=np.int64)
        self._with_request = np.concatenate([placements, request], axis=1)
        self._links = np.arange(1, len(problem.tiers))

    @cached_property
    def _ends(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Producer's tier, highest and lowest tier that touches each value, shapes (m, values)."""
        values = self.problem.values
        touched = self._with_request[:, values.endpoints]
        highest = np.maximum.reduceat(touched, values.starts, axis=1)
        lowest = np.minimum.reduceat(touched, values.starts, axis=1)
        return self._with_request[:, values.producer], highest, lowest

    @cached_property
    def up_bytes(self) -> NDArray[np.float64]:
        """Bytes over each link away from the first tier, (m, K-1)."""
        made, highest, _ = self._ends
        return self._per_link([(made < k) & (highest >= k) for k in self._links])

    @cached_property
    def down_bytes(self) -> NDArray[np.float64]:
        """Bytes over each link towards the first tier, (m, K-1)."""
        made, _, lowest = self._ends
        return self._per_link([(made >= k) & (lowest < k) for k in self._links])

    def _per_link(self, crossing: list[NDArray[np.bool_]]) -> NDArray[np.float64]:
        if not crossing:
            return np.zeros((len(self.placements), 0))
        return np.stack([mask @ self.problem.values.size_bytes for mask in crossing], axis=1)

    @cached_property
    def round_trips(self) -> NDArray[np.float64]:
        """How often a request passes each link and comes back, (m, K-1)."""
        once = self.used_links
        made, _, _ = self._ends
        lowest_block = np.minimum.reduceat(self._block_readers, self.problem.values.starts, axis=1)
        comes_back: NDArray[np.bool_] = np.any(lowest_block < made, axis=1)
        # Without a way back between blocks one sweep does it all, and that is the common case.
        rows = zip(self.placements, comes_back.tolist(), once, strict=True)
        return np.array([self._walked(row) if back else few for row, back, few in rows])

    @property
    def used_links(self) -> NDArray[np.float64]:
        """1 for each link that has blocks beyond it, (m, K-1): the least that `round_trips` can be."""
        used: NDArray[np.float64] = (self.placements.max(axis=1, keepdims=True) >= self._links).astype(np.float64)
        return used

    @cached_property
    def _block_readers(self) -> NDArray[np.int64]:
        """Tiers at `endpoints`, the request as a reader left out."""
        tiers = self._with_request[:, self.problem.values.endpoints]
        tiers[:, self.problem.values.endpoints == self.placements.shape[1]] = len(self.problem.tiers)
        return tiers

    def _walked(self, placement: NDArray[np.int64]) -> NDArray[np.float64]:
        stops = visits(placement.tolist(), self.problem.predecessors, len(self.problem.tiers))
        before = np.array([0, *(stop.tier for stop in stops)])
        after = np.append(before[1:], 0)
        passes = (before[:, np.newaxis] < self._links) & (after[:, np.newaxis] >= self._links)
        trips: NDArray[np.float64] = passes.sum(axis=0).astype(np.float64)
        return trips

    @property
    def up_messages(self) -> NDArray[np.float64]:
        """Messages over each link away from the first tier, (m, K-1)."""
        return self.round_trips

    @property
    def down_messages(self) -> NDArray[np.float64]:
        """Messages over each link towards the first tier, (m, K-1); a request comes back as often as it goes."""
        return self.round_trips

    @cached_property
    def tier_seconds(self) -> NDArray[np.float64]:
        """Busy seconds of each tier at nominal speed, (m, K)."""
        costs, placements = self.problem.costs, self.placements
        acted_on = np.zeros((len(placements), len(self.problem.tiers)))
        acted_on[:, 1:] += self.up_messages
        acted_on[:, :-1] += self.down_messages
        acted_on[:, 0] += 1
        run = [(placements == k) @ costs.seconds[:, k] for k in range(len(self.problem.tiers))]
        seconds: NDArray[np.float64] = np.stack(run, axis=1) + acted_on * costs.invocation_s
        return seconds

    @cached_property
    def tier_joules(self) -> NDArray[np.float64]:
        """Joules of each tier above idle, radio included, (m, K)."""
        costs = self.problem.costs
        radio = self.up_bytes @ costs.radio_up_j_per_byte + self.down_bytes @ costs.radio_down_j_per_byte
        joules: NDArray[np.float64] = self.tier_seconds * costs.power_w + radio
        return joules

    @cached_property
    def price_usd(self) -> NDArray[np.float64]:
        """Price of one request, (m,)."""
        price: NDArray[np.float64] = self.tier_seconds @ self.problem.costs.usd_per_s
        return price

    @cached_property
    def phi(self) -> NDArray[np.float64]:
        """`Features.latency_vector` of each placement, (m, 5K - 4)."""
        parts = (self.tier_seconds, self.up_bytes, self.down_bytes, self.up_messages, self.down_messages)
        return np.concatenate(parts, axis=1)

    @cached_property
    def resident_bytes(self) -> NDArray[np.float64]:
        """Weights plus the peak of live activations on each tier, (m, K).

        A value counts on the tiers that produce or consume it (the request, on tier 0, does both for graph inputs and
        outputs), from its producer to its last consumer in block order; the peak is over the blocks of that tier.
        """
        return np.array([self._resident(row) for row in self._with_request])

    def _resident(self, tier_of: NDArray[np.int64]) -> list[float]:
        values, blocks = self.problem.values, len(tier_of) - 1
        touched = tier_of[values.endpoints]
        figures = []
        for k in range(len(self.problem.tiers)):
            here = np.logical_or.reduceat(touched == k, values.starts)
            held = np.where(here, values.size_bytes, 0.0)
            steps = np.bincount(values.first_live, held, blocks + 1)
            steps -= np.bincount(values.last_live + 1, held, blocks + 1)
            mine = tier_of[:blocks] == k
            live = np.cumsum(steps)[:blocks]
            figures.append(float(self.problem.weight_bytes[mine].sum() + live[mine].max(initial=0.0)))
        return figures

    def measure(self, rates: Rates, round_trips: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """A linear measure of each placement, (m,), with other `round_trips` (m, K-1) than the real ones if given."""
        trips = self.round_trips if round_trips is None else round_trips
        blocks = np.arange(self.placements.shape[1])
        total: NDArray[np.float64] = (
            rates.unary[blocks, self.placements].sum(axis=1)
            + self.up_bytes @ rates.up_byte
            + self.down_bytes @ rates.down_byte
            + trips @ (rates.up_message + rates.down_message)
        )
        return total


@dataclass(frozen=True)
class Violation:
    """A cap or bound that a placement breaks.

    Attributes:
        limit: "latency_ms", "energy_mj", "price_per_1k_usd" or "memory_mb of TIER".
        value, allowed: in the limit's unit.
    """

    limit: str
    value: float
    allowed: float

    def __str__(self) -> str:
        return f"{self.limit} would be {self.value:.6g}, over {self.allowed:.6g}"


def memory_limit(tier: str) -> str:
    """How the memory cap of a tier is called in violations and messages."""
    return f"memory_mb of {tier}"


def violations(problem: Problem, placement: Sequence[int] | NDArray[np.int64]) -> list[Violation]:
    """Which caps and bounds of the SLA a placement breaks at the nominal state."""
    usage = Usage(problem, np.array([placement], dtype=np.int64))
    found = []
    for tier, used, cap in zip(problem.tier_names, usage.resident_bytes[0], problem.memory_bytes, strict=True):
        if _over(float(used), float(cap)):
            found.append(Violation(memory_limit(tier), float(used) / BYTES_PER_MB, float(cap) / BYTES_PER_MB))
    for name, (rates, limit) in bound_rates(problem).items():
        value = float(usage.measure(rates)[0])
        if _over(value, limit):
            found.append(Violation(name, value, limit))
    return found


def _over(value: float, limit: float) -> bool:
    """Whether a limit is broken by more than the rounding of its unit."""
    return value > limit * (1 + 1e-9)


def tier_set_name(tiers: Sequence[str], placement: Sequence[int]) -> str:
    """ "all-TIER" for one tier in use, else their names joined by "+"."""
    used = sorted(set(placement))
    return f"all-{tiers[used[0]]}" if len(used) == 1 else "+".join(tiers[k] for k in used)


def make_plan(problem: Problem, placement: Sequence[int] | NDArray[np.int64], name: str) -> Plan:
    """The plan of one placement."""
    usage = Usage(problem, np.array([placement], dtype=np.int64))
    features = _features(usage)
    return Plan(
        name=name,
        tiers=problem.tier_names,
        placement=tuple(int(k) for k in placement),
        cuts=tuple(_cuts(problem, placement)),
        features=features,
        predicted=_predict(features, problem.nominal),
    )


def _features(usage: Usage) -> Features:
    def row(array: NDArray[np.float64]) -> tuple[float, ...]:
        return tuple(float(x) for x in array[0])

    return Features(
        tier_seconds=row(usage.tier_seconds),
        up_bytes=row(usage.up_bytes),
        down_bytes=row(usage.down_bytes),
        up_messages=row(usage.up_messages),
        down_messages=row(usage.down_messages),
        tier_joules=row(usage.tier_joules),
        price_usd=float(usage.price_usd[0]),
        resident_bytes=row(usage.resident_bytes),
    )


def _predict(features: Features, nominal: State) -> Predicted:
    return Predicted(
        latency_s=float(features.latency_vector() @ nominal.vector()),
        first_tier_energy_j=features.tier_joules[0],
        total_energy_j=sum(features.tier_joules),
        price_per_1k_usd=features.price_usd * REQUESTS,
    )


def _cuts(problem: Problem, placement: Sequence[int] | NDArray[np.int64]) -> list[Cut]:
    cuts = []
    for value in problem.graph.values:
        made = 0 if value.producer < 0 else int(placement[value.producer])
        needed = {int(placement[c]) for c in value.consumers} | ({0} if value.is_output else set())
        up = tuple(sorted(k for k in needed if k > made))
        down = tuple(sorted(k for k in needed if k < made))
        if up:
            cuts.append(Cut(value.name, value.size_bytes, made, up[-1], up))
        if down:
            cuts.append(Cut(value.name, value.size_bytes, made, down[0], down))
    return cuts
