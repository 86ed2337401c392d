"""A `/stats` page as a checked value: it comes over the network, so everything has a type and a limit.

Keys that are not known are ignored, so an older `top` can look at a newer worker.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

_Text = Annotated[str, Field(max_length=4096)]
_Count = Annotated[int, Field(ge=0, le=1 << 62)]
_Figure = Annotated[float, Field(allow_inf_nan=False)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Tier(_Part):
    """Whether a tier is there."""

    state: _Text
    reason: _Text = ""
    peers: _Count = 1


class TierEstimate(_Part):
    """What is thought of a tier; None is not known."""

    slowdown: _Figure | None = None
    queue: _Count | None = None
    wait_ms: _Figure | None = None
    held_bytes: _Count | None = None


class LinkEstimate(_Part):
    """What is thought of a link in one direction; loss is a share."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)
    source: Annotated[_Text, Field(alias="from")]
    target: Annotated[_Text, Field(alias="to")]
    mbit_s: _Figure
    rtt_ms: _Figure
    loss: _Figure = 0.0


class Estimates(_Part):
    """The state of the world as it is estimated."""

    tiers: dict[_Text, TierEstimate] = {}
    links: Annotated[list[LinkEstimate], Field(max_length=256)] = []


class Percentiles(_Part):
    """Milliseconds."""

    p50: _Figure | None = None
    p99: _Figure | None = None


Second = tuple[_Count, _Figure | None, _Figure | None]
"""Answers within one second, and the 50th and 99th percentile of their latency in milliseconds."""


class Requests(_Part):
    """What became of requests."""

    totals: dict[_Text, _Count] = {}
    rate_per_s: _Figure = 0.0
    latency_ms: Percentiles = Percentiles()
    series: Annotated[list[Second], Field(max_length=3600)] = []


class PlanFigure(_Part):
    """A plan and its predicted latency."""

    plan: _Text
    predicted_ms: _Figure


class Link(_Part):
    """Payload to and from a tier."""

    tier: _Text
    bytes_in: _Count = 0
    bytes_out: _Count = 0


class Segment(_Part):
    """A segment: what it holds if it is loaded, and its runs."""

    segment: _Text
    resident_bytes: _Count | None = None
    runs: _Count = 0
    run_ms: Percentiles = Percentiles()
    wait_ms: Percentiles = Percentiles()


class Memory(_Part):
    """Loaded segments against what they may hold."""

    resident_bytes: _Count = 0
    budget_bytes: _Count = 0


class Batches(_Part):
    """Runs, and the requests that shared them."""

    runs: _Figure = 0.0
    requests: _Count = 0


class Decision(_Part):
    """Why another plan was taken."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)
    at_unix_s: _Figure
    request: _Count | None = None
    from_plan: Annotated[_Text, Field(alias="from")]
    to_plan: Annotated[_Text, Field(alias="to")]
    reason: _Text = ""
    numbers: dict[_Text, _Figure | None] = {}


class Process(_Part):
    """What the process takes."""

    cpu_s: _Figure | None = None
    rss_bytes: _Count | None = None
    open_fds: _Count | None = None


class Stats(_Part):
    """A page of schema 1 or newer."""

    schema_version: Annotated[int, Field(alias="schema", ge=1)]
    kind: Literal["session", "worker"]
    tier: _Text
    version: _Text = ""
    bundle: _Text = ""
    pid: _Count = 0
    now_unix_s: _Figure = 0.0
    uptime_s: _Figure = 0.0
    ready: bool = False
    not_ready: _Text = ""
    epoch: _Count = 0
    queue: _Count = 0
    flights: _Count = 0
    waiting: _Count = 0
    held_bytes: _Count = 0
    plan: _Text | None = None
    plans: Annotated[list[PlanFigure], Field(max_length=64)] = []
    tiers: dict[_Text, Tier] = {}
    estimates: Estimates = Estimates()
    requests: Requests = Requests()
    links: Annotated[list[Link], Field(max_length=256)] = []
    segments: Annotated[list[Segment], Field(max_length=4096)] = []
    memory: Memory = Memory()
    batches: Batches = Batches()
    decisions: Annotated[list[Decision], Field(max_length=1024)] = []
    process: Process = Process()
