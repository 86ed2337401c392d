"""The thin shell around a state machine: one thread that owns the channel, asks the clock, and does what it is told.

Events come from the channel, from the engine and from other threads; instructions go to the channel and the engine, or
to the callbacks of whoever owns the shell.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol, TypeVar

from flagsplit.errors import ConfigError, InternalError
from flagsplit.runtime.events import (
    Connect,
    Disconnect,
    Event,
    Instruction,
    Leave,
    Run,
    Send,
    Skip,
    Tick,
    Withdraw,
)
from flagsplit.runtime.telemetry.observer import Observer
from flagsplit.transport.channel import Channel, Down

_Answer = TypeVar("_Answer")
WATCHED_TURN_S: Final = 0.25
"""An observer is told at least this often that the thread goes round."""


class Machine(Protocol):
    """A session or a worker."""

    def handle(self, event: Event, now: float) -> list[Instruction]:
        """Take an event, answer with instructions."""

    def next_tick(self) -> float:
        """When it wants a `Tick` at the latest."""


class Computes(Protocol):
    """Where segments run: an `Engine`, or several."""

    def submit(self, run: Run) -> None:
        """Run a segment when its turn comes."""

    def skip(self, token: int) -> None:
        """Do not run what did not begin yet."""

    def stop(self) -> None:
        """Free everything."""


class NoEngine:
    """For machines that run no segments."""

    def submit(self, run: Run) -> None:
        raise InternalError(f"segment {run.segment} was to run where nothing runs")

    def skip(self, token: int) -> None:
        """There is nothing to skip."""

    def stop(self) -> None:
        """There is nothing to free."""


class Shell:
    """Runs a machine on a thread of its own.

    Args:
        machine: the state machine.
        channel: its way to the peers; the shell closes it.
        engine: where its segments run; the shell stops it.
        tell: gets every instruction that is neither for the channel nor for the engine; called on the shell's thread.
        failed: called once if the machine breaks, with the error.
        name: of the thread.
        observer: is shown every event, instruction and turn, on the shell's thread.
    """

    def __init__(
        self,
        machine: Machine,
        channel: Channel,
        engine: Computes,
        tell: Callable[[Instruction], None],
        failed: Callable[[Exception], None],
        name: str,
        observer: Observer | None = None,
    ) -> None:
        self._machine = machine
        self._channel = channel
        self._engine = engine
        self._tell = tell
        self._failed = failed
        self._observer = observer
        self._inbox: deque[Event] = deque()
        self._stopping = False
        self._between = threading.Lock()
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)

    def start(self, first: list[Instruction]) -> None:
        """Do the first instructions, then follow events.

        Raises:
            ConfigError: an address to connect to is wrong; channel and engine are freed then.
        """
        try:
            for instruction in first:
                self._do(instruction)
        except BaseException:
            self._channel.close()
            self._engine.stop()
            raise
        self._thread.start()

    def post(self, event: Event) -> None:
        """Hand an event in, from any thread."""
        self._inbox.append(event)
        self._channel.wake()

    def stop(self) -> None:
        """Say goodbye, end the thread, free channel and engine. A second call does nothing."""
        self._stopping = True
        self._channel.wake()
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait for the thread to end; whether it has."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    @property
    def is_running(self) -> bool:
        """Whether the machine still takes events."""
        return self._thread.is_alive() and not self._stopping

    @property
    def is_current(self) -> bool:
        """Whether the caller runs on the shell's thread, called by whoever owns it, and must not wait for it."""
        return self._thread is threading.current_thread()

    def ask(self, question: Callable[[], _Answer]) -> _Answer:
        """Ask the machine something between two events; from any thread."""
        with self._between:
            return question()

    def _loop(self) -> None:
        try:
            while not self._stopping:
                self._turn()
            self._handle(Leave())
        except Exception as error:  # noqa: BLE001 - whatever breaks here must reach those who wait
            self._failed(error)
        finally:
            self._channel.close()
            self._engine.stop()

    def _turn(self) -> None:
        wait_s = 0.0 if self._inbox else max(0.0, self._machine.next_tick() - time.monotonic())
        if self._observer is not None:
            self._observer.turn(time.monotonic())
            wait_s = min(wait_s, WATCHED_TURN_S)
        for event in self._channel.poll(wait_s):
            self._handle(event)
        while self._inbox:
            self._handle(self._inbox.popleft())
        if time.monotonic() >= self._machine.next_tick():
            self._handle(Tick())

    def _handle(self, event: Event) -> None:
        now = time.monotonic()
        if self._observer is not None:
            self._observer.event(event, now)
        with self._between:
            instructions = self._machine.handle(event, now)
        for instruction in instructions:
            if self._observer is not None:
                self._observer.instruction(instruction, time.monotonic())
            try:
                self._do(instruction)
            except ConfigError as error:
                if not isinstance(instruction, Connect):
                    raise
                self._inbox.append(Down(instruction.peer, str(error)))  # a peer named an address that is none

    def _do(self, instruction: Instruction) -> None:
        match instruction:
            case Send(peer, message):
                self._channel.send(peer, message)
            case Run():
                self._engine.submit(instruction)
            case Skip(token):
                self._engine.skip(token)
            case Connect(peer, address, server_key):
                self._channel.connect(peer, address, server_key=server_key or None)
            case Disconnect(peer):
                self._channel.disconnect(peer)
            case Withdraw(peer, sid, rid):
                self._channel.withdraw(peer, sid, rid)
            case _:
                self._tell(instruction)


def describe(error: Exception) -> InternalError:
    """An unexpected error as one of ours, with what to report."""
    return InternalError(f"flagsplit broke: {type(error).__name__}: {error}; please report this")
