"""What one request did: where it ran, what crossed the links, how long it took. All figures are of a real run."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from flagsplit.transport.messages import Hop, HopTiming

Basis = Literal["measured", "emulated"]
"""Whether the run was as it was, or on tiers or links that were slowed on purpose."""


@dataclass(frozen=True)
class TierReport:
    """One tier's part of a request.

    Attributes:
        tier: its name.
        segments: ids of the segments that it ran, in order.
        wait_ms: milliseconds that its segments waited for the engine.
        run_ms: milliseconds that the engine ran.
    """

    tier: str
    segments: tuple[str, ...]
    wait_ms: float
    run_ms: float


@dataclass(frozen=True)
class LinkReport:
    """What went from one tier to another.

    Attributes:
        source, target: names of the tiers.
        bytes: of boundary tensors, headers left out.
        messages: how many times the link was crossed.
    """

    source: str
    target: str
    bytes: int
    messages: int


@dataclass(frozen=True)
class Report:
    """A request's story.

    Attributes:
        plan: name of the plan that answered.
        attempts: how many attempts it took; 1 if nothing failed.
        latency_ms: from the submission to the answer.
        tiers: what each tier did, the session's own first.
        links: what crossed each link, in order of first use.
        basis: of the milliseconds.
        epoch: how many bundles and policies the session had before the one that answered.
    """

    plan: str
    attempts: int
    latency_ms: float
    tiers: tuple[TierReport, ...]
    links: tuple[LinkReport, ...]
    basis: Basis = "measured"
    epoch: int = 0

    def to_data(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "plan": self.plan,
            "attempts": self.attempts,
            "latency_ms": self.latency_ms,
            "basis": self.basis,
            "epoch": self.epoch,
            "tiers": [
                {"tier": t.tier, "segments": list(t.segments), "wait_ms": t.wait_ms, "run_ms": t.run_ms}
                for t in self.tiers
            ],
            "links": [
                {"from": link.source, "to": link.target, "bytes": link.bytes, "messages": link.messages}
                for link in self.links
            ],
        }


def make_report(
    plan: str, attempts: int, latency_s: float, route: Sequence[Hop], trace: Sequence[HopTiming], epoch: int = 0
) -> Report:
    """Put a report together from the timings that the hops left.

    Args:
        plan: name of the plan.
        attempts: how many there were.
        latency_s: seconds from submission to answer.
        route: the hops of the attempt that answered.
        trace: one timing per hop, in order.
        epoch: of the session.
    """
    tiers: dict[str, TierReport] = {}
    for timing in trace:
        old = tiers.get(timing.tier, TierReport(timing.tier, (), 0.0, 0.0))
        tiers[timing.tier] = TierReport(
            timing.tier,
            old.segments + ((timing.segment,) if timing.segment else ()),
            old.wait_ms + timing.wait_us / 1000,
            old.run_ms + timing.run_us / 1000,
        )
    links: dict[tuple[str, str], LinkReport] = {}
    for hop, following, timing in zip(route, route[1:], trace, strict=False):
        key = (hop.tier, following.tier)
        before = links.get(key, LinkReport(*key, 0, 0))
        links[key] = LinkReport(*key, before.bytes + timing.bytes_out, before.messages + 1)
    return Report(plan, attempts, latency_s * 1000, tuple(tiers.values()), tuple(links.values()), epoch=epoch)
