"""What a worker's or a session's machine says of itself when it is asked: plain figures, taken on the shell's thread.

Gauges and `/stats` read these (`metrics.py`, `snapshot.py`); what happens in between is counted by watching events
(`observer.py`). Every field has a default, so that a machine fills in what it has.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol


class DecisionLike(Protocol):
    """Why another plan was taken: an entry of the session's decision log."""

    @property
    def at_s(self) -> float:
        """When, on the session's monotonic clock."""

    @property
    def rid(self) -> int | None:
        """The request that it was for, or None if for all that follow."""

    @property
    def from_plan(self) -> str:
        """Name of the plan before."""

    @property
    def to_plan(self) -> str:
        """Name of the plan from then on."""

    @property
    def reason(self) -> str:
        """Why, in a few words; the same words for the same reason, because switches are counted by it."""

    @property
    def numbers(self) -> Mapping[str, float]:
        """The figures that led to it, by name with unit."""


@dataclass(frozen=True)
class PeerStats:
    """A tier as seen from here.

    Attributes:
        tier: its name.
        state: "up", "down", "refused" or "draining".
        reason: why it is not up, "" if it is.
        count: how many peers of that tier are connected; sessions before a worker are many.
        queue: requests that wait there, as it said last.
        wait_s: how long a new run would wait there, as it said last.
        held_bytes: tensors that it holds, as it said last.
        slowdown: factor on its nominal times, as estimated; 1 is nominal. None here and above: not known.
        credit_paused: whether data for it waits for credit.
    """

    tier: str
    state: str
    reason: str = ""
    count: int = 1
    queue: int | None = None
    wait_s: float | None = None
    held_bytes: int | None = None
    slowdown: float | None = None
    credit_paused: bool = False


@dataclass(frozen=True)
class LinkStats:
    """A link in one direction, as estimated.

    Attributes:
        source, target: names of the tiers.
        bytes_per_s: what it carries.
        rtt_s: round trip of a short message.
        loss: share of packets lost, 0 to 1.
    """

    source: str
    target: str
    bytes_per_s: float
    rtt_s: float
    loss: float = 0.0


@dataclass(frozen=True)
class PlanStats:
    """A plan at the state of now.

    Attributes:
        plan: its name.
        predicted_s: seconds that a request would take.
    """

    plan: str
    predicted_s: float


@dataclass(frozen=True)
class WorkerStats:
    """A worker's machine.

    Attributes:
        queue: runs asked for that are not back.
        flights: requests held.
        held_bytes: of their tensors, those announced included.
        draining: whether nothing new is taken.
        epoch: the newest heard of.
        peers: tiers and sessions around it.
        links: what it measured of links away from it.
    """

    queue: int = 0
    flights: int = 0
    held_bytes: int = 0
    draining: bool = False
    epoch: int = 0
    peers: tuple[PeerStats, ...] = ()
    links: tuple[LinkStats, ...] = ()


@dataclass(frozen=True)
class SessionStats:
    """A session's machine.

    Attributes:
        queue: runs asked for that are not back, on the session's own tier.
        waiting: requests that wait for room in the window.
        flights: requests on their way.
        held_bytes: of their tensors.
        epoch: of now.
        plans: the plan in use first, then the runner-up, at the state of now.
        peers: the workers.
        links: estimates in both directions.
        slowdown: factor on the nominal times of the session's own tier.
        decisions: the newest last; the log may be bounded.
        switches: how often a plan was left since the start, by reason.
    """

    queue: int = 0
    waiting: int = 0
    flights: int = 0
    held_bytes: int = 0
    epoch: int = 0
    plans: tuple[PlanStats, ...] = ()
    peers: tuple[PeerStats, ...] = ()
    links: tuple[LinkStats, ...] = ()
    slowdown: float | None = None
    decisions: tuple[DecisionLike, ...] = ()
    switches: Mapping[str, int] = field(default_factory=dict)


Stats = WorkerStats | SessionStats


@dataclass(frozen=True)
class EngineStats:
    """An engine's segments.

    Attributes:
        resident_bytes: by segment that is loaded, an estimate of what it holds.
        budget_bytes: what they may hold together.
    """

    resident_bytes: Mapping[str, float] = field(default_factory=dict)
    budget_bytes: float = 0.0
