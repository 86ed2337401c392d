"""Whether a tier is watched at all. If not, nothing of what watches is loaded."""

from typing import TYPE_CHECKING, Literal

from flagsplit.runtime.bundle import Bundle
from flagsplit.runtime.telemetry.settings import About, TelemetrySettings

if TYPE_CHECKING:
    from flagsplit.runtime.telemetry.telemetry import Telemetry


def telemetry_of(bundle: Bundle, tier: int, instance: str, settings: TelemetrySettings) -> "Telemetry | None":
    """What watches a tier of a bundle, or None if nothing is wanted; the first tier is a session's.

    Raises:
        ConfigError: the HTTP address is malformed or taken, or the trace file cannot be written.
    """
    if not settings.is_wanted:
        return None
    from flagsplit.runtime.telemetry.telemetry import Telemetry  # only here: it takes a tenth of a second

    role: Literal["session", "worker"] = "session" if tier == 0 else "worker"
    segments = tuple(bundle.segments_of(tier))
    return Telemetry(About(role, bundle.tiers[tier], bundle.tiers, segments, bundle.digest, instance), settings)
