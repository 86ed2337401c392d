"""Which segments of a tier to load first, and what each holds when it is loaded."""

from flagsplit.runtime.bundle import Bundle


def order_of(bundle: Bundle, tier: int) -> list[str]:
    """The tier's segments, those of the best plan first."""
    return list(bundle.segments_of(tier))


def sizes_of(bundle: Bundle, tier: int) -> dict[str, float]:
    """An estimate for each segment, in bytes: what the smallest plan with it holds on the tier."""
    sizes: dict[str, float] = {}
    for plan in bundle.plans.pool.plans:
        for step in bundle.plans.steps[plan.name]:
            if step.tier == tier:
                held = plan.features.resident_bytes[tier]
                sizes[step.segment] = min(held, sizes.get(step.segment, held))
    return sizes
