"""How a worker counts requests: from their announcement to the word that they are over.

A session says Done when it has its answer and Cancel when it wants none. One that vanishes without either, because
its session went away, counts as abandoned. One at which this tier failed counts as failed, and once more when it is
over: another plan may still have answered it.
"""

from collections import OrderedDict
from collections.abc import Collection

from flagsplit.runtime.events import Event, Instruction, Send, Withdraw
from flagsplit.runtime.telemetry.metrics import MachineMetrics
from flagsplit.runtime.telemetry.recent import Recent
from flagsplit.transport.channel import Received
from flagsplit.transport.messages import Cancel, Done, Failed, Open, Reject

_REFUSALS = frozenset({"busy", "draining"})
_MOST_OPEN = 8192


class WorkerMetrics(MachineMetrics):
    """Requests as one worker sees them; arguments as for `MachineMetrics`."""

    def __init__(self, tier: str, tiers: Collection[str], segments: Collection[str], recent: Recent) -> None:
        super().__init__(tier, tiers, segments, recent)
        self._open: OrderedDict[tuple[str, int], tuple[int, float]] = OrderedDict()

    def event(self, event: Event, now: float) -> None:
        """Count an event."""
        super().event(event, now)
        match event:
            case Received(_, Open() as opened):
                _, since = self._open.get((opened.sid, opened.rid), (0, now))
                self._open[opened.sid, opened.rid] = (opened.attempt, since)
                if len(self._open) > _MOST_OPEN:
                    self._open.popitem(last=False)
            case Received(_, Done(sid, rid)):
                self._end(sid, rid, "answered", now)
            case Received(_, Cancel(sid, rid, attempt)) if attempt >= self._open.get((sid, rid), (0, 0.0))[0]:
                self._end(sid, rid, "cancelled", now)

    def instruction(self, instruction: Instruction, now: float) -> None:
        """Count an instruction."""
        super().instruction(instruction, now)
        match instruction:
            case Send(_, Failed() as failed) if failed.tier == self.tier and failed.code in _REFUSALS:
                self._open.pop((failed.sid, failed.rid), None)
                self.request("refused", failed.code)
            case Send(_, Failed() as failed):
                self.failure(failed.tier, failed.code)
                if failed.tier == self.tier:
                    self.request("failed", failed.code)
            case Send(_, Reject(code)):
                self.request("refused", code)
            case Withdraw(_, sid, rid):
                self._end(sid, rid, "abandoned", now)

    def _end(self, sid: str, rid: int, outcome: str, now: float) -> None:
        found = self._open.pop((sid, rid), None)
        if found is not None:
            self.request(outcome)
            if outcome == "answered":
                self.recent.answer(now, now - found[1])
