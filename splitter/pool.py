"""The pool: all plans a bundle ships, and the choice among them, one matrix-vector product.

NumPy only, so that the runtime can load it without a solver; pools are made in `flagsplit.splitter.pool_builder`.
"""

import itertools
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flagsplit.errors import BundleError, PolicyError, UnavailableError
from flagsplit.splitter import reading
from flagsplit.splitter.plan import Plan
from flagsplit.splitter.pool_bounds import ROUNDING, PoolBound
from flagsplit.splitter.state import State

FORMAT_VERSION = 2
_FEW_TIERS = 6
_GOALS = ("latency", "throughput")


@dataclass(frozen=True)
class PoolCertificate:
    """How good the pool is known to be over the box of states that it was built for.

    The optimal cost is concave in the state, so a plan that is optimal at all corners of a grid cell is optimal inside
    it, and the best plan's worst excess over the corners bounds its excess anywhere inside.

    Attributes:
        exact: whether every corner was solved to proven optimality under the same constraints as the pool's plans;
            nothing is certified otherwise, for instance where a memory cap binds.
        cells: grid cells over bandwidth, round-trip time and sets of tiers that compute.
        certified_cells: cells in which one plan is optimal throughout.
        regret_bound: bound on the relative excess over the optimum in all cells; None unless exact.
        bandwidth_factors, rtt_factors: ends of the box, as factors on the nominal links.
        slowdown_factors: ends of the box for each tier beyond the first, as factors on its nominal seconds. In lines of
            more than three links these tiers change together, on one of more than five the links do too.
        sampled: states between the corners that were solved as well.
        sampled_regret: worst relative excess over the optimum in those; None unless exact.
    """

    exact: bool
    cells: int
    certified_cells: int
    regret_bound: float | None
    bandwidth_factors: tuple[float, float]
    rtt_factors: tuple[float, float]
    slowdown_factors: tuple[float, float] = (1.0, 1.0)
    sampled: int = 0
    sampled_regret: float | None = None


@dataclass(frozen=True)
class Choice:
    """What to run now.

    Attributes:
        plan: the best plan whose tiers are all alive.
        latency_s: its serial latency in the state asked about.
        meets_latency: whether that keeps the SLA's latency bound (true without one).
        runner_up: the next best plan, or None.
        runner_up_latency_s: its latency, or None.
        broken: the SLA's bounds that it breaks in that state, "latency_ms" first.
    """

    plan: Plan
    latency_s: float
    meets_latency: bool
    runner_up: Plan | None
    runner_up_latency_s: float | None
    broken: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pool:
    """Plans over the same graph and tiers, each optimal somewhere or kept as a way to go on.

    Attributes:
        plans: the nominal optimum first.
        latency_weight: weight of a second in the score.
        bias: by plan, the weighted price and energy, added to the weighted latency.
        latency_bound_s: the SLA's bound; plans that keep it come first.
        absent: single-tier plans that are not in the pool, "all-TIER" to the reason.
        certificate: what is known about the pool's quality.
        goal: "latency", or "throughput": then the slowest stage is the score.
        preferred: the plan that the SLA's mode wants whenever its tiers are alive and it keeps the bounds, or None.
        bounds: the SLA's other bounds on a request; plans that keep all come first, then the least excess decides.
    """

    plans: tuple[Plan, ...]
    latency_weight: float
    bias: tuple[float, ...]
    latency_bound_s: float | None
    absent: Mapping[str, str]
    certificate: PoolCertificate
    goal: str = "latency"
    preferred: str | None = None
    bounds: tuple[PoolBound, ...] = ()
    _phi: NDArray[np.float64] = field(init=False, repr=False, compare=False)
    _uses: NDArray[np.bool_] = field(init=False, repr=False, compare=False)
    _bias: NDArray[np.float64] = field(init=False, repr=False, compare=False)
    _index: Mapping[str, int] = field(init=False, repr=False, compare=False)
    _usable_by: dict[tuple[bool, ...], NDArray[np.bool_]] = field(init=False, repr=False, compare=False)
    _bounded: tuple[tuple[str, NDArray[np.float64], NDArray[np.float64]], ...] = field(
        init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        if not self.plans or len({(plan.tiers, len(plan.placement)) for plan in self.plans}) != 1:
            raise PolicyError("pool: expected at least one plan, all over the same tiers and blocks")
        if len({plan.name for plan in self.plans}) != len(self.plans) or len(self.bias) != len(self.plans):
            raise PolicyError("pool: expected unique plan names and one bias for each plan")
        if self.goal not in _GOALS or self.preferred not in (None, *(plan.name for plan in self.plans)):
            raise PolicyError(f"pool: expected a goal of {', '.join(_GOALS)} and a preferred plan that is in it")
        if len({len(plan.features.up_bytes) for plan in self.plans}) != 1:
            raise PolicyError("pool: expected plans over the same links")
        object.__setattr__(self, "_phi", np.array([plan.features.latency_vector() for plan in self.plans]))
        uses = [[k in plan.placement for k in range(len(plan.tiers))] for plan in self.plans]
        object.__setattr__(self, "_uses", np.array(uses))
        object.__setattr__(self, "_bias", np.array(self.bias))
        object.__setattr__(self, "_usable_by", {})
        bounded = tuple((bound.name, *bound.parts(self.plans)) for bound in self.bounds)
        object.__setattr__(self, "_bounded", bounded)
        for alive in itertools.product((True, False), repeat=min(len(self.tiers), _FEW_TIERS)):
            if len(alive) == len(self.tiers):
                self._usable(alive)
        object.__setattr__(self, "_index", {plan.name: i for i, plan in enumerate(self.plans)})

    @property
    def tiers(self) -> tuple[str, ...]:
        """Names of the tiers of the line."""
        return self.plans[0].tiers

    def index(self, name: str) -> int:
        """Where the plan of that name is in `plans`."""
        if name not in self._index:
            raise PolicyError(f"plan {name!r} is not in the pool: choose from {', '.join(self._index)}")
        return self._index[name]

    def plan(self, name: str) -> Plan:
        """The plan of that name."""
        return self.plans[self.index(name)]

    def latencies_s(self, state: State) -> NDArray[np.float64]:
        """Latency of every plan in that state, whether its tiers are alive or not."""
        if len(state.alive) != len(self.tiers):
            raise PolicyError(f"state: expected {len(self.tiers)} tiers, got {len(state.alive)}")
        theta = state.vector()
        if len(theta) != self._phi.shape[1]:
            raise PolicyError(f"state: expected {(self._phi.shape[1] - len(self.tiers)) // 4} links")
        latencies: NDArray[np.float64] = self._phi @ theta
        return latencies + self._uses @ np.array(state.wait_s) if state.wait_s else latencies

    def excess(self, state: State) -> Mapping[str, NDArray[np.float64]]:
        """By bound of the SLA, what every plan makes of it in that state as a share of what is allowed, (m,)."""
        return self._excess(self.latencies_s(state), state)

    def _excess(self, latencies: NDArray[np.float64], state: State) -> dict[str, NDArray[np.float64]]:
        found: dict[str, NDArray[np.float64]] = {}
        if self.latency_bound_s is not None:
            found["latency_ms"] = latencies / max(self.latency_bound_s, np.finfo(np.float64).tiny)
        if self._bounded:
            theta = state.vector()
            found |= {name: fixed + parts @ theta for name, fixed, parts in self._bounded}
        return found

    def scores(self, state: State) -> NDArray[np.float64]:
        """What is minimized, for every plan in that state: the weighted sum, or the time of the slowest stage."""
        return self._scores(self.latencies_s(state), state)

    def _scores(self, latencies: NDArray[np.float64], state: State) -> NDArray[np.float64]:
        if self.goal == "latency":
            weighted: NDArray[np.float64] = self.latency_weight * latencies + self._bias
            return weighted
        stages = self.plans[0].features.stages
        slowest: NDArray[np.float64] = (self._phi[:, :stages] * state.vector()[:stages]).max(axis=1)
        return slowest

    def choose(
        self,
        state: State,
        current: str | None = None,
        switch_margin: float = 0.0,
        switch_s: float = 0.0,
        without: Collection[str] = (),
    ) -> Choice:
        """The best plan for a state.

        Plans that keep all of the SLA's bounds in it come first. Where none does, the one that exceeds its worst bound
        by the smallest factor is the least bad.

        Args:
            state: theta now; a plan is out if a tier that it runs on is dead, and all are
                if tier 0 is, where requests start and end.
            current: name of the plan in use, if any.
            switch_margin: keep `current` unless another plan's score is better by more than this fraction.
            switch_s: seconds that leaving `current` costs, shared out over the requests that are expected to profit.
            without: names of plans that are out for another reason.

        Raises:
            UnavailableError: no plan of the pool can do with the tiers that are alive.
        """
        latencies = self.latencies_s(state)
        usable = self._usable(state.alive)
        if without:
            usable = usable & np.array([plan.name not in without for plan in self.plans])
        if not usable.any():
            raise UnavailableError(self._nothing_left(state, without))
        score = self._scores(latencies, state)
        excess = self._excess(latencies, state)
        leave_s = switch_s * self._per_second
        keeps = usable
        if excess:
            worst = np.maximum.reduce(list(excess.values()))
            keeps = usable & (worst <= 1 + ROUNDING)
            if not keeps.any():
                score, leave_s = worst, 0.0
        score = np.where(keeps if keeps.any() else usable, score, np.inf)
        best = int(score.argmin())
        if self.preferred is not None and keeps[self._index[self.preferred]]:
            best = self._index[self.preferred]
        elif current is not None and (switch_margin > 0 or switch_s > 0):
            kept = self._index.get(current, best)
            best = kept if score[kept] <= score[best] * (1 + switch_margin) + leave_s else best
        return self._choice(best, score, latencies, excess)

    def _usable(self, alive: tuple[bool, ...]) -> NDArray[np.bool_]:
        """Which plans compute on these tiers only."""
        known = self._usable_by.get(alive)
        if known is None:
            known = self._usable_by[alive] = ~(self._uses & ~np.array(alive)).any(axis=1) & alive[0]
        return known

    @property
    def _per_second(self) -> float:
        return self.latency_weight if self.goal == "latency" else 1.0

    def _choice(
        self,
        best: int,
        score: NDArray[np.float64],
        latencies: NDArray[np.float64],
        excess: Mapping[str, NDArray[np.float64]],
    ) -> Choice:
        score[best] = np.inf
        second = int(score.argmin())
        runner_up = second if score[second] < np.inf else None
        latency_s = float(latencies[best])
        return Choice(
            plan=self.plans[best],
            latency_s=latency_s,
            meets_latency=self.latency_bound_s is None or latency_s <= self.latency_bound_s,
            runner_up=None if runner_up is None else self.plans[runner_up],
            runner_up_latency_s=None if runner_up is None else float(latencies[runner_up]),
            broken=tuple(name for name, shares in excess.items() if shares[best] > 1 + ROUNDING),
        )

    def _nothing_left(self, state: State, without: Collection[str]) -> str:
        names = [name for name, alive in zip(self.tiers, state.alive, strict=True) if not alive]
        first = f"all-{self.tiers[0]}"
        why = f"; {first} is not in the pool: {self.absent[first]}" if first in self.absent else ""
        lacking = [f"without {', '.join(names)}"] if names else []
        barred = [f"with {', '.join(sorted(without))} ruled out"] if without else []
        return f"no plan runs {' and '.join(lacking + barred)}{why}"

    def to_json(self) -> str:
        """Deterministic JSON text, `plans.json` of a bundle."""
        # Written only where there are some: who does not know of bounds refuses the pool rather than break them.
        bounds = {"bounds": [bound.to_data() for bound in self.bounds]} if self.bounds else {}
        return reading.dump(
            {
                "version": FORMAT_VERSION,
                "plans": [plan.to_data() for plan in self.plans],
                "latency_weight": self.latency_weight,
                "bias": list(self.bias),
                "latency_bound_s": self.latency_bound_s,
                "absent": dict(self.absent),
                "certificate": asdict(self.certificate),
                "goal": self.goal,
                "preferred": self.preferred,
                **bounds,
            }
        )

    @classmethod
    def from_json(cls, text: str | bytes) -> "Pool":
        """Read what `to_json` wrote; raises BundleError for anything else."""
        data = reading.parse_object(text, "pool")
        if data.pop("version", None) != FORMAT_VERSION:
            raise BundleError(f"pool.version: expected {FORMAT_VERSION}; make the bundle again with this flagsplit")
        bounds = reading.array({"bounds": [], **data}, "bounds", "pool")
        reading.only_keys({"bounds": [], **data}, _POOL_KEYS, "pool")
        plans = reading.array(data, "plans", "pool")
        bound = data["latency_bound_s"]
        absent = reading.as_object(data["absent"], "pool.absent")
        try:
            return cls(
                plans=tuple(Plan.from_data(plan, f"pool.plans[{i}]") for i, plan in enumerate(plans)),
                latency_weight=reading.number(data["latency_weight"], "pool.latency_weight"),
                bias=reading.numbers(data, "bias", "pool", len(plans)),
                latency_bound_s=None if bound is None else reading.number(bound, "pool.latency_bound_s"),
                absent={name: reading.text(absent, name, "pool.absent") for name in absent},
                certificate=_read_certificate(data["certificate"]),
                goal=reading.text(data, "goal", "pool"),
                preferred=None if data["preferred"] is None else reading.text(data, "preferred", "pool"),
                bounds=tuple(PoolBound.from_data(each, f"pool.bounds[{i}]") for i, each in enumerate(bounds)),
            )
        except PolicyError as error:
            raise BundleError(str(error)) from None


_POOL_KEYS = frozenset(name for name in Pool.__dataclass_fields__ if not name.startswith("_"))


def _read_certificate(data: Any) -> PoolCertificate:
    where = "pool.certificate"
    record = reading.as_object(data, where)
    reading.only_keys(record, frozenset(PoolCertificate.__dataclass_fields__), where)
    if not isinstance(record["exact"], bool):
        raise BundleError(f"{where}.exact: expected true or false")
    regret = record["regret_bound"]
    low_bandwidth, high_bandwidth = reading.numbers(record, "bandwidth_factors", where, 2)
    low_rtt, high_rtt = reading.numbers(record, "rtt_factors", where, 2)
    low_slowdown, high_slowdown = reading.numbers(record, "slowdown_factors", where, 2)
    sampled = record["sampled_regret"]
    return PoolCertificate(
        exact=record["exact"],
        cells=reading.integer(record["cells"], f"{where}.cells", 1 << 40),
        certified_cells=reading.integer(record["certified_cells"], f"{where}.certified_cells", 1 << 40),
        regret_bound=None if regret is None else reading.number(regret, f"{where}.regret_bound"),
        bandwidth_factors=(low_bandwidth, high_bandwidth),
        rtt_factors=(low_rtt, high_rtt),
        slowdown_factors=(low_slowdown, high_slowdown),
        sampled=reading.integer(record["sampled"], f"{where}.sampled", 1 << 40),
        sampled_regret=None if sampled is None else reading.number(sampled, f"{where}.sampled_regret"),
    )
