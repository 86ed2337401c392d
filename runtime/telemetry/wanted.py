"""Whether a tier is watched at all. If not, nothing of what watches is loaded."""

from typing import TYPE_CHECKING, Literal

from flagsplit.runtime.bundle import Bundle
from flagsplit.runtime.telemetry.settings import About, TelemetrySettings

if TYPE_CHECKING:
    from flagsplit.runtime.telemetry.telemetry import Telemetry


def telemetry_of(bundle: Bundle | None, tier: str, instance: str, settings: TelemetrySettings) -> "Telemetry | None":
    """What watches a tier, or None if nothing is wanted; the first tier of a bundle is a session's.

    Without a bundle it is a worker that waits for one.

    Raises:
        ConfigError: the HTTP address is malformed or taken, or the trace file cannot be written.
    """
    if not settings.is_wanted:
        return None
    from flagsplit.runtime.telemetry.telemetry import Telemetry  # only here: it takes a tenth of a second

    if bundle is None:
        return Telemetry(About("worker", tier, (tier,), (), "", instance), settings)
    index = bundle.tier_index(tier)
    role: Literal["session", "worker"] = "session" if index == 0 else "worker"
    segments = tuple(bundle.segments_of(index))
    return Telemetry(About(role, tier, bundle.tiers, segments, bundle.digest, instance), settings)
