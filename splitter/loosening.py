"""In what a policy asks for more than the plans that were made under another: rules that it drops, wishes that differ.

The plans of a pool are the best that the policy of their build allows. Under one that forbids more, the best of those
that are left is a fair answer; under one that forbids less, a plan that was never made may be better.
"""

from collections.abc import Mapping

from flagsplit.splitter.codecs import codecs_for
from flagsplit.splitter.sla import SLA, Accuracy

_CAPS = ("memory_mb", "power_w")
_NAMED = ("keep_on", "pins")
_LISTED = ("forbid_tiers", "forbid_vendors", "forbid_targets", "use_tiers")
_WISHES = ("prefer_tiers", "prefer_vendors", "prefer_targets")


def loosened(old: SLA, new: SLA) -> tuple[str, ...]:
    """The fields of a policy in which plans made under another may not be the best.

    Args:
        old: the policy that the plans were made under.
        new: the policy from now on.

    Returns:
        Names of fields as the SLA has them, in a fixed order; none where the old plans that keep it are enough.
    """
    found = ["objective"] if old.objective != new.objective else []
    found += [f"bounds.{name}" for name, limit in old.bounds if _is_above(getattr(new.bounds, name), limit)]
    if old.requests_per_s is not None and (new.requests_per_s or 0.0) < old.requests_per_s:
        found.append("requests_per_s")
    for name in _CAPS:
        caps: Mapping[str, float] = getattr(new, name)
        found += [name] if any(_is_above(caps.get(tier), cap) for tier, cap in getattr(old, name).items()) else []
    found += [name for name in _NAMED if not getattr(old, name).items() <= getattr(new, name).items()]
    found += ["min_blocks_deep"] if new.min_blocks_deep < old.min_blocks_deep else []
    found += ["accuracy"] if _allows_more(old.accuracy, new.accuracy) else []
    # A pool has the plans for whole tiers whatever else it has, unless its mode left room for no others.
    found += ["mode"] if (old.mode or "").startswith("only") and new.mode != old.mode else []
    found += [name for name in _LISTED if not set(getattr(old, name)) <= set(getattr(new, name))]
    found += [name for name in _WISHES if getattr(old, name) != getattr(new, name)]
    if new.has_preferences and old.prefer_within != new.prefer_within:
        found.append("prefer_within")
    counts = new.objective.energy > 0 or new.bounds.energy_mj is not None
    found += ["energy_scope"] if counts and old.energy_scope != new.energy_scope else []
    return tuple(found)


def _is_above(new: float | None, old: float | None) -> bool:
    return old is not None and (new is None or new > old)


def _allows_more(old: Accuracy, new: Accuracy) -> bool:
    """Whether a cut may use a codec that it could not; patterns that differ are taken to allow more."""
    if new == Accuracy() or new == old:
        return False
    if tuple(old.cuts) != tuple(new.cuts):
        return True
    every = Accuracy(every_cut=old.every_cut), Accuracy(every_cut=new.every_cut)
    pairs = [every, *((Accuracy(every_cut=old.cuts[name]), Accuracy(every_cut=new.cuts[name])) for name in new.cuts)]
    return any(not codecs_for(after, "") <= codecs_for(before, "") for before, after in pairs)
