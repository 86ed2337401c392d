"""What of the world can change by a factor: links' bandwidths and round trips, tiers' speeds and prices.

A knob turned is another problem or another state, in which every plan's objective is linear. Where another plan becomes
best along a knob is in `flagsplit.splitter.thresholds`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from flagsplit.splitter.links import Link
from flagsplit.splitter.problem import Problem
from flagsplit.splitter.state import State

Kind = Literal["bandwidth", "rtt", "slowdown", "price"]
UNITS: dict[Kind, str] = {"bandwidth": "Mbit/s", "rtt": "ms", "slowdown": "x", "price": "USD/h"}


@dataclass(frozen=True)
class Knob:
    """Something of the world that can change.

    Attributes:
        kind: what of it.
        subject: the link (by the tier at its far end, or two tiers with "-" between) or the tier.
        index: of the link (those of the line, then by-passes) or of the tier.
        now: its value at the nominal state, in `UNITS`; of a link's two bandwidths the one up.
    """

    kind: Kind
    subject: str
    index: int
    now: float

    @property
    def name(self) -> str:
        """For people."""
        return {
            "bandwidth": f"bandwidth of the {self.subject} link",
            "rtt": f"round trip of the {self.subject} link",
            "slowdown": f"slow-down of {self.subject}",
            "price": f"price of {self.subject}",
        }[self.kind]


def knobs_of(problem: Problem) -> tuple[Knob, ...]:
    """Everything that can change: links, round trips, tiers, and prices where the objective counts them."""
    links = [(tier, link) for tier, link in zip(problem.tier_names[1:], problem.links, strict=True)]
    names = problem.tier_names
    links += [(f"{names[b.near]}-{names[b.far]}", b.link) for b in problem.bypasses]
    found = [_link_knob("bandwidth", i, name, link) for i, (name, link) in enumerate(links)]
    found += [_link_knob("rtt", i, name, link) for i, (name, link) in enumerate(links) if link.rtt_s > 0]
    found += [Knob("slowdown", name, k, 1.0) for k, name in enumerate(names)]
    if problem.sla.objective.price:
        prices = [float(usd) * 3600 for usd in problem.costs.usd_per_s]
        found += [Knob("price", names[k], k, usd) for k, usd in enumerate(prices) if usd > 0]
    return tuple(found)


def _link_knob(kind: Kind, index: int, name: str, link: Link) -> Knob:
    return Knob(kind, name, index, link.up_bytes_per_s * 8e-6 if kind == "bandwidth" else link.rtt_s * 1e3)


def turned(problem: Problem, knob: Knob, x: float) -> tuple[Problem, State]:
    """The problem and the state with a knob at a factor; for a bandwidth, at 1 / x, in which costs are linear."""
    state, i = problem.nominal, knob.index

    def at(figures: Sequence[float]) -> tuple[float, ...]:
        return tuple(each * x if j == i else each for j, each in enumerate(figures))

    if knob.kind == "slowdown":
        return problem, replace(state, slowdown=at(state.slowdown))
    if knob.kind == "bandwidth":
        return problem, replace(state, up_s_per_byte=at(state.up_s_per_byte), down_s_per_byte=at(state.down_s_per_byte))
    if knob.kind == "rtt":
        return problem, replace(
            state, up_s_per_message=at(state.up_s_per_message), down_s_per_message=at(state.down_s_per_message)
        )
    usd = problem.costs.usd_per_s.copy()
    usd[i] *= x
    return replace(problem, costs=replace(problem.costs, usd_per_s=usd)), state
