"""What a session needs to know of a bundle whose loop another runs: a plan's parts before that, to what crosses.

A decoder service makes tokens from the tensors that cross. Workers follow a route without knowing the plan, so a route
that ends there is one like any other.
"""

from dataclasses import replace

from flagsplit.errors import ConfigError
from flagsplit.runtime.bundle import Bundle
from flagsplit.runtime.program_parts import PlanParts
from flagsplit.runtime.session_facts import SessionFacts
from flagsplit.splitter.plan import Features, Plan


def facts_before_loop(bundle: Bundle, plan: str) -> SessionFacts:
    """What a session needs to know to run a plan's parts before its loop.

    The answers are the tensors that cross to the loop under that plan. Other plans that make the same ones are pooled
    with it, so that a request goes on by them when a tier goes.

    Raises:
        ConfigError: the bundle has no program.
        PolicyError: no stream can be served under that plan.
    """
    parts = bundle.program
    if parts is None:
        raise ConfigError(f"{bundle.path} has no program, only a model; build it of a program, such as zoo:moonshine")
    boundary = parts.plan(plan).boundary
    alike = [each for each in bundle.plans.pool.plans if each.name in parts.plans]
    alike = [each for each in alike if parts.plans[each.name].boundary == boundary]
    pool = replace(
        bundle.plans.pool,
        plans=tuple(_shortened(each, parts.plans[each.name]) for each in alike),
        bias=(0.0,) * len(alike),
        latency_bound_s=None,
        absent={},
        preferred=None,
        bounds=(),
    )
    return SessionFacts(
        bundle=bundle.digest,
        tiers=bundle.tiers,
        pool=pool,
        steps={each.name: parts.plans[each.name].before for each in alike},
        nominal=bundle.plans.nominal,
        inputs=tuple(tensor.name for tensor in bundle.inputs),
        outputs=tuple(tensor.name for tensor in boundary),
        lossy=frozenset(each.name for each in alike if any(cut.codec != "none" for cut in each.cuts)),
        declared=boundary,
    )


def _shortened(plan: Plan, parts: PlanParts) -> Plan:
    """A plan as if the tiers that it uses for the loop alone did nothing, and nothing went to them."""
    used = {0, *(step.tier for step in parts.before)}
    features, line = plan.features, range(max(used))

    def of_tiers(seconds: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(each if tier in used else 0.0 for tier, each in enumerate(seconds))

    def of_links(figures: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(each if link in line else 0.0 for link, each in enumerate(figures))

    shorter: Features = replace(
        features,
        tier_seconds=of_tiers(features.tier_seconds),
        up_bytes=of_links(features.up_bytes),
        down_bytes=of_links(features.down_bytes),
        up_messages=of_links(features.up_messages),
        down_messages=of_links(features.down_messages),
    )
    placement = tuple(tier if tier in used else 0 for tier in plan.placement)
    return replace(plan, placement=placement, features=shorter)
