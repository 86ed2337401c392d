"""Linear measures of a placement: latency, energy, price and the weighted objective, all in one form.

A measure charges a block for its tier, a byte and a message for each link that they cross. All solvers work on this
form, so whatever can be written in it (another objective, a dual price) needs no change in them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flagsplit.splitter.problem import Problem
from flagsplit.splitter.state import State

MJ_PER_J = 1e3
MS_PER_S = 1e3
REQUESTS = 1000
"""Prices are quoted for this many requests."""


@dataclass(frozen=True, eq=False)
class Rates:
    """What a measure charges.

    Attributes:
        unary: by block and tier, shape (n, K).
        up_byte, down_byte: by link, shape (K-1,).
        up_message, down_message: by link, shape (K-1,).
    """

    unary: NDArray[np.float64]
    up_byte: NDArray[np.float64]
    down_byte: NDArray[np.float64]
    up_message: NDArray[np.float64]
    down_message: NDArray[np.float64]

    def __add__(self, other: "Rates") -> "Rates":
        return Rates(
            self.unary + other.unary,
            self.up_byte + other.up_byte,
            self.down_byte + other.down_byte,
            self.up_message + other.up_message,
            self.down_message + other.down_message,
        )

    def times(self, factor: float) -> "Rates":
        """This measure, weighted."""
        return Rates(
            self.unary * factor,
            self.up_byte * factor,
            self.down_byte * factor,
            self.up_message * factor,
            self.down_message * factor,
        )


def busy_rates(problem: Problem, per_second: NDArray[np.float64]) -> Rates:
    """Charge each tier `per_second[k]` for its busy seconds at nominal speed.

    A message is acted on by the tier that receives it, relays included; so is the request by tier 0, and as there is
    one in any placement, block 0 carries its charge.
    """
    invocation = problem.costs.invocation_s * per_second
    unary = problem.costs.seconds * per_second
    unary[0] += invocation[0]
    nothing = np.zeros(len(problem.links))
    return Rates(unary, nothing, nothing, invocation[1:], invocation[:-1])


def latency_rates(problem: Problem, state: State) -> Rates:
    """Serial seconds in that state."""
    busy = busy_rates(problem, np.array(state.slowdown))
    nothing = np.zeros_like(busy.unary)
    wire = Rates(
        nothing,
        np.array(state.up_s_per_byte),
        np.array(state.down_s_per_byte),
        np.array(state.up_s_per_message),
        np.array(state.down_s_per_message),
    )
    return busy + wire


def energy_rates(problem: Problem) -> Rates:
    """Joules of the tiers in the SLA's energy scope, above idle, radio included."""
    scope = np.ones(len(problem.tiers))
    if problem.sla.energy_scope == "first":
        scope[1:] = 0
    busy = busy_rates(problem, problem.costs.power_w * scope)
    up, down = problem.costs.radio_up_j_per_byte @ scope, problem.costs.radio_down_j_per_byte @ scope
    return Rates(busy.unary, up, down, busy.up_message, busy.down_message)


def price_rates(problem: Problem) -> Rates:
    """US dollars of one request."""
    return busy_rates(problem, problem.costs.usd_per_s)


def objective_rates(problem: Problem, state: State) -> Rates:
    """The SLA's objective in that state."""
    weights = problem.sla.objective
    rates = latency_rates(problem, state).times(weights.latency)
    if weights.price:
        rates += price_rates(problem).times(weights.price * REQUESTS)
    if weights.energy:
        rates += energy_rates(problem).times(weights.energy)
    return rates


def bound_rates(problem: Problem) -> Mapping[str, tuple[Rates, float]]:
    """The SLA's bounds by field name: a measure in the bound's own unit at the nominal state, and its limit."""
    bounds = problem.sla.bounds
    found: dict[str, tuple[Rates, float]] = {}
    if bounds.latency_ms is not None:
        found["latency_ms"] = latency_rates(problem, problem.nominal).times(MS_PER_S), bounds.latency_ms
    if bounds.energy_mj is not None:
        found["energy_mj"] = energy_rates(problem).times(MJ_PER_J), bounds.energy_mj
    if bounds.price_per_1k_usd is not None:
        found["price_per_1k_usd"] = price_rates(problem).times(REQUESTS), bounds.price_per_1k_usd
    return found
