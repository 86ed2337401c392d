"""Watching a machine from outside: the shell shows an observer every event, every instruction and every turn.

All calls come on the shell's thread, in order. An observer only looks; if it breaks, it is left out from then on and
the machine goes on, because what watches must not end what is watched.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from flagsplit.runtime.events import Event, Instruction

_log = logging.getLogger(__name__)


class Observer(Protocol):
    """Looks at a machine's events and instructions; times are seconds on the machine's clock."""

    def event(self, event: Event, now: float) -> None:
        """The machine is about to take an event."""

    def instruction(self, instruction: Instruction, now: float) -> None:
        """The machine said what to do."""

    def turn(self, now: float) -> None:
        """The shell goes round; comes at least every `shell.WATCHED_TURN_S` seconds."""


class Observers:
    """Several observers as one."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = list(observers)

    def event(self, event: Event, now: float) -> None:
        """Show an event to all."""
        self._each(lambda observer: observer.event(event, now))

    def instruction(self, instruction: Instruction, now: float) -> None:
        """Show an instruction to all."""
        self._each(lambda observer: observer.instruction(instruction, now))

    def turn(self, now: float) -> None:
        """Tell all that the shell went round."""
        self._each(lambda observer: observer.turn(now))

    def _each(self, show: Callable[[Observer], None]) -> None:
        for observer in tuple(self._observers):
            try:
                show(observer)
            except Exception:  # noqa: BLE001 - what watches must not end what is watched
                self._observers.remove(observer)
                _log.exception("%s broke and watches no longer; please report this", type(observer).__name__)
