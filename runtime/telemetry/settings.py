"""What an operator may ask to be told, and what the one who is watched says of itself."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class TelemetrySettings:
    """Nothing is watched unless asked for.

    Attributes:
        http: HOST:PORT to serve metrics, health and stats at; port 0 takes a free one, "" serves nothing.
        trace_file: where to append spans, OTLP in JSON lines; None records none.
        log: whether what happens to peers and requests is logged.
    """

    http: str = ""
    trace_file: Path | None = None
    log: bool = False

    @property
    def is_wanted(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.http or self.trace_file or self.log)


@dataclass(frozen=True)
class About:
    """Who is watched.

    Attributes:
        role: "session" or "worker".
        tier: its tier.
        tiers: names of all tiers, the session's first.
        segments: ids of the segments of its tier.
        bundle: digest of the bundle.
        instance: names this start of the process.
    """

    role: Literal["session", "worker"]
    tier: str
    tiers: tuple[str, ...]
    segments: tuple[str, ...]
    bundle: str
    instance: str
