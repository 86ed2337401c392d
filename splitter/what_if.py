"""What if the world were another: a problem with other links, slower or dead tiers, other prices.

cloud=5mbit/80ms   another link between cloud and the tier before it; `5mbit` or `/80ms` changes a part
phone-cloud=5mbit  another by-pass between these two
edge=slower:3      three times as slow, in energy and price too, since it is busy for longer
edge=dead          it runs nothing; what passes it on the line still does, at the same cost
cloud=price:2      twice the price of its busy second
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from flagsplit.errors import PolicyError
from flagsplit.splitter.links import Link, parse_what_if
from flagsplit.splitter.problem import Problem

_HELP = "expected a link such as 5mbit/80ms, 5mbit or /80ms, or slower:3, dead or price:2"
_FACTORS = ("slower", "price")


def what_if(problem: Problem, changes: Sequence[tuple[str, str]], named: Mapping[str, Link]) -> Problem:
    """The problem in another world.

    Args:
        problem: as things are.
        changes: what changes: a tier's name, or two with "-" between for a by-pass, and how, one after the other.
        named: links known by name.

    Raises:
        PolicyError: a change names what is not there, or is none that can be made.
    """
    for subject, change in changes:
        problem = _changed(problem, subject, change.strip().lower(), named)
    return problem


def _changed(problem: Problem, subject: str, change: str, named: Mapping[str, Link]) -> Problem:
    ways = {f"{problem.tier_names[b.near]}-{problem.tier_names[b.far]}": i for i, b in enumerate(problem.bypasses)}
    if subject in ways:
        bypass = problem.bypasses[ways[subject]]
        link = _other_link(subject, change, bypass.link, named)
        bypasses = [replace(bypass, link=link) if b is bypass else b for b in problem.bypasses]
        return problem.with_links(problem.links, bypasses)
    if subject not in problem.tier_names:
        known = ", ".join((*problem.tier_names, *ways))
        raise PolicyError(f"what-if {subject}={change}: there is no tier or by-pass {subject!r}: there are {known}")
    tier = problem.tier_names.index(subject)
    word, _, number = change.partition(":")
    if change == "dead":
        return _dead(problem, tier)
    if word in _FACTORS:
        factor = _factor(subject, change, number)
        return _slower(problem, tier, factor) if word == "slower" else _priced(problem, tier, factor)
    if tier == 0:
        raise PolicyError(f"what-if {subject}={change}: {subject} is the first tier, so no link leads to it; {_HELP}")
    links = list(problem.links)
    links[tier - 1] = _other_link(subject, change, links[tier - 1], named)
    return problem.with_links(links)


def _other_link(subject: str, change: str, link: Link, named: Mapping[str, Link]) -> Link:
    try:
        return parse_what_if(change, link, named)
    except PolicyError as error:
        raise PolicyError(f"what-if {subject}={change}: {_HELP}; {error}") from None


def _factor(subject: str, change: str, number: str) -> float:
    try:
        factor = float(number)
    except ValueError:
        factor = math.nan
    if not (math.isfinite(factor) and factor > 0):
        raise PolicyError(f"what-if {subject}={change}: expected a factor above 0, came {number!r}")
    return factor


def _dead(problem: Problem, tier: int) -> Problem:
    name = problem.tier_names[tier]
    if tier == 0:
        raise PolicyError(f"what-if {name}=dead: requests start and end on {name}, so nothing would answer")
    sla = problem.sla
    return problem.with_sla(sla.model_copy(update={"forbid_tiers": tuple(dict.fromkeys((*sla.forbid_tiers, name)))}))


def _slower(problem: Problem, tier: int, factor: float) -> Problem:
    costs = problem.costs
    factors = np.ones(len(problem.tiers))
    factors[tier] = factor
    slower = replace(
        costs,
        seconds=costs.seconds * factors,
        invocation_s=costs.invocation_s * factors,
        encode_s_per_byte={codec: each * factors for codec, each in costs.encode_s_per_byte.items()},
        decode_s_per_byte={codec: each * factors for codec, each in costs.decode_s_per_byte.items()},
    )
    return replace(problem, costs=slower)


def _priced(problem: Problem, tier: int, factor: float) -> Problem:
    usd = problem.costs.usd_per_s.copy()
    usd[tier] *= factor
    return replace(problem, costs=replace(problem.costs, usd_per_s=usd))
