"""The runtime's own estimates and decisions, on a simulated line: what `adapt.py` models.

A request follows a plan's features leg by leg: compute, send, compute, send back. The world model sees what a session
sees: when its bytes are acknowledged, pings once per heartbeat, what the other tiers report with their pongs, and the
run times that come with an answer. Where an attempt outstays its patience, the request goes on at the phone, and what
was under way still takes its time on the link.
"""

import heapq
import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from adapt_worlds import STEP_S, Trace, Way, busy_spells, steady

from flagsplit.runtime.decisions import ChooserOptions, PlanChooser
from flagsplit.runtime.link_estimator import LinkEstimator
from flagsplit.runtime.probing import ProbeOptions, ProbePolicy
from flagsplit.runtime.world import WorldModel, WorldOptions
from flagsplit.splitter.plan import Plan
from flagsplit.splitter.pool import Pool
from flagsplit.splitter.state import State

HEARTBEAT_S = 1.0
_SILENT_S = 4.0
_PERIOD_S = 0.5


@dataclass
class Line:
    """Three tiers whose first link follows a trace.

    Attributes:
        trace: of the link from the phone to the edge.
        seed: of run times and of when the others are busy.
    """

    trace: Trace
    seed: int

    def __post_init__(self) -> None:
        far = steady(self.trace, 200.0, 16.0)
        traces = (self.trace, far)
        self.up = [Way(t.up_mbit, t.rtt_ms) for t in traces]
        self.down = [Way(t.down_mbit, t.rtt_ms) for t in traces]
        self._busy = [[], *(busy_spells(self.seed * 7 + k, self.trace.seconds) for k in (1, 2))]

    def slowdown(self, tier: int, at: float) -> float:
        """How many times slower than nominal a tier is."""
        return next((factor for start, end, factor in self._busy[tier] if start <= at < end), 1.0)


@dataclass
class Ride:
    """One attempt: what happened when.

    Attributes:
        done: when the answer is at the phone.
        runs: by tier, seconds.
        sends: link, outward, start, bytes.
    """

    done: float
    runs: dict[int, float] = field(default_factory=dict)
    sends: list[tuple[int, bool, float, float]] = field(default_factory=list)


def ride(line: Line, plan: Plan, start: float, noise: random.Random) -> Ride:
    """Follow a plan from a time on; the way out and back is gone as often as the plan crosses its first link in use."""
    features = plan.features
    found = Ride(start)
    wobble = [math.exp(noise.gauss(0, 0.03)) for _ in features.tier_seconds]
    deepest = max((i + 1 for i, n in enumerate(features.up_messages) if n > 0), default=0)
    rounds = max(1, round(features.up_messages[0])) if deepest else 1
    at = start

    def compute(tier: int) -> None:
        nonlocal at
        spent = features.tier_seconds[tier] / rounds * wobble[tier] * line.slowdown(tier, at)
        found.runs[tier] = found.runs.get(tier, 0.0) + spent
        at += spent

    def send(link: int, outward: bool) -> None:
        nonlocal at
        ways, sizes = (line.up, features.up_bytes) if outward else (line.down, features.down_bytes)
        size_bytes = sizes[link] / rounds + 200
        found.sends.append((link, outward, at, size_bytes))
        at = ways[link].arrival(at, size_bytes)

    for _ in range(rounds):
        compute(0)
        for tier in range(1, deepest + 1):
            send(tier - 1, True)
            compute(tier)
        for tier in range(deepest, 0, -1):
            send(tier - 1, False)
    found.done = at
    return found


class Adaptive:
    """The real world model, chooser and probe policy, fed from the simulated line."""

    def __init__(
        self,
        line: Line,
        pool: Pool,
        nominal: State,
        world: WorldOptions | None = None,
        chooser: ChooserOptions | None = None,
        probes: ProbeOptions | None = None,
    ) -> None:
        self.line, self.pool = line, pool
        self.world = WorldModel(pool.tiers, nominal, world)
        self.chooser = PlanChooser(pool, self.world, chooser)
        self.probes = ProbePolicy(self.chooser, probes)
        self.probe_bytes = self.stalls = 0
        self.reply_bytes = 0
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._order = itertools.count()
        self._jitter = random.Random(line.seed + 1)
        # What the edge and the cloud measure towards those before them, and the edge towards the cloud.
        self._theirs = {(k, outward): self._fresh(nominal, k, outward) for k in (0, 1) for outward in (True, False)}
        self._totals = dict.fromkeys(self._theirs, 0)
        self._pending: dict[tuple[int, bool], int] = dict.fromkeys(self._theirs, 0)
        self._heard = 0.0
        self.beat(0.0)

    def _fresh(self, nominal: State, link: int, outward: bool) -> LinkEstimator:
        per_byte = (nominal.up_s_per_byte if outward else nominal.down_s_per_byte)[link]
        rtt_s = nominal.up_s_per_message[link] + nominal.down_s_per_message[link]
        return LinkEstimator(1 / per_byte, rtt_s)

    def _at(self, when: float, do: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (when, next(self._order), do))

    def until(self, now: float) -> None:
        """Let everything happen that is due."""
        while self._events and self._events[0][0] <= now:
            when, _, do = heapq.heappop(self._events)
            do(when)

    def _estimator(self, link: int, outward: bool) -> LinkEstimator:
        own = (link, outward) == (0, True)
        return self.world.link(*self.pool.tiers[:2]) if own else self._theirs[link, outward]

    def watch(self, link: int, outward: bool, start: float, size_bytes: float) -> None:
        """Bytes go over a link: whoever sends them sees them acknowledged."""
        key = (link, outward)
        way, back = (self.line.up, self.line.down) if outward else (self.line.down, self.line.up)
        size = int(size_bytes)

        def sent(now: float) -> None:
            self._estimator(*key).sent(size, now)
            self._pending[key] += size

        self._at(start, sent)
        before = 0
        for came, so_far in way[link].arrivals(start, size):
            held_s = self._jitter.uniform(0, 0.005)
            seen = came + held_s
            seen = back[link].arrival(seen, 60) + self._jitter.uniform(0, 0.004)
            part, before = int(so_far) - before, int(so_far)

            def acked(now: float, part: int = part, held_s: float = held_s) -> None:
                self._totals[key] += part
                self._pending[key] -= part
                self._estimator(*key).acked(self._totals[key], self._pending[key], held_s, now)

            self._at(seen, acked)

    def beat(self, now: float) -> None:
        """Once per heartbeat: ping both workers, and probe what may have got better."""
        link = self.world.link(*self.pool.tiers[:2])
        link.pinged(now)
        answered = self.line.down[0].arrival(self.line.up[0].arrival(now, 60), 120) + self._jitter.uniform(0, 0.004)

        def pong(when: float) -> None:
            link.ponged(when - now, when)
            self._heard = when
            self.probe(when)
            for (k, outward), each in self._theirs.items():
                if (k, outward) != (0, True):
                    names = self.pool.tiers[k : k + 2] if outward else self.pool.tiers[k : k + 2][::-1]
                    gauge = each.gauge(names[1], when)
                    rtt_s = 0.016 if k else 0.0
                    self.world.observe_gauge(names[0], names[1], gauge.bytes_per_s, rtt_s, 0.0, when)

        def check(when: float) -> None:
            if answered > when:
                link.missed(when)

        self._at(answered, pong)
        self._at(now + HEARTBEAT_S * 0.999, check)
        self._at(now + HEARTBEAT_S, self.beat)
        self.probe(now)

    def probe(self, now: float) -> None:
        """Measure what may have got better."""
        if self.chooser.current is None:
            return
        for wish in self.probes.due(now, self.alive(now)):
            self.probe_bytes += wish.size_bytes
            self.reply_bytes += wish.reply_bytes
            if wish.target == self.pool.tiers[1]:
                self.watch(0, True, now, wish.size_bytes)
                there = self.line.up[0].arrival(now, wish.size_bytes)
                self.watch(0, False, there, wish.reply_bytes)

    def alive(self, now: float) -> tuple[bool, bool, bool]:
        """Who has been heard of late; both are behind the same link."""
        there = now - self._heard <= _SILENT_S
        return (True, there, there)

    def request(self, now: float, noise: random.Random) -> float:
        """Answer one; when that was."""
        self.until(now)
        alive = self.alive(now)
        name, _ = self.chooser.choose(now, alive)
        plan = self.pool.plan(name)
        state = self.world.state(now, alive)
        found = ride(self.line, plan, now, noise)
        for link, outward, start, size_bytes in found.sends:
            self.watch(link, outward, start, size_bytes)
        if found.sends:
            limit = now + self.chooser.attempt_patience_s(name, state)
            if found.done > limit:
                self.stalls += 1
                self.until(limit)
                away = [p.name for p in self.pool.plans if p.used_tiers != (0,)]
                other, _ = self.chooser.choose(limit, alive, exclude=away, rid=1)
                return ride(self.line, self.pool.plan(other), limit, noise).done
        tiers = self.pool.tiers
        self._at(
            found.done,
            lambda when: self.world.observe_runs(plan, {tiers[k]: s for k, s in found.runs.items()}, when),
        )
        self.until(found.done)
        return found.done


@dataclass(frozen=True)
class Outcome:
    """Mean latencies of one trace, milliseconds, and what the adaptive one did."""

    adaptive_ms: float
    oracle_ms: float
    fixed_ms: dict[str, float]
    switches: int = 0
    stalls: int = 0
    probe_share: float = 0.0


def play(
    line: Line,
    pool: Pool,
    nominal: State,
    options: Sequence[object] = (None, None, None),
) -> Outcome:
    """All policies on one trace: requests come twice a second, or when the one before is answered."""

    def mean_ms(answer: Callable[[float, random.Random], float]) -> float:
        at, took, index = 0.0, [], 0
        while at < line.trace.seconds - 5:
            done = answer(at, random.Random(line.seed * 1_000_003 + index))
            took.append(done - at)
            index += 1
            at = max(at + _PERIOD_S, done)
        return 1e3 * sum(took) / len(took)

    adaptive = Adaptive(line, pool, nominal, *options)  # type: ignore[arg-type]
    adaptive_ms = mean_ms(adaptive.request)
    copies = pool.plans
    oracle_ms = mean_ms(lambda at, rng: _best(line, copies, at, rng))
    fixed = {
        plan.name: mean_ms(lambda at, rng, plan=plan: ride(line, plan, at, rng).done)  # type: ignore[misc]
        for plan in copies
    }
    up, down = (sum(rates) * STEP_S * 1e6 / 8 for rates in (line.trace.up_mbit, line.trace.down_mbit))
    return Outcome(
        adaptive_ms,
        oracle_ms,
        fixed,
        len([d for d in adaptive.chooser.log if d.rid is None]),
        adaptive.stalls,
        max(adaptive.probe_bytes / up, adaptive.reply_bytes / down),
    )


def _best(line: Line, plans: Sequence[Plan], at: float, rng: random.Random) -> float:
    state = rng.getstate()
    found = []
    for plan in plans:
        rng.setstate(state)
        found.append(ride(line, plan, at, rng).done)
    return min(found)
