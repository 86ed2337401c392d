"""How a session counts requests: what the application asked, and what it got."""

from collections.abc import Collection

from flagsplit.errors import FlagsplitError
from flagsplit.runtime.events import Abandon, Deliver, Event, Fail, Instruction
from flagsplit.runtime.report import Report
from flagsplit.runtime.telemetry.labels import BoundedLabel
from flagsplit.runtime.telemetry.metrics import MachineMetrics
from flagsplit.runtime.telemetry.recent import Recent
from flagsplit.transport.channel import Received
from flagsplit.transport.messages import Failed

_LATENCIES = (0.001, 0.003, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 3.0, 10.0, 30.0)
_ATTEMPTS = (1, 2, 3, 4, 8, 16)


class SessionMetrics(MachineMetrics):
    """Requests as the session sees them; arguments as for `MachineMetrics`.

    Attributes:
        plan: name of the plan that answered last, "" before the first answer.
    """

    def __init__(self, tier: str, tiers: Collection[str], segments: Collection[str], recent: Recent) -> None:
        super().__init__(tier, tiers, segments, recent)
        self.plan = ""
        self._plan = BoundedLabel()
        self._abandoned: set[int] = set()
        self.answers = self._counter("answers", "Answers by the plan that made them.", "plan")
        self.request_s = self._histogram("request_seconds", "From the submission to the answer.", _LATENCIES)
        self.attempts = self._histogram("request_attempts", "Attempts until the answer.", _ATTEMPTS)

    def event(self, event: Event, now: float) -> None:
        """Count an event."""
        super().event(event, now)
        match event:
            case Abandon(rid):
                self._abandoned.add(rid)
                self.request("cancelled")
            case Received(_, Failed() as failed):
                self.failure(failed.tier, failed.code)

    def instruction(self, instruction: Instruction, now: float) -> None:
        """Count an instruction."""
        super().instruction(instruction, now)
        match instruction:
            case Deliver(_, _, report):
                self._answered(report, now)
            case Fail(rid, error):
                if rid not in self._abandoned:
                    self.request("failed", _code(error))

    def turn(self, now: float) -> None:  # noqa: ARG002 - an observer is told the time
        """What was abandoned has had its last word."""
        self._abandoned.clear()

    def _answered(self, report: Report, now: float) -> None:
        self.request("answered")
        self.plan = report.plan
        self.answers.labels(self._plan(report.plan)).inc()
        self.request_s.observe(report.latency_ms / 1e3)
        self.attempts.observe(report.attempts)
        self.recent.answer(now, report.latency_ms / 1e3)


def _code(error: FlagsplitError) -> str:
    return type(error).__name__.removesuffix("Error").lower()
