"""What an application chooses for a session, and what it gets back."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from flagsplit.errors import ConfigError
from flagsplit.runtime.engine import check_slowdown
from flagsplit.runtime.report import Basis, Report
from flagsplit.runtime.session_facts import SessionOptions
from flagsplit.targets.interface import Array, LoadOptions


class Answer(dict[str, Array]):
    """The graph outputs by name, and the report of how they came about.

    Attributes:
        report: where the request ran, what crossed the links, how long it took.
    """

    def __init__(self, outputs: Mapping[str, Array], report: Report) -> None:
        super().__init__(outputs)
        self.report = report


@dataclass(frozen=True)
class SessionSettings:
    """Choices of the application.

    Attributes:
        deadline_s: seconds that a request may take unless it says otherwise.
        connect_s: seconds to wait for the workers at the start.
        max_pending: requests asked and not answered; who asks beyond it waits.
        memory_budget_bytes: how much the segments loaded in this process may hold.
        host: threads and such of the engine.
        machine: window, attempts, heartbeats.
        slowdown: makes this tier so many times as slow, to emulate another device.
        emulated: whether another tier or a link is slowed on purpose; reports then say so, as they do for `slowdown`
            and for workers that say that they are slowed.
        http: HOST:PORT at which to serve metrics, health and stats; port 0 takes a free one, "" serves nothing.
        trace_file: where to append the spans of requests, OTLP in JSON lines; None records none.

    Raises:
        ConfigError: the slow-down is below 1 or no number, or no request may be pending.
    """

    deadline_s: float = 60.0
    connect_s: float = 10.0
    max_pending: int = 64
    memory_budget_bytes: float = 2e9
    host: LoadOptions = field(default_factory=LoadOptions)
    machine: SessionOptions = field(default_factory=SessionOptions)
    slowdown: float = 1.0
    emulated: bool = False
    http: str = ""
    trace_file: Path | None = None

    def __post_init__(self) -> None:
        check_slowdown(self.slowdown)
        if self.max_pending < 1:
            raise ConfigError(f"max_pending: expected 1 or more, came {self.max_pending}; nothing could be asked")

    @property
    def basis(self) -> Basis:
        """What the figures of reports are, as far as this process knows."""
        return "emulated" if self.emulated or self.slowdown > 1 else "measured"
