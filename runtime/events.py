"""What goes into a state machine and what comes out of it.

The session and the worker are pure: they take events and the time, and answer with instructions. Sockets, threads and
clocks are in `flagsplit.runtime.shell`, which also turns channel events into calls; fakes are in
`flagsplit.runtime.testing`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from flagsplit.errors import FlagsplitError
from flagsplit.runtime.bundle_events import BundleEvent, BundleInstruction
from flagsplit.runtime.decisions import Decision
from flagsplit.runtime.generation.stream_events import StreamEvent, StreamInstruction
from flagsplit.runtime.report import Report
from flagsplit.runtime.session_facts import SessionFacts
from flagsplit.targets.interface import Array
from flagsplit.transport.channel import Acked, Down, Received, Up, Violated
from flagsplit.transport.messages import Message


@dataclass(frozen=True)
class Ran:
    """A segment ran, or failed to.

    Attributes:
        token: of the `Run` that asked for it.
        outputs: its results, or None.
        error: why it failed, "" if it did not.
        wait_us: microseconds between the asking and the start.
        run_us: microseconds of the run itself.
        batch: how many requests ran together.
        is_input: whether it failed because of the tensors, so that it would anywhere.
    """

    token: int
    outputs: Mapping[str, Array] | None
    error: str = ""
    wait_us: int = 0
    run_us: int = 0
    batch: int = 1
    is_input: bool = False


@dataclass(frozen=True)
class Submit:
    """The application asks for an answer.

    Attributes:
        rid: its number, never used before in this session.
        inputs: one array per graph input; nobody changes them any more.
        deadline: time by which it must be answered.
        plan: name of the plan wanted, or "" for the best.
        traceparent: the trace that it belongs to, as in W3C Trace Context, or "".
    """

    rid: int
    inputs: Mapping[str, Array]
    deadline: float
    plan: str = ""
    traceparent: str = ""


@dataclass(frozen=True)
class Abandon:
    """The application does not want the answer any more."""

    rid: int


@dataclass(frozen=True)
class Adopt:
    """From now on answer by another bundle, or the same under another policy, as soon as the workers are ready.

    Attributes:
        facts: of the bundle and its policy.
    """

    facts: SessionFacts


@dataclass(frozen=True)
class Tick:
    """Time passed."""


@dataclass(frozen=True)
class Leave:
    """Say goodbye to everybody; nothing follows."""


@dataclass(frozen=True)
class BeginDrain:
    """Finish what is here, take nothing new, then end. The reason is told to the peers."""

    reason: str


Event = (
    Up
    | Down
    | Received
    | Violated
    | Acked
    | Ran
    | Submit
    | Abandon
    | Adopt
    | Tick
    | Leave
    | BeginDrain
    | BundleEvent
    | StreamEvent
)


@dataclass(frozen=True)
class Send:
    """Send a message, or drop it if the peer is gone."""

    peer: str
    message: Message


@dataclass(frozen=True)
class Run:
    """Run a segment; a `Ran` with the same token follows.

    Attributes:
        token: names this run.
        segment: id of the segment.
        inputs: its inputs.
        bundle: digest of the bundle that has it.
        client: who asked, so that nobody waits for another's many requests.
        deadline: time after which nobody wants the result.
    """

    token: int
    segment: str
    inputs: Mapping[str, Array] = field(repr=False)
    bundle: str = ""
    client: str = ""
    deadline: float = math.inf


@dataclass(frozen=True)
class Skip:
    """Nobody waits for a run any more; its `Ran` still follows, at once if it did not begin yet."""

    token: int


@dataclass(frozen=True)
class Connect:
    """Connect to a peer and keep at it."""

    peer: str
    address: str
    server_key: str


@dataclass(frozen=True)
class Disconnect:
    """Forget a peer."""

    peer: str


@dataclass(frozen=True)
class Withdraw:
    """Drop what is queued for a peer on behalf of a request."""

    peer: str
    sid: str
    rid: int


@dataclass(frozen=True)
class Deliver:
    """Give the application its answer."""

    rid: int
    outputs: Mapping[str, Array] = field(repr=False)
    report: Report


@dataclass(frozen=True)
class Fail:
    """Tell the application that there will be no answer."""

    rid: int
    error: FlagsplitError


@dataclass(frozen=True)
class TierChanged:
    """A tier came, went, refused us or is about to go; `state` is "up", "down", "refused" or "draining"."""

    tier: str
    state: str
    reason: str = ""


@dataclass(frozen=True)
class Decided:
    """Another plan is followed, by all or by one request, with the reason and its numbers."""

    decision: Decision


@dataclass(frozen=True)
class Adopted:
    """New requests are answered by this bundle and policy from now on; `without` are the tiers that do not serve it."""

    epoch: int
    bundle: str
    without: tuple[str, ...] = ()


@dataclass(frozen=True)
class Released:
    """No request needs a bundle any more: what was loaded for it can go."""

    bundle: str


@dataclass(frozen=True)
class Superseded:
    """A worker says that it will stop to serve a bundle, and what takes its place."""

    tier: str
    bundle: str
    successor: str


@dataclass(frozen=True)
class Note:
    """Something worth a line in the log."""

    text: str


@dataclass(frozen=True)
class Pause:
    """Take no data from a peer until it is let go on."""

    peer: str
    paused: bool


@dataclass(frozen=True)
class Ended:
    """The machine has nothing left to do; only `Leave` may follow."""

    reason: str


Instruction = (
    Send
    | Run
    | Skip
    | Connect
    | Disconnect
    | Withdraw
    | Deliver
    | Fail
    | TierChanged
    | Decided
    | Adopted
    | Released
    | Superseded
    | Note
    | Pause
    | Ended
    | BundleInstruction
    | StreamInstruction
)
