"""The way of one request: which tiers it passes, what runs there, and which tensors each hop carries on.

Made by the session for one plan and the tiers that are alive; workers follow it without knowing the plan. Every tensor
goes over a link at most once per direction, because a tier keeps what it made, received or passed on until the request
is done.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class PlannedStep:
    """One segment of a plan, in execution order.

    Attributes:
        tier: position of the tier that runs it.
        segment: id of the segment.
        inputs: values that it reads.
        outputs: values that it makes.
    """

    tier: int
    segment: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class PlannedHop:
    """A stop of the request.

    Attributes:
        tier: position of the tier.
        segment: id of the segment to run, or "" to pass on.
        carry: values to send to the next stop.
    """

    tier: int
    segment: str
    carry: tuple[str, ...]


def itinerary(
    steps: Sequence[PlannedStep],
    inputs: Collection[str],
    outputs: Sequence[str],
    alive: Collection[int],
    apart: Collection[frozenset[int]] = (),
) -> tuple[PlannedHop, ...]:
    """The stops of a request, from tier 0 and back to it.

    Args:
        steps: the plan's steps in execution order.
        inputs: graph inputs, present at tier 0.
        outputs: graph outputs, wanted at tier 0.
        alive: positions of the tiers that can relay; a dead tier between two stops is passed by directly.
        apart: pairs of tiers that cannot reach each other now; what goes between them goes through tier 0.
    """
    stops = _stops(steps, alive)
    if apart:
        stops = _through_the_first(stops, apart)
    carry: list[dict[str, None]] = [{} for _ in stops]
    holders: dict[str, dict[int, int]] = {name: {0: 0} for name in inputs}
    for index, (tier, step) in enumerate(stops):
        wanted = step.inputs if step is not None else ()
        if index == len(stops) - 1:
            wanted = (*wanted, *(name for name in outputs if step is None or name not in step.outputs))
        for name in wanted:
            _bring(name, index, stops, holders, carry)
        for name in step.outputs if step is not None else ():
            holders.setdefault(name, {}).setdefault(tier, index)
    return tuple(
        PlannedHop(tier, step.segment if step is not None else "", tuple(names))
        for (tier, step), names in zip(stops, carry, strict=True)
    )


_Stop = tuple[int, PlannedStep | None]


def _stops(steps: Sequence[PlannedStep], alive: Collection[int]) -> list[_Stop]:
    stops: list[_Stop] = []
    if not steps or steps[0].tier != 0:
        stops.append((0, None))
    for step in steps:
        if stops:
            stops.extend((tier, None) for tier in _between(stops[-1][0], step.tier) if tier in alive)
        stops.append((step.tier, step))
    if stops[-1][0] != 0:
        stops.extend((tier, None) for tier in _between(stops[-1][0], 0) if tier in alive)
        stops.append((0, None))
    return stops


def _through_the_first(stops: Sequence[_Stop], apart: Collection[frozenset[int]]) -> list[_Stop]:
    """The same stops with one at tier 0 between those that are apart, and without relays that then lead nowhere."""
    found: list[_Stop] = []
    for stop in stops:
        if found and 0 not in (found[-1][0], stop[0]) and frozenset((found[-1][0], stop[0])) in apart:
            _drop_relays(found)
            if found[-1][0] != 0:
                found.append((0, None))
        elif found and stop[0] == 0 and _last_work(found)[0] == 0:
            _drop_relays(found)
        if found and found[-1] == (0, None) and stop[0] == 0:
            found[-1] = stop
        else:
            found.append(stop)
    return found


def _is_relay(stop: _Stop) -> bool:
    return stop[1] is None and stop[0] != 0


def _last_work(stops: Sequence[_Stop]) -> _Stop:
    return next(stop for stop in reversed(stops) if not _is_relay(stop))


def _drop_relays(stops: list[_Stop]) -> None:
    while _is_relay(stops[-1]):
        stops.pop()


def _between(start: int, end: int) -> range:
    return range(start + 1, end) if start < end else range(start - 1, end, -1)


def _bring(
    name: str, index: int, stops: Sequence[_Stop], holders: dict[str, dict[int, int]], carry: list[dict[str, None]]
) -> None:
    """Carry a value to a stop, each time from the latest stop before it whose tier holds the value by then.

    Step by step, because the way may turn back: a tier that got the value on the way out need not get it again.
    """
    held = holders.setdefault(name, {})
    while held.get(stops[index][0], index + 1) > index:
        source = max(i for i in range(index) if held.get(stops[i][0], index) <= i)
        carry[source][name] = None
        held.setdefault(stops[source + 1][0], source + 1)
