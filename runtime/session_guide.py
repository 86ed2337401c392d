"""What a session believes of its world, and what follows for its plans: the eyes of the session machine.

It is told of everything that says something about tiers and links, answers which plan to take, how long an attempt may
take, and which link to measure. What is believed is in `flagsplit.runtime.world`, how it is decided in
`flagsplit.runtime.decisions`; here they meet the messages of the wire. An epoch with another pool gets another chooser;
what is known of tiers and links stays.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flagsplit.errors import UnavailableError
from flagsplit.runtime.decisions import Decision, DecisionLog, PlanChooser
from flagsplit.runtime.probing import ProbePolicy, ProbeRequest
from flagsplit.runtime.session_facts import SessionFacts
from flagsplit.runtime.world import WorldModel, bypasses_of
from flagsplit.transport.channel import Acked
from flagsplit.transport.messages import Hop, HopTiming, Pong


@dataclass(frozen=True)
class Patience:
    """How long an attempt may take, for any request.

    Attributes:
        stalled_s: after so many seconds it counts as stalled; infinite while nobody can tell.
        rescue_s: so long before its deadline a request must go on without others to keep it; None if that is no help.
    """

    stalled_s: float = math.inf
    rescue_s: float | None = None


class SessionGuide:
    """Estimates and decisions of one session.

    Args:
        facts: of the first epoch.
    """

    def __init__(self, facts: SessionFacts) -> None:
        self.log = DecisionLog()
        self.switches: Counter[str] = Counter()
        self.home = facts.tiers[0]
        self._ping_waits: set[str] = set()
        self._measured: set[str] = set()
        self._set_out(facts)

    def _set_out(self, facts: SessionFacts) -> None:
        self._shape = (facts.tiers, bypasses_of(facts.pool), len(facts.nominal.up_s_per_byte))
        self.world = WorldModel(facts.tiers, facts.nominal, bypasses=bypasses_of(facts.pool))
        self._chooser = PlanChooser(facts.pool, self.world, log=self.log)
        self._probes = ProbePolicy(self._chooser)

    def adopt(self, facts: SessionFacts) -> None:
        """New requests are answered by other plans from now on."""
        if (facts.tiers, bypasses_of(facts.pool), len(facts.nominal.up_s_per_byte)) != self._shape:
            self._measured.clear()
            self._set_out(facts)
            return
        self._chooser = PlanChooser(facts.pool, self.world, log=self.log)
        self._probes = ProbePolicy(self._chooser)

    @property
    def current(self) -> str | None:
        """The plan that is followed."""
        return self._chooser.current

    def came(self, tier: str, now: float) -> None:
        """A tier is there, on a new connection."""
        if tier in self.world.tiers:
            self._ping_waits.discard(tier)
            self.world.link(self.home, tier).reset(now)
            self._probes.came_back(tier)

    def sent(self, tier: str, size_bytes: int, now: float) -> None:
        """Bytes were handed to the connection to a tier."""
        if tier in self.world.tiers:
            self.world.link(self.home, tier).sent(size_bytes, now)

    def acked(self, event: Acked, now: float) -> None:
        """A tier said what came."""
        if event.peer in self.world.tiers:
            link = self.world.link(self.home, event.peer)
            link.acked(event.acked_bytes, event.unacked_bytes, event.delay_s, now)

    def pinged(self, tier: str, now: float) -> None:
        """A ping goes out; the last one may have had no answer."""
        if tier not in self.world.tiers:
            return
        link = self.world.link(self.home, tier)
        if tier in self._ping_waits:
            link.missed(now)
        self._ping_waits.add(tier)
        link.pinged(now)

    def ponged(self, tier: str, pong: Pong, now: float) -> None:
        """A tier answered a ping, and said what it knows."""
        if tier not in self.world.tiers:
            return
        self._ping_waits.discard(tier)
        self.world.link(self.home, tier).ponged(now - pong.sent_us / 1e6, now)
        self.world.observe_wait(tier, pong.wait_us / 1e6, now)
        for gauge in pong.links:
            loss, rtt_s = gauge.loss_permille / 1e3, gauge.rtt_us / 1e6
            self.world.observe_gauge(tier, gauge.tier, float(gauge.bytes_per_s), rtt_s, loss, now)

    def answered(
        self, facts: SessionFacts, plan: str, route: Sequence[Hop], trace: Sequence[HopTiming], now: float
    ) -> None:
        """A request came through at its first attempt: what its tiers took says how fast they are."""
        ran = {(timing.tier, timing.segment) for timing in trace if timing.segment}
        if any(hop.segment and (hop.tier, hop.segment) not in ran for hop in route):
            return  # results were at hand already
        run_s: dict[str, float] = {}
        wait_s: dict[str, float] = {}
        for timing in trace:
            if timing.segment:
                run_s[timing.tier] = run_s.get(timing.tier, 0.0) + timing.run_us / 1e6 / timing.batch
                wait_s[timing.tier] = wait_s.get(timing.tier, 0.0) + timing.wait_us / 1e6
        if facts.tiers == self.world.tiers:
            self.world.observe_runs(facts.pool.plan(plan), run_s, now)
            for tier, seconds in wait_s.items():
                self.world.observe_wait(tier, seconds, now)
            self._measured.update(run_s)

    def choose(
        self,
        now: float,
        alive: Sequence[bool],
        *,
        avoid_lossy: bool = False,
        rid: int | None = None,
        reason: str = "",
    ) -> tuple[str, Decision | None]:
        """The plan for a request; without `rid` the one that all follow.

        Raises:
            UnavailableError: no plan can do with the tiers that are alive.
        """
        plan, decision = self._chooser.choose(now, alive, avoid_lossy=avoid_lossy, rid=rid, reason=reason)
        if decision is not None:
            self.switches[decision.reason] += 1
        return plan, decision

    def asked(self, now: float, alive: Sequence[bool], plan: str, rid: int) -> Decision | None:
        """The application named a plan itself."""
        return self._chooser.ask(now, alive, plan, rid)

    def patience(self, facts: SessionFacts, plan: str, alive: Sequence[bool], now: float) -> Patience:
        """How long to wait for an attempt that begins now."""
        used = facts.pool.plan(plan).used_tiers
        if facts.pool is not self._chooser.pool or any(facts.tiers[tier] not in self._measured for tier in used):
            return Patience()
        state = self.world.state(now, alive)
        if self._chooser.outlook(state).latency_s(plan) <= 0:
            return Patience()
        rescue_s = None if used == (0,) else self._chooser.rescue_s(state, exclude=[plan])
        return Patience(self._chooser.attempt_patience_s(plan, state), rescue_s)

    def rate_to(self, tier: str, now: float) -> float | None:
        """Bytes per second towards a tier, if they were measured."""
        link = self.world.link(self.home, tier) if tier in self.world.tiers else None
        return link.bytes_per_s(now) if link is not None and link.knows_rate else None

    def probes(self, now: float, alive: Sequence[bool]) -> list[ProbeRequest]:
        """Links to measure now."""
        try:
            return self._probes.due(now, alive) if self._chooser.current is not None else []
        except UnavailableError:
            return []  # no plan can do with the tiers that are there, however fast links may be

    def snapshot(self, now: float, alive: Sequence[bool]) -> Mapping[str, Any]:
        """What is believed and followed, as plain data: "plan", "predicted_s" by plan, "estimates"."""
        state = self.world.state(now, alive)
        pool = self._chooser.pool
        return {
            "plan": self._chooser.current or "",
            "predicted_s": {plan.name: plan.latency_s(state) for plan in pool.plans},
            "estimates": self.world.snapshot(now),
        }
