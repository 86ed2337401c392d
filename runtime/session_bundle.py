"""What a session takes from a bundle, and what it asks of another that is to take its place."""

from flagsplit.errors import ConfigError
from flagsplit.runtime.bundle import Bundle
from flagsplit.runtime.session_facts import SessionFacts
from flagsplit.splitter.loosening import loosened
from flagsplit.splitter.pool import Pool
from flagsplit.splitter.sla import SLA, parse_sla


def facts_of(bundle: Bundle, pool: Pool | None = None) -> SessionFacts:
    """What a session machine needs to know of a bundle, under its own policy or with another pool of its plans."""
    pool = pool or bundle.plans.pool
    names = {plan.name for plan in pool.plans}
    return SessionFacts(
        bundle=bundle.digest,
        tiers=bundle.tiers,
        pool=pool,
        steps={name: steps for name, steps in bundle.plans.steps.items() if name in names},
        nominal=bundle.plans.nominal,
        inputs=tuple(tensor.name for tensor in bundle.inputs),
        outputs=tuple(tensor.name for tensor in bundle.outputs),
        answers=bundle.plans.answers,
        lossy=frozenset(plan.name for plan in pool.plans if any(cut.codec != "none" for cut in plan.cuts)),
        declared=tuple(bundle.outputs),
    )


def first_segments(facts: SessionFacts) -> list[str]:
    """What the best plan runs on the session's own tier; to be loaded before the others."""
    best = facts.pool.plans[0].name
    return [step.segment for step in facts.steps[best] if step.tier == 0]


def check_interchangeable(old: Bundle, new: Bundle) -> None:
    """One can take the place of the other.

    Raises:
        ConfigError: applications, or the first tier, would notice.
    """
    for what, before, after in (
        ("inputs", old.inputs, new.inputs),
        ("outputs", old.outputs, new.outputs),
        ("first tier", old.tiers[0], new.tiers[0]),
    ):
        if before != after:
            raise ConfigError(f"the new bundle's {what} are {after}, expected {before}; open a session of its own")


def loosened_by(bundle: Bundle, sla: SLA) -> tuple[str, ...]:
    """In what a policy goes beyond that of a bundle; nothing is known of bundles older than format 1.2."""
    built_under = bundle.facts.sla
    return () if built_under is None else loosened(parse_sla(built_under), sla)
