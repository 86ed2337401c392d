"""When to measure a link that carries nothing, because a better plan would need it. Pure, on given times.

What would be chosen if the link had recovered is asked of `flagsplit.runtime.decisions`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from flagsplit.runtime.decisions import PlanChooser
from flagsplit.runtime.link_estimator import LinkEstimator
from flagsplit.splitter.plan import Plan
from flagsplit.splitter.state import State

_USUAL_S, _SAVED_S = 60.0, 30.0


@dataclass(frozen=True)
class ProbeOptions:
    """When to measure a link that carries nothing.

    Attributes:
        idle_s: a rate that is older is worth a measurement.
        least_s: between two,
        hint_s: unless something hints at a better link: a shorter round trip, a tier that came back.
        share: of what the link carries that measuring may take in the long run; some may be saved up.
        least_bytes, most_bytes: of one.
        round_trips: that one is to take at the rate that is believed,
        usual_s: unless it could then only be repeated after longer than that.
        deviations: how much better than believed a link may be.
        gain: share by which a plan must be better then.
    """

    idle_s: float = 2.0
    least_s: float = 2.0
    hint_s: float = 0.9
    share: float = 0.02
    least_bytes: int = 16 << 10
    most_bytes: int = 256 << 10
    round_trips: float = 3.0
    usual_s: float = 4.0
    deviations: float = 2.0
    gain: float = 0.1


@dataclass(frozen=True)
class ProbeRequest:
    """Measure now: send so many bytes from one tier to another, and have so many sent back."""

    source: str
    target: str
    size_bytes: int
    reply_bytes: int


class ProbePolicy:
    """Says when a link from the first tier, on which nothing moves, is to be measured.

    A plan that would be better if the link had recovered is the reason; without one, nothing is sent.

    Args:
        chooser: what would be chosen.
        options: how often and how much.
    """

    def __init__(self, chooser: PlanChooser, options: ProbeOptions | None = None) -> None:
        self._chooser = chooser
        self._options = options or ProbeOptions()
        self._left: dict[str, float] = {}
        self._earned_at: dict[str, float] = {}
        self._back: set[str] = set()
        self._last: dict[str, float] = {}
        self._usual: dict[str, tuple[float, float]] = {}

    def came_back(self, tier: str) -> None:
        """A tier is there again: what was known of its link may no longer hold."""
        self._back.add(tier)
        self._last.pop(tier, None)

    def due(self, now: float, alive: Sequence[bool]) -> list[ProbeRequest]:
        """What to measure now; counts as done."""
        world = self._chooser.world
        found = []
        for target, tier in enumerate(world.tiers):
            if target == 0 or not alive[target] or any(alive[1:target]):
                continue  # requests do not go straight there
            link = world.link(world.tiers[0], tier)
            self._earn(tier, link, now)
            hint = tier in self._back or link.looks_better(now)
            due = self._last.get(tier, -math.inf) + (self._options.hint_s if hint else self._options.least_s)
            is_due = now >= due and (hint or link.age_s(now) > self._options.idle_s)
            if link.is_busy or not is_due or self._left.get(tier, 0.0) < 0:
                continue
            hoped = world.optimistic(now, alive, self._options.deviations)
            better = self._better(hoped, target)
            if better is not None or tier in self._back:
                found.append(self._probe(tier, better, hoped, now))
        return found

    def _better(self, hoped: State, target: int) -> Plan | None:
        """The plan that would be taken if the link had recovered, if it needs it."""
        chooser = self._chooser
        best = chooser.pool.choose(hoped).plan
        if chooser.current is None or best.name == chooser.current or max(best.used_tiers) < target:
            return None
        mine_s = chooser.pool.plan(chooser.current).latency_s(hoped)
        return best if mine_s > best.latency_s(hoped) * (1 + self._options.gain) else None

    def _probe(self, tier: str, plan: Plan | None, hoped: State, now: float) -> ProbeRequest:
        options, world = self._options, self._chooser.world
        first, at = world.tiers[0], world.tiers.index(tier) - 1
        usual = self._usual[tier][0]
        size = self._size_bytes(world.link(first, tier), usual, now)
        reply = 0
        if plan is not None:
            down_s = plan.features.down_bytes[at] * hoped.down_s_per_byte[at]
            if down_s > options.gain * plan.latency_s(hoped):
                reply = min(self._size_bytes(world.link(tier, first), 0.0, now), 2 * size)
        self._last[tier] = now
        self._left[tier] -= max(size, reply)
        self._back.discard(tier)
        return ProbeRequest(first, tier, size, reply)

    def _size_bytes(self, link: LinkEstimator, usual: float, now: float) -> int:
        """What shows the rate if it is between what is believed and what is usual."""
        options = self._options
        rate = math.sqrt(link.bytes_per_s(now) * max(usual, link.bytes_per_s(now)))
        wanted = min(options.round_trips * link.rtt_s(now), options.share * options.usual_s) * rate
        return int(min(max(wanted, options.least_bytes), options.most_bytes))

    def _earn(self, tier: str, link: LinkEstimator, now: float) -> None:
        """What may be spent grows with what the link carries as a rule, its mean over the last minutes."""
        rate = link.bytes_per_s(now)
        usual, then = self._usual.get(tier, (rate, now))
        passed_s = max(0.0, now - self._earned_at.get(tier, now))
        self._earned_at[tier] = now
        per_s = self._options.share * usual
        most = min(max(per_s * _SAVED_S, 2.0 * self._options.least_bytes), float(self._options.most_bytes))
        self._left[tier] = min(self._left.get(tier, most) + per_s * passed_s, most)
        if not link.is_stale(now):  # what was measured stands for the time since the measurement before
            usual += (1 - math.exp(-max(0.0, now - then) / _USUAL_S)) * (rate - usual)
            then = now
        self._usual[tier] = max(usual, 1.0), then
