"""Which plan to follow now, why, and how long to wait for it. Pure, on given times.

The chooser follows the pool's choice for the world's state, but not at every flicker: another plan must be better by a
margin, and has its turn for a while, unless a tier is gone or it is far better. Every change is a `Decision` with its
reason and figures. What the world is like is in `flagsplit.runtime.world`, when to measure a link in
`flagsplit.runtime.probing`.
"""

from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from flagsplit.runtime.outlook import Outlook
from flagsplit.runtime.world import WorldModel
from flagsplit.splitter.pool import Choice, Pool
from flagsplit.splitter.state import State

REASONS = (
    "start",
    "tier down",
    "tier back",
    "tier slower",
    "tier faster",
    "link slower",
    "link faster",
    "overload",
    "deadline",
    "sla",
    "asked",
    "codec out of range",
)
"""What a `Decision` can say; a caller may give its own."""


@dataclass(frozen=True)
class Decision:
    """A change of the plan.

    Attributes:
        at_s: when, on the session's clock.
        rid: of the one request that it is about; None for all from now on.
        from_plan: what was followed, "" at the start.
        to_plan: what is followed.
        reason: one of `REASONS`, or of the caller.
        numbers: what it was based on: predicted seconds of both plans, and of links and tiers what is believed.
    """

    at_s: float
    rid: int | None
    from_plan: str
    to_plan: str
    reason: str
    numbers: Mapping[str, float] = field(default_factory=dict)


class DecisionLog:
    """The latest decisions.

    Args:
        most: how many are kept.
    """

    def __init__(self, most: int = 256) -> None:
        self._kept: deque[Decision] = deque(maxlen=most)
        self.count = 0

    def add(self, decision: Decision) -> None:
        """Keep one more."""
        self._kept.append(decision)
        self.count += 1

    def __iter__(self) -> Iterator[Decision]:
        return iter(tuple(self._kept))

    def __len__(self) -> int:
        return len(self._kept)


@dataclass(frozen=True)
class ChooserOptions:
    """How readily plans change, and how long attempts may take.

    Attributes:
        margin: another plan's score must be better by this share.
        switch_s: seconds that a change costs, shared out over the requests that profit.
        dwell_s: a plan that has just been taken up is kept for so long,
        far_better: unless another is better by this factor, or a tier of it is gone.
        patience: an attempt may take so many times what is predicted,
        patience_floor_s: and so much more.
        rescue_margin: predicted seconds of a rescue count so many times.
        rescue_floor_s: and so much more.
    """

    margin: float = 0.10
    switch_s: float = 0.0
    dwell_s: float = 1.0
    far_better: float = 2.0
    patience: float = 1.7
    patience_floor_s: float = 0.2
    rescue_margin: float = 1.25
    rescue_floor_s: float = 0.02


class PlanChooser:
    """Holds the plan that is followed.

    Args:
        pool: the plans.
        world: what the state is taken from.
        options: how readily to change.
        log: where decisions go.
    """

    def __init__(
        self,
        pool: Pool,
        world: WorldModel,
        options: ChooserOptions | None = None,
        log: DecisionLog | None = None,
    ) -> None:
        self.pool = pool
        self.world = world
        self.log = log if log is not None else DecisionLog()
        self._options = options or ChooserOptions()
        self._current: str | None = None
        self._since = 0.0
        self._then: State | None = None
        self._outlook: Outlook | None = None
        self._settled: Outlook | None = None
        self._lossy = frozenset(plan.name for plan in pool.plans if any(cut.codec != "none" for cut in plan.cuts))

    @property
    def current(self) -> str | None:
        """Name of the plan that is followed; None before the first choice."""
        return self._current

    def choose(
        self,
        now: float,
        alive: Sequence[bool],
        avoid_lossy: bool = False,
        exclude: Collection[str] = (),
        rid: int | None = None,
        reason: str = "",
    ) -> tuple[str, Decision | None]:
        """The plan for a request that begins now.

        With `avoid_lossy`, `exclude` or `rid` the answer is for that request alone; the plan that is followed stays.

        Args:
            now: seconds.
            alive: by tier.
            avoid_lossy: leave out plans with codecs.
            exclude: plans to leave out.
            rid: of the request.
            reason: for the decision, where the caller knows it.

        Returns:
            The plan's name, and the decision if it is another than the one that is followed.

        Raises:
            UnavailableError: no plan of the pool can do with the tiers that are alive.
        """
        outlook = self.outlook(self.world.state(now, alive))
        if avoid_lossy or exclude or rid is not None:
            without = self._lossy.union(exclude) if avoid_lossy else exclude
            why = reason or ("codec out of range" if avoid_lossy else "")
            return self._choose_once(now, outlook, without, rid, why)
        return self._follow(now, outlook, reason)

    def outlook(self, state: State) -> Outlook:
        """What the plans are worth in a state; the same object as long as the state is the same object."""
        if self._outlook is None or self._outlook.state is not state:
            self._outlook = Outlook(self.pool, state)
        return self._outlook

    def _choose_once(
        self, now: float, outlook: Outlook, without: Collection[str], rid: int | None, reason: str
    ) -> tuple[str, Decision | None]:
        options, state = self._options, outlook.state
        chosen = outlook.choose(self._current, options.margin, options.switch_s, without)
        name = chosen.plan.name
        if name == self._current:
            return name, None
        return name, self._decide(now, rid, name, reason or self._why(state, chosen), state)

    def _follow(self, now: float, outlook: Outlook, reason: str) -> tuple[str, Decision | None]:
        options, state = self._options, outlook.state
        if self._current is not None and self._settled is outlook:
            return self._current, None
        chosen = outlook.choose(self._current, options.margin, options.switch_s)
        self._settled, name = outlook, chosen.plan.name
        if self._current is not None and (name == self._current or not self._may_leave(now, state, chosen)):
            return self._current, None
        decision = self._decide(now, None, name, reason or self._why(state, chosen), state)
        self._current, self._since, self._then = name, now, state
        return name, decision

    def _may_leave(self, now: float, state: State, chosen: Choice) -> bool:
        """Whether the plan that is followed has had its turn, cannot go on, or is far worse."""
        if self._is_dead(state) or not 0 <= now - self._since < self._options.dwell_s:
            return True
        scores = self.pool.scores(state)
        mine, best = scores[self.pool.index(self._current or "")], scores[self.pool.index(chosen.plan.name)]
        return bool(mine > best * self._options.far_better)

    def _is_dead(self, state: State) -> bool:
        return self._current is None or not all(state.alive[k] for k in self.pool.plan(self._current).used_tiers)

    def ask(self, now: float, alive: Sequence[bool], plan: str, rid: int) -> Decision | None:
        """A request asked for a plan; the decision if it is another than the one that is followed."""
        return None if plan == self._current else self._decide(now, rid, plan, "asked", self.world.state(now, alive))

    def attempt_patience_s(self, plan: str, state: State) -> float:
        """How long an attempt with a plan may take before it counts as stalled, seconds.

        So many times what is predicted. Where the rescue plan is quick, about as much longer as that takes is enough,
        as in renting skis: waiting for as long as the other way takes costs twice the better at most (Karlin et al.,
        Algorithmica 3, 1988).
        """
        options, outlook = self._options, self.outlook(state)
        predicted_s = outlook.latency_s(plan)
        more_s = predicted_s * (options.patience - 1) + options.patience_floor_s
        rescue = outlook.rescue(exclude=[plan])
        if rescue is not None:
            more_s = min(more_s, max(outlook.latency_s(rescue.name), more_s / 2))
        return predicted_s + more_s

    def rescue_s(self, state: State, exclude: Collection[str] = ()) -> float:
        """How long before a deadline the rescue plan must begin to meet it, with a margin, seconds; 0 without one.

        Args:
            state: theta now.
            exclude: plans that cannot help, such as the one that is under way.
        """
        outlook = self.outlook(state)
        plan = outlook.rescue(exclude)
        if plan is None:
            return 0.0
        return outlook.latency_s(plan.name) * self._options.rescue_margin + self._options.rescue_floor_s

    def _decide(self, now: float, rid: int | None, name: str, reason: str, state: State) -> Decision:
        decision = Decision(now, rid, self._current or "", name, reason, self._numbers(name, state))
        self.log.add(decision)
        return decision

    def _numbers(self, name: str, state: State) -> dict[str, float]:
        tiers = self.pool.tiers
        outlook = self.outlook(state)
        numbers = {"predicted_new_s": outlook.latency_s(name)}
        if self._current is not None:
            numbers["predicted_old_s"] = outlook.latency_s(self._current)
        for i, (near, far) in enumerate(pairwise(tiers)):
            rates = (f"{near}>{far}", state.up_s_per_byte[i]), (f"{far}>{near}", state.down_s_per_byte[i])
            for way, per_byte in rates:
                if per_byte > 0:
                    numbers[f"{way} bytes_per_s"] = 1 / per_byte
            numbers[f"{near}>{far} rtt_s"] = state.up_s_per_message[i] + state.down_s_per_message[i]
        for k, tier in enumerate(tiers):
            numbers[f"{tier} slowdown"] = state.slowdown[k]
            if state.wait_s:
                numbers[f"{tier} wait_s"] = state.wait_s[k]
        return numbers

    def _why(self, state: State, chosen: Choice) -> str:
        """What has changed most for the difference between the plans since the last one was taken up."""
        then = self._then
        if self._current is None or then is None:
            return "start"
        old, new = self.pool.plan(self._current), chosen.plan
        if self._is_dead(state):
            return "tier down"
        if any(state.alive[k] and not then.alive[k] for k in new.used_tiers):
            return "tier back"
        excess = self.pool.excess(state)
        if any(shares[self.pool.index(old.name)] > 1 for name, shares in excess.items()) and not chosen.broken:
            return "sla"
        differs = old.features.latency_vector() - new.features.latency_vector()
        change = differs * (state.vector() - then.vector())
        waited = then.wait_s or (0.0,) * len(state.wait_s)
        waits = [
            (state.wait_s[k] - waited[k]) * ((k in old.used_tiers) - (k in new.used_tiers))
            for k in range(len(state.wait_s))
        ]
        if max(waits, default=0.0) > max(float(change.max()), 0.0):
            return "overload"
        largest = int(change.argmax())
        what = "tier" if largest < len(self.pool.tiers) else "link"
        worse = bool(np.asarray(state.vector() - then.vector())[largest] > 0)
        return f"{what} {'slower' if worse else 'faster'}"
