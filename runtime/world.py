"""The state of the whole line as the session believes it to be, put together from estimates of links and tiers.

A direction that nobody has measured is scaled like the other direction of its link, and what nothing is known of is
nominal. Where a dead tier is passed by, a direct connection past it says what that costs. Work that waits for its turn
is `State.wait_s`: charged once to each plan that runs something on that tier, and not to those that it only relays
for. How single quantities are estimated is in `flagsplit.runtime.link_estimator` and `tier_estimator`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from flagsplit.errors import PolicyError
from flagsplit.runtime.link_estimator import LinkEstimator, LinkOptions
from flagsplit.runtime.log_filter import Observations
from flagsplit.runtime.tier_estimator import TierEstimator, TierOptions
from flagsplit.splitter.plan import Plan
from flagsplit.splitter.pool import Pool
from flagsplit.splitter.state import State

_ONE_WAY_LEAST_S = 1e-6
_UNKNOWN_RATE = 1e15  # a link whose bytes cost nothing


@dataclass(frozen=True)
class WorldOptions:
    """How the world is estimated.

    Attributes:
        link: of each direction of a connection.
        tier: of each tier.
    """

    link: LinkOptions = field(default_factory=LinkOptions)
    tier: TierOptions = field(default_factory=TierOptions)


@dataclass(frozen=True)
class _Ends:
    """A link of the state: its tiers, the nearer to the first one before the other."""

    near: int
    far: int


def bypasses_of(pool: Pool) -> tuple[tuple[int, int], ...]:
    """Which tiers each by-pass of a pool joins, as far as its plans show; (-1, -1) for one that no plan uses."""
    links = len(pool.plans[0].features.up_bytes)
    first = len(pool.tiers) - 1
    found: dict[int, tuple[int, int]] = {}
    for plan in pool.plans:
        used = [i for i in range(first, links) if plan.features.up_messages[i] > 0]
        skips = [(a, b) for a, b in pairwise(plan.route) if b > a + 1]
        if len(used) == len(skips) == 1:
            found[used[0]] = skips[0]
    return tuple(found.get(i, (-1, -1)) for i in range(first, links))


class WorldModel:
    """What is known of tiers and links.

    Args:
        tiers: names of the tiers of the line.
        nominal: the state that the plans were made for; the links of the line, then by-passes.
        options: how to estimate.
        bypasses: positions of the tiers that each by-pass joins (`bypasses_of`).

    Raises:
        PolicyError: the nominal state is not one of these tiers and links.
    """

    def __init__(
        self,
        tiers: Sequence[str],
        nominal: State,
        options: WorldOptions | None = None,
        bypasses: Sequence[tuple[int, int]] = (),
    ) -> None:
        count = len(tiers)
        if len(nominal.slowdown) != count or len(nominal.up_s_per_byte) != count - 1 + len(bypasses):
            raise PolicyError(
                f"world: expected a nominal state of {count} tiers and {count - 1 + len(bypasses)} links, came "
                f"{len(nominal.slowdown)} and {len(nominal.up_s_per_byte)}; say which tiers each by-pass joins"
            )
        self.tiers = tuple(tiers)
        self.nominal = nominal
        self._options = options or WorldOptions()
        self._at = {name: at for at, name in enumerate(self.tiers)}
        self._ends = [_Ends(i, i + 1) for i in range(count - 1)] + [_Ends(*ends) for ends in bypasses]
        self._links: dict[tuple[int, int], LinkEstimator] = {}
        self._observations = Observations()
        self._tiers = [TierEstimator(each, self._options.tier, self._observations) for each in nominal.slowdown]
        self._moment: tuple[float, int] | None = None
        self._states: dict[tuple[bool, ...], State] = {}

    def link(self, source: str, target: str) -> LinkEstimator:
        """The estimate of one direction of a connection, to be told of what is sent and acknowledged over it."""
        key = self._at[source], self._at[target]
        if key not in self._links:
            self._links[key] = LinkEstimator(*self._nominal_of(*key), self._options.link, self._observations)
        return self._links[key]

    def tier(self, name: str) -> TierEstimator:
        """The estimate of a tier."""
        return self._tiers[self._at[name]]

    def observe_gauge(
        self, source: str, target: str, bytes_per_s: float, rtt_s: float, loss: float, now: float
    ) -> None:
        """A tier reported what it measured of its connection to another; unknown names are passed over."""
        if source in self._at and target in self._at and source != target:
            self.link(source, target).reported(bytes_per_s, rtt_s, loss, now)

    def observe_runs(self, plan: Plan, run_s: Mapping[str, float], now: float) -> None:
        """A request is answered: seconds that each tier's engine ran for it, all its segments together."""
        for name, seconds in run_s.items():
            at = self._at.get(name)
            if at is not None and at in plan.used_tiers:
                self._tiers[at].ran(seconds, plan.features.tier_seconds[at], now)

    def observe_wait(self, tier: str, wait_s: float, now: float) -> None:
        """Work waited so long for its turn on a tier, or would."""
        if tier in self._at:
            self._tiers[self._at[tier]].waited(wait_s, now)

    def state(self, now: float, alive: Sequence[bool]) -> State:
        """Theta now; the same object until time passes or something is observed.

        Args:
            now: seconds.
            alive: by tier.
        """
        alive, moment = tuple(alive), (now, self._observations.count)
        if moment != self._moment:
            self._moment = moment
            self._states.clear()
        known = self._states.get(alive)
        if known is None:
            known = self._states[alive] = self._state(now, alive, 0.0)
        return known

    def optimistic(self, now: float, alive: Sequence[bool], deviations: float = 1.0) -> State:
        """Theta if each rate is better than believed by so many deviations: much, where it is long unmeasured."""
        return self._state(now, tuple(alive), deviations)

    def _state(self, now: float, alive: tuple[bool, ...], deviations: float) -> State:
        nominal, unknown = self.nominal, self._options.link.rate.prior
        up, down, up_s, down_s = [], [], [], []
        for i, ends in enumerate(self._ends):
            there = self._links.get((ends.near, ends.far))
            back = self._links.get((ends.far, ends.near))
            up_factor = _rate_factor(there, nominal.up_s_per_byte[i], now, deviations, unknown)
            down_factor = _rate_factor(back, nominal.down_s_per_byte[i], now, deviations, unknown)
            up_factor, down_factor = _either(up_factor, down_factor)
            up.append(nominal.up_s_per_byte[i] * up_factor)
            down.append(nominal.down_s_per_byte[i] * down_factor)
            trip_s = _trip_s(there, back, now)
            one_up_s, one_down_s = nominal.up_s_per_message[i], nominal.down_s_per_message[i]
            if trip_s is not None:
                both_s = one_up_s + one_down_s
                share = one_up_s / both_s if both_s > 0 else 0.5
                one_up_s, one_down_s = trip_s * share, trip_s * (1 - share)
            up_s.append(one_up_s)
            down_s.append(one_down_s)
        self._pass_dead(now, alive, up, down, up_s, down_s)
        return State(
            slowdown=tuple(tier.slowdown(now) for tier in self._tiers),
            up_s_per_byte=tuple(up),
            down_s_per_byte=tuple(down),
            up_s_per_message=tuple(up_s),
            down_s_per_message=tuple(down_s),
            alive=alive,
            wait_s=tuple(tier.wait_s(now) for tier in self._tiers),
        )

    def _pass_dead(self, now: float, alive: tuple[bool, ...], *figures: list[float]) -> None:
        """A direct connection past dead tiers says what their links cost together: all of it goes to the first."""
        if all(alive):
            return
        up, down, up_s, down_s = figures
        living = [k for k, lives in enumerate(alive) if lives]
        for near, far in pairwise(living):
            there, back = self._links.get((near, far)), self._links.get((far, near))
            known = [each for each in (there, back) if each is not None and each.knows_rate]
            if far == near + 1 or not known:
                continue
            rates = [each.bytes_per_s(now) if each in known else None for each in (there, back)]
            trip_s = _trip_s(there, back, now)
            line = slice(near, far)
            whole_s = sum(up_s[line]) + sum(down_s[line])
            for costs, rate in ((up, rates[0] or rates[1]), (down, rates[1] or rates[0])):
                costs[line] = [1 / (rate or _UNKNOWN_RATE), *[0.0] * (far - near - 1)]
            one_way_s = (whole_s if trip_s is None else trip_s) / 2
            for costs in (up_s, down_s):
                costs[line] = [one_way_s, *[0.0] * (far - near - 1)]

    def snapshot(self, now: float) -> dict[str, Any]:
        """Plain numbers for people: by link "SOURCE>TARGET" and by tier; ages are -1 where nothing was measured."""
        links = {}
        for (source, target), each in sorted(self._links.items()):
            links[f"{self.tiers[source]}>{self.tiers[target]}"] = {
                "bytes_per_s": each.bytes_per_s(now),
                "rtt_s": each.rtt_s(now),
                "base_rtt_s": each.base_rtt_s(now),
                "loss": each.loss(),
                "confidence": each.confidence(now),
                "age_s": each.age_s(now) if each.knows_rate else -1.0,
                "measured_bytes": float(each.measured_bytes),
                "stale": float(each.is_stale(now)),
            }
        tiers = {
            name: {
                "slowdown": tier.slowdown(now),
                "wait_s": tier.wait_s(now),
                "age_s": -1.0 if tier.age_s(now) == float("inf") else tier.age_s(now),
                "stale": float(tier.is_stale(now)),
            }
            for name, tier in zip(self.tiers, self._tiers, strict=True)
        }
        return {"links": links, "tiers": tiers}

    def _nominal_of(self, source: int, target: int) -> tuple[float, float]:
        """Bytes per second and round trip of a direction, of the way along the line where no link joins its ends."""
        near, far = sorted((source, target))
        outward = source < target
        nominal = self.nominal
        along = [i for i, ends in enumerate(self._ends) if (ends.near, ends.far) == (near, far)] or range(near, far)
        per_byte = nominal.up_s_per_byte if outward else nominal.down_s_per_byte
        slowest = max(per_byte[i] for i in along)
        rtt_s = sum(nominal.up_s_per_message[i] + nominal.down_s_per_message[i] for i in along)
        return (1 / slowest if slowest > 0 else _UNKNOWN_RATE), max(rtt_s, _ONE_WAY_LEAST_S)


def _rate_factor(
    link: LinkEstimator | None, nominal: float, now: float, deviations: float, unknown: float
) -> float | None:
    """By how much a byte takes longer than nominally; None where that was never measured and nothing is hoped for."""
    if nominal <= 0:
        return None
    if link is None or not link.knows_rate:
        return math.exp(-deviations * unknown) if deviations else None
    spread = 0.0
    if deviations:
        spread = deviations * (unknown if link.looks_better(now) else link.deviation(now))
    return math.exp(-spread) / (link.bytes_per_s(now) * nominal)


def _either(first: float | None, second: float | None) -> tuple[float, float]:
    """Each factor, or that of the other direction, or 1."""
    one = first if first is not None else second
    other = second if second is not None else first
    return (1.0 if one is None else one), (1.0 if other is None else other)


def _trip_s(there: LinkEstimator | None, back: LinkEstimator | None, now: float) -> float | None:
    """The round trip, by whichever end measured it last."""
    known = [each for each in (there, back) if each is not None and each.knows_rtt]
    return min(known, key=lambda each: each.rtt_age_s(now)).rtt_s(now) if known else None
