"""Linear measures of a placement: latency, energy, price and the weighted objective, all in one form.

A measure charges a block for its tier, a byte and a message for each link that they cross. All solvers work on this
form, so whatever can be written in it (another objective, a dual price) needs no change in them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from flagsplit.splitter.problem import Problem
from flagsplit.splitter.state import State

MJ_PER_J = 1e3
MS_PER_S = 1e3
REQUESTS = 1000
"""Prices and emissions are quoted for this many requests."""

_LEAST_LIMIT = 1e-9


@dataclass(frozen=True, eq=False)
class Rates:
    """What a measure charges.

    Attributes:
        unary: by block and tier, shape (n, K).
        up_byte, down_byte: by link, shape (K-1,).
        up_message, down_message: by link, shape (K-1,).
        encode, decode: by codec of the problem and tier, shape (C, K), per byte of the value as it is.
    """

    unary: NDArray[np.float64]
    up_byte: NDArray[np.float64]
    down_byte: NDArray[np.float64]
    up_message: NDArray[np.float64]
    down_message: NDArray[np.float64]
    encode: NDArray[np.float64]
    decode: NDArray[np.float64]

    def __add__(self, other: "Rates") -> "Rates":
        return Rates(*(getattr(self, name) + getattr(other, name) for name in _PARTS))

    def times(self, factor: float) -> "Rates":
        """This measure, weighted."""
        return Rates(*(getattr(self, name) * factor for name in _PARTS))

    @property
    def message(self) -> NDArray[np.float64]:
        """What a round trip charges beside its bytes, shape (K-1,)."""
        both: NDArray[np.float64] = self.up_message + self.down_message
        return both


_PARTS = tuple(Rates.__dataclass_fields__)


def no_rates(problem: Problem) -> Rates:
    """The measure that charges nothing, to put one together from."""
    links, codecs = len(problem.links), (len(problem.codecs), len(problem.tiers))
    nothing = np.zeros(links)
    free = np.zeros(codecs)
    return Rates(np.zeros_like(problem.costs.seconds), nothing, nothing, nothing, nothing, free, free)


def busy_rates(problem: Problem, per_second: NDArray[np.float64]) -> Rates:
    """Charge each tier `per_second[k]` for its busy seconds at nominal speed.

    A message is acted on by the tier that receives it, relays included; so is the request by tier 0, and as there is
    one in any placement, block 0 carries its charge.
    """
    costs = problem.costs
    invocation = costs.invocation_s * per_second
    unary = costs.seconds * per_second
    unary[0] += invocation[0]
    nothing = np.zeros(len(problem.links))
    encode, decode = np.zeros((2, len(problem.codecs), len(problem.tiers)))
    for i, name in enumerate(problem.codecs[1:], start=1):
        encode[i] = costs.encode_s_per_byte[name] * per_second
        decode[i] = costs.decode_s_per_byte[name] * per_second
    return Rates(unary, nothing, nothing, invocation[1:], invocation[:-1], encode, decode)


def latency_rates(problem: Problem, state: State) -> Rates:
    """Serial seconds in that state."""
    return busy_rates(problem, np.array(state.slowdown)) + replace(
        no_rates(problem),
        up_byte=np.array(state.up_s_per_byte),
        down_byte=np.array(state.down_s_per_byte),
        up_message=np.array(state.up_s_per_message),
        down_message=np.array(state.down_s_per_message),
    )


def joule_rates(problem: Problem, per_joule: NDArray[np.float64]) -> Rates:
    """Charge each tier `per_joule[k]` for its energy above idle, radio included.

    After a round trip a radio stays awake for its tail, or until the next request where `requests_per_s` says when that
    comes. Without it requests come one after the other, and the tail of one is the next one's.
    """
    costs, rate = problem.costs, problem.sla.requests_per_s
    busy = busy_rates(problem, costs.power_w * per_joule)
    awake_s = np.zeros_like(costs.radio_tail_s) if rate is None else np.minimum(costs.radio_tail_s, 1 / rate)
    return busy + replace(
        no_rates(problem),
        up_byte=costs.radio_up_j_per_byte @ per_joule,
        down_byte=costs.radio_down_j_per_byte @ per_joule,
        up_message=(costs.radio_tail_w * awake_s) @ per_joule,
    )


def energy_rates(problem: Problem) -> Rates:
    """Joules of the tiers in the SLA's energy scope, above idle, radio included."""
    scope = np.ones(len(problem.tiers))
    if problem.sla.energy_scope == "first":
        scope[1:] = 0
    return joule_rates(problem, scope)


def carbon_rates(problem: Problem) -> Rates:
    """Grams of CO2 of one request, of all tiers."""
    return joule_rates(problem, problem.costs.carbon_g_per_j)


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
    if weights.carbon:
        rates += carbon_rates(problem).times(weights.carbon * REQUESTS)
    return rates


def stage_rates(problem: Problem, state: State) -> Mapping[str, Rates]:
    """Seconds for which one request keeps each tier, and each link in each direction, busy, by name.

    In a pipelined stream these overlap, so the largest is the time between two requests. Half round trips are not in
    it: they delay a message and occupy nothing.
    """
    found: dict[str, Rates] = {}
    for k, tier in enumerate(problem.tiers):
        only = np.zeros(len(problem.tiers))
        only[k] = state.slowdown[k]
        found[tier.name] = busy_rates(problem, only)
    for i, (near, far) in enumerate(pairwise(problem.tier_names)):
        for name, field, seconds in (
            (f"{near} to {far}", "up_byte", state.up_s_per_byte[i]),
            (f"{far} to {near}", "down_byte", state.down_s_per_byte[i]),
        ):
            per_byte = np.zeros(len(problem.links))
            per_byte[i] = seconds
            found[name] = replace(no_rates(problem), **{field: per_byte})
    return found


def bound_rates(problem: Problem) -> Mapping[str, tuple[Rates, float]]:
    """What the SLA bounds, by name: a measure in the bound's own unit at the nominal state, and its limit."""
    bounds, nominal = problem.sla.bounds, problem.nominal
    found: dict[str, tuple[Rates, float]] = {}
    if bounds.latency_ms is not None:
        found["latency_ms"] = latency_rates(problem, nominal).times(MS_PER_S), bounds.latency_ms
    if bounds.energy_mj is not None:
        found["energy_mj"] = energy_rates(problem).times(MJ_PER_J), bounds.energy_mj
    if bounds.price_per_1k_usd is not None:
        found["price_per_1k_usd"] = price_rates(problem).times(REQUESTS), bounds.price_per_1k_usd
    if bounds.carbon_per_1k_g is not None:
        found["carbon_per_1k_g"] = carbon_rates(problem).times(REQUESTS), bounds.carbon_per_1k_g
    if bounds.cold_start_ms is not None:
        found |= _cold_start_rates(problem, bounds.cold_start_ms)
    for k, name in enumerate(problem.tier_names):
        if name in problem.sla.use_tiers:
            elsewhere = np.ones_like(problem.costs.seconds)
            elsewhere[:, k] = 0.0
            most = max(len(elsewhere) - 1.0, _LEAST_LIMIT)
            found[f"use_tiers: blocks not on {name}"] = replace(no_rates(problem), unary=elsewhere), most
    if problem.sla.requests_per_s is not None:
        found |= _load_rates(problem, problem.sla.requests_per_s)
    return found


def _cold_start_rates(problem: Problem, limit_ms: float) -> dict[str, tuple[Rates, float]]:
    """Milliseconds in which each tier loads its weights, and what is left for that."""
    found = {}
    for k, tier in enumerate(problem.tiers):
        unary = np.zeros_like(problem.costs.seconds)
        unary[:, k] = problem.weight_bytes * problem.costs.load_s_per_byte[k] * MS_PER_S
        left = max(limit_ms - float(problem.costs.load_s[k]) * MS_PER_S, _LEAST_LIMIT)
        found[f"cold_start_ms of {tier.name}"] = replace(no_rates(problem), unary=unary), left
    return found


def _load_rates(problem: Problem, rate: float) -> dict[str, tuple[Rates, float]]:
    """How busy tiers and links are at the SLA's rate of requests, and the average power of those with a cap."""
    found = {
        f"load of {name}": (rates.times(rate), 1.0) for name, rates in stage_rates(problem, problem.nominal).items()
    }
    for k, tier in enumerate(problem.tiers):
        if tier.name in problem.sla.power_w:
            only = np.zeros(len(problem.tiers))
            only[k] = rate
            found[f"power_w of {tier.name}"] = joule_rates(problem, only), problem.sla.power_w[tier.name]
    return found
