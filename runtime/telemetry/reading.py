"""Taking a machine's figures. Runs on the shell's thread, where the machine is at rest."""

from collections.abc import Callable
from typing import Literal

from flagsplit.runtime.relay import Relay
from flagsplit.runtime.telemetry.stats import SessionStats, Stats, WorkerStats


def machine_stats(machine: Relay, role: Literal["session", "worker"]) -> Stats:
    """What a machine says of itself or, if it has no `figures`, what any tier's relay is known to hold."""
    own: Callable[[], Stats] | None = getattr(machine, "figures", None)
    if own is not None:
        return own()
    held_bytes = sum(flight.held_bytes for flight in machine.flights.values())
    if role == "worker":
        return WorkerStats(machine.waiting_runs, len(machine.flights), held_bytes)
    return SessionStats(machine.waiting_runs, 0, len(machine.flights), held_bytes)
