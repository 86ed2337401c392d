"""From placements to figures: the one definition of cost and memory, vectorized over many placements.

`Usage` holds what a batch of placements does to tiers and links, `choose_codecs` how their values had best travel.
Caps and bounds are in `flagsplit.splitter.limits`, plans in `flagsplit.splitter.plan_maker`.
"""

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from flagsplit.flagir.visits import visits
from flagsplit.splitter.problem import Problem, ValueTable
from flagsplit.splitter.rates import Rates, objective_rates
from flagsplit.splitter.state import State

_MOST_DENSE_BLOCKS = 512


class Usage:
    """What m placements of the same problem use; arrays have a first axis of length m.

    Args:
        problem: what they are placements of.
        placements: shape (m, n).
        codecs: index into `problem.codecs` by direction (up, down) and value, shape (m, 2, values); all "none" if left
            out. `choose_codecs` finds those that are best for a measure.
    """

    def __init__(
        self, problem: Problem, placements: NDArray[np.int64], codecs: NDArray[np.int64] | None = None
    ) -> None:
        self.problem = problem
        self.placements = placements
        self.codecs = codecs if len(problem.codecs) > 1 else None
        request = np.zeros((len(placements), 1), dtype=np.int64)
        self._with_request = np.concatenate([placements, request], axis=1)
        self._links = np.arange(1, len(problem.tiers))

    @classmethod
    def for_measure(cls, problem: Problem, placements: NDArray[np.int64], rates: Rates) -> "Usage":
        """With the codecs that make a measure least."""
        return cls(problem, placements, choose_codecs(problem, placements, rates))

    @classmethod
    def for_objective(cls, problem: Problem, placements: NDArray[np.int64]) -> "Usage":
        """With the codecs that are best for the SLA's objective at the nominal state."""
        if len(problem.codecs) == 1:
            return cls(problem, placements)
        return cls.for_measure(problem, placements, objective_rates(problem, problem.nominal))

    @cached_property
    def ends(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Producer's tier, highest and lowest tier that touches each value, shapes (m, values)."""
        values = self.problem.values
        touched = self._with_request[:, values.endpoints]
        highest = np.maximum.reduceat(touched, values.starts, axis=1)
        lowest = np.minimum.reduceat(touched, values.starts, axis=1)
        return self._with_request[:, values.producer], highest, lowest

    @cached_property
    def crossing(self) -> NDArray[np.bool_]:
        """Whether a value crosses a link, by direction (up, down), link and value, (m, 2, K-1, values)."""
        made, highest, lowest = self.ends
        links = self._links[:, np.newaxis]
        here = made[:, np.newaxis]
        up = (here < links) & (highest[:, np.newaxis] >= links)
        down = (here >= links) & (lowest[:, np.newaxis] < links)
        return np.stack([up, down], axis=1)

    @cached_property
    def up_bytes(self) -> NDArray[np.float64]:
        """Bytes over each link away from the first tier, (m, K-1)."""
        return self._sent(0)

    @cached_property
    def down_bytes(self) -> NDArray[np.float64]:
        """Bytes over each link towards the first tier, (m, K-1)."""
        return self._sent(1)

    def _sent(self, direction: int) -> NDArray[np.float64]:
        crossing, values = self.crossing[:, direction], self.problem.values
        if self.codecs is None:
            plain: NDArray[np.float64] = crossing @ values.size_bytes
            return plain
        coded = values.coded_bytes[self.codecs[:, direction], np.arange(len(values.size_bytes))]
        sent: NDArray[np.float64] = (crossing * np.where(np.isfinite(coded), coded, 0.0)[:, np.newaxis]).sum(axis=2)
        return sent

    @cached_property
    def receiving(self) -> NDArray[np.bool_]:
        """Whether a tier gets a value from another, by direction, tier and value, (m, 2, K, values)."""
        values, made = self.problem.values, self.ends[0]
        touched = self._with_request[:, values.endpoints]
        found = np.zeros((len(touched), 2, len(self.problem.tiers), len(values.size_bytes)), dtype=bool)
        for k in range(len(self.problem.tiers)):
            needs = np.logical_or.reduceat(touched == k, values.starts, axis=1)
            found[:, 0, k] = needs & (made < k)
            found[:, 1, k] = needs & (made > k)
        return found

    @cached_property
    def coded(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Bytes of values, as they are, that each tier encodes and decodes by each codec, (m, C, K) each."""
        shape = (len(self.placements), len(self.problem.codecs), len(self.problem.tiers))
        encoded, decoded = np.zeros(shape), np.zeros(shape)
        if self.codecs is None:
            return encoded, decoded
        made, size = self.ends[0], self.problem.values.size_bytes
        moves: NDArray[np.bool_] = np.any(self.crossing, axis=2)
        # A value that goes both ways by one codec is encoded once.
        again = moves[:, 0] & np.equal(self.codecs[:, 0], self.codecs[:, 1])
        leaves = np.stack([moves[:, 0], moves[:, 1] & ~again], axis=1)
        for c in range(1, shape[1]):
            chosen: NDArray[np.bool_] = np.equal(self.codecs, c)
            for k in range(shape[2]):
                encoded[:, c, k] = (leaves & chosen & (made == k)[:, np.newaxis]).sum(axis=1) @ size
                decoded[:, c, k] = (self.receiving[:, :, k] & chosen).sum(axis=1) @ size
        return encoded, decoded

    @cached_property
    def round_trips(self) -> NDArray[np.float64]:
        """How often a request passes each link and comes back, (m, K-1)."""
        once = self.used_links
        if self.problem.steps > 1:
            inside = self.placements.min(axis=1, keepdims=True) < self._links
            divided: NDArray[np.float64] = once * np.where(inside, self.problem.steps, 1)
            return divided
        made, _, _ = self.ends
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
        problem = self.problem
        stops = visits(placement.tolist(), problem.predecessors, len(problem.tiers), problem.readers)
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
        return seconds + self._codec_seconds()

    def _codec_seconds(self) -> NDArray[np.float64]:
        costs, total = self.problem.costs, np.zeros((len(self.placements), len(self.problem.tiers)))
        for c, name in enumerate(self.problem.codecs if self.codecs is not None else ()):
            if c:
                encoded, decoded = self.coded
                total += encoded[:, c] * costs.encode_s_per_byte[name] + decoded[:, c] * costs.decode_s_per_byte[name]
        return total

    @cached_property
    def tier_joules(self) -> NDArray[np.float64]:
        """Joules of each tier above idle, radio included, (m, K)."""
        costs = self.problem.costs
        rate = self.problem.sla.requests_per_s
        radio = self.up_bytes @ costs.radio_up_j_per_byte + self.down_bytes @ costs.radio_down_j_per_byte
        if rate is not None:
            radio += self.up_messages @ (costs.radio_tail_w * np.minimum(costs.radio_tail_s, 1 / rate))
        joules: NDArray[np.float64] = self.tier_seconds * costs.power_w + radio
        return joules

    @cached_property
    def carbon_g(self) -> NDArray[np.float64]:
        """Grams of CO2 of one request, (m,)."""
        grams: NDArray[np.float64] = self.tier_joules @ self.problem.costs.carbon_g_per_j
        return grams

    @cached_property
    def cold_start_s(self) -> NDArray[np.float64]:
        """Seconds that each tier needs to get ready, 0 where it runs nothing, (m, K)."""
        costs, weights = self.problem.costs, self.problem.weight_bytes
        runs = [self.placements == k for k in range(len(self.problem.tiers))]
        held = np.stack([run @ weights for run in runs], axis=1)
        used = np.stack([run.any(axis=1) for run in runs], axis=1)
        seconds: NDArray[np.float64] = np.where(used, costs.load_s + held * costs.load_s_per_byte, 0.0)
        return seconds

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
        """Weights plus the peak of live activations and of the state of loops on each tier, (m, K).

        A value counts on the tiers that produce or consume it (the request, on tier 0, does both for graph inputs and
        outputs), from its producer to its last consumer in block order; the peak is over the blocks of that tier.
        """
        return np.stack([self.resident_on(k) for k in range(len(self.problem.tiers))], axis=1)

    def resident_on(self, tier: int) -> NDArray[np.float64]:
        """`resident_bytes` of one tier, (m,)."""
        values, blocks = self.problem.values, self.placements.shape[1]
        mine = self.placements == tier
        here = np.logical_or.reduceat(self._with_request[:, values.endpoints] == tier, values.starts, axis=1)
        live = here @ self._life if blocks <= _MOST_DENSE_BLOCKS else _live(values, here, blocks)
        states = self.problem.held_bytes[:, tier]
        kept: NDArray[np.float64] = mine @ self.problem.weight_bytes
        if self.problem.steps > 1:  # the parts of a loop are under way together
            kept = kept + mine @ states
        else:
            live = live + states
        held: NDArray[np.float64] = kept + np.where(mine, live, 0.0).max(axis=1, initial=0)
        return held

    @cached_property
    def _life(self) -> NDArray[np.float64]:
        """Bytes of each value while each block runs, (values, n)."""
        values, steps = self.problem.values, np.arange(self.placements.shape[1])
        alive = (values.first_live[:, np.newaxis] <= steps) & (steps <= values.last_live[:, np.newaxis])
        life: NDArray[np.float64] = alive * values.size_bytes[:, np.newaxis]
        return life

    def measure(self, rates: Rates, round_trips: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """A linear measure of each placement, (m,), with other `round_trips` (m, K-1) than the real ones if given."""
        trips = self.round_trips if round_trips is None else round_trips
        blocks = np.arange(self.placements.shape[1])
        total: NDArray[np.float64] = (
            rates.unary[blocks, self.placements].sum(axis=1)
            + self.up_bytes @ rates.up_byte
            + self.down_bytes @ rates.down_byte
            + trips @ rates.message
        )
        if self.codecs is not None:
            encoded, decoded = self.coded
            total += np.einsum("mck,ck->m", encoded, rates.encode) + np.einsum("mck,ck->m", decoded, rates.decode)
        return total

    def stages(self, state: State) -> NDArray[np.float64]:
        """Seconds for which a request keeps each tier, and each link up, then down, busy in a state, (m, 3K - 2)."""
        line = slice(len(self.problem.links))
        busy: NDArray[np.float64] = np.concatenate(
            [
                self.tier_seconds * np.array(state.slowdown),
                self.up_bytes * np.array(state.up_s_per_byte[line]),
                self.down_bytes * np.array(state.down_s_per_byte[line]),
            ],
            axis=1,
        )
        return busy


def _live(values: ValueTable, here: NDArray[np.bool_], blocks: int) -> NDArray[np.float64]:
    """Live bytes while each block runs, row by row: for graphs too large for a table of values by blocks."""
    rows = []
    for row in here:
        held = np.where(row, values.size_bytes, 0.0)
        steps = np.bincount(values.first_live, held, blocks + 1)
        steps -= np.bincount(values.last_live + 1, held, blocks + 1)
        rows.append(np.cumsum(steps)[:blocks])
    return np.array(rows)


def choose_codecs(problem: Problem, placements: NDArray[np.int64], rates: Rates) -> NDArray[np.int64] | None:
    """For each value that moves, the allowed codec that makes a measure least, (m, 2, values).

    None where there is no choice. Directions are decided one by one.
    """
    if len(problem.codecs) == 1:
        return None
    plain, values = Usage(problem, placements), problem.values
    made, crossing, receiving = plain.ends[0], plain.crossing, plain.receiving
    charges = []
    for c in range(len(problem.codecs)):
        per_byte = (crossing * np.stack([rates.up_byte, rates.down_byte])[:, :, np.newaxis]).sum(axis=2)
        size = values.coded_bytes[c]
        carried = np.where(per_byte > 0, per_byte * np.where(np.isfinite(size), size, np.finfo(float).max), 0.0)
        work = rates.encode[c][made][:, np.newaxis] + (receiving * rates.decode[c][:, np.newaxis]).sum(axis=2)
        charge = carried + work * values.size_bytes
        charge[:, :, ~np.isfinite(size)] = np.inf
        charge[:, 1, values.is_output] = np.inf if c else charge[:, 1, values.is_output]
        charges.append(charge)
    chosen: NDArray[np.int64] = np.argmin(np.stack(charges), axis=0)
    return np.where(crossing.any(axis=2), chosen, 0)
