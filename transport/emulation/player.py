"""The thread that makes a schedule happen to a proxy, and a link with all that belongs to it for a `with` statement."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from flagsplit.errors import ConfigError, InternalError
from flagsplit.transport.address import parse_address
from flagsplit.transport.emulation.events import (
    AnyEvent,
    BringUp,
    Corrupt,
    CutAfter,
    Drop,
    HalfClose,
    Heal,
    Partition,
    Profile,
    Reset,
    Resume,
    Shape,
    Stall,
    TakeDown,
)
from flagsplit.transport.emulation.pacer import LinkShape
from flagsplit.transport.emulation.profiles import LinkProfile, parse_profile
from flagsplit.transport.emulation.proxy import ShapingProxy
from flagsplit.transport.emulation.script import Script, SetShapes, Step, merged, steps_of_trace
from flagsplit.transport.emulation.trace import Trace

FREE = LinkProfile("free", LinkShape(float("inf")), LinkShape(float("inf")))
"""A link that changes nothing, what a script begins with unless something else is said."""


def apply(event: AnyEvent | SetShapes, proxy: ShapingProxy) -> None:
    """Make one event happen, now."""
    match event:
        case SetShapes(up, down):
            proxy.set_shapes(up, down)
        case Shape(link=text) | Profile(name=text):
            profile = parse_profile(text)
            proxy.set_shapes(profile.up, profile.down)
        case Stall():
            proxy.stall(event.way)
        case Resume():
            proxy.resume(event.way)
        case Partition():
            proxy.partition()
        case Heal():
            proxy.heal()
        case TakeDown():
            proxy.take_down()
        case BringUp():
            proxy.bring_up()
        case Drop():
            proxy.drop_new(event.percent / 100)
        case Reset():
            proxy.cut()
        case HalfClose():
            proxy.half_close(event.way)
        case CutAfter():
            proxy.cut_after(event.bytes, event.way)
        case Corrupt():
            proxy.corrupt(event.byte, event.way)
        case _:
            raise InternalError(f"no such event: {event!r}")


class Player:
    """Makes the steps of a schedule happen, each at its time or as soon after as the host allows, in their order.

    Use it in a `with` statement; it ends with it, or with the schedule.

    Args:
        proxy: what they happen to.
        steps: in the order of time, from now on; may be without end.
        told: called after each step, on the player's thread.
    """

    def __init__(
        self, proxy: ShapingProxy, steps: Iterator[Step], told: Callable[[Step], None] = lambda _step: None
    ) -> None:
        self._proxy, self._steps, self._told = proxy, steps, told
        self._ended = threading.Event()
        self._started_at = time.monotonic()
        self._thread = threading.Thread(target=self._play, name="flagsplit-script", daemon=True)

    def _play(self) -> None:
        for step in self._steps:
            if self._ended.wait(max(0.0, self._started_at + step.at_s - time.monotonic())):
                return
            apply(step.event, self._proxy)
            self._told(step)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()


@contextmanager
def emulated_link(
    address: str,
    link: str | LinkProfile | Trace | Script,
    seed: int = 0,
    *,
    script: Script | None = None,
    listen: tuple[str, int] = ("127.0.0.1", 0),
    told: Callable[[Step], None] = lambda _step: None,
) -> Iterator[ShapingProxy]:
    """A proxy in front of an address, with what happens to it.

    Args:
        address: the target, `tcp://HOST:PORT`.
        link: how the link is: a profile or its name or text, a trace to replay, or a script.
        seed: of all that is drawn.
        script: what happens to it besides.
        listen: host and port to listen at; by default a free port of 127.0.0.1.
        told: called after each step of the trace and the scripts, on a thread of its own.

    Raises:
        ConfigError: the address or the text is wrong, or it cannot listen there.
    """
    target = parse_address(address)
    if target.port is None:
        raise ConfigError(f"address {address!r}: expected tcp://HOST:PORT, only TCP can be emulated")
    start = parse_profile(link) if isinstance(link, str) else link if isinstance(link, LinkProfile) else FREE
    schedules = [steps_of_trace(link)] if isinstance(link, Trace) else []
    schedules += [each.steps(seed) for each in (link, script) if isinstance(each, Script)]
    steps = merged(schedules)
    with ShapingProxy(target.host_or_path, target.port, start.up, start.down, seed=seed, listen=listen) as proxy:
        first = _before_anyone_comes(steps, proxy, told)
        with Player(proxy, first, told):
            yield proxy


def _before_anyone_comes(steps: Iterator[Step], proxy: ShapingProxy, told: Callable[[Step], None]) -> Iterator[Step]:
    """Apply the steps at time 0, so that the first connection meets them; the rest."""
    for step in steps:
        if step.at_s > 0:
            return _with_first(step, steps)
        apply(step.event, proxy)
        told(step)
    return iter(())


def _with_first(first: Step, rest: Iterator[Step]) -> Iterator[Step]:
    yield first
    yield from rest
