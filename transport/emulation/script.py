"""Schedules: which event happens when, for one seed. Pure: times in, steps out, no clock and no proxy.

A `Script` comes from Python or from a JSON file; a trace becomes steps too. The kinds of events are in `events.py`, the
thread that applies steps in `player.py`.
"""

import heapq
import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from flagsplit.errors import ConfigError
from flagsplit.transport.emulation.events import AnyEvent, BringUp, Drop, Event, Heal, Lasting, Partition, Resume, Stall
from flagsplit.transport.emulation.pacer import LinkShape
from flagsplit.transport.emulation.trace import Trace, shapes_at

MOST_EVENTS: Final = 10_000
_MOST_BYTES: Final = 4 << 20
_LONGEST: Final = 400  # characters of a message
_SHORTEST_ROUND_S: Final = 0.01


@dataclass(frozen=True, slots=True)
class SetShapes:
    """A step of a trace: other shapes from now on."""

    up: LinkShape
    down: LinkShape


@dataclass(frozen=True, slots=True)
class Step:
    """What happens, and when, in seconds since the proxy began."""

    at_s: float
    event: AnyEvent | SetShapes


@dataclass(frozen=True, slots=True)
class Script:
    """Events, in any order; those at the same time happen in the order in which they stand.

    Attributes:
        events: what happens.
        loop_s: the length of a round, after which all begins again; None for one round. Spreads are drawn anew.

    Raises:
        ConfigError: a figure is out of range, there are too many events, or an event is not over within the round.
    """

    events: tuple[AnyEvent, ...]
    loop_s: float | None = None

    def __post_init__(self) -> None:
        for index, event in enumerate(self.events):
            if not isinstance(event, Event):
                raise ConfigError(f"events.{index}: expected an event, came {type(event).__name__}")
        plain = {"events": [asdict(event) for event in self.events], "loop_s": self.loop_s}
        _checked(json.dumps({"version": 1, **plain}).encode(), "script")
        for index, event in enumerate(self.events):
            last_s = event.at_s + event.spread_s + ((event.for_s or 0.0) if isinstance(event, Lasting) else 0.0)
            if self.loop_s is not None and last_s > self.loop_s:
                raise ConfigError(
                    f"events.{index}: expected an event that is over within loop_s, {self.loop_s:g} s, "
                    f"came {last_s:g} s; make the round longer"
                )

    def steps(self, seed: int = 0) -> Iterator[Step]:
        """What happens, in the order of time; without end if the script loops."""
        draws = random.Random(f"{seed} script")  # noqa: S311 - no secret
        start_s = 0.0
        while True:
            found = [step for event in self.events for step in _steps_of(event, start_s, draws)]
            yield from sorted(found, key=lambda step: step.at_s)
            if self.loop_s is None or not found:
                return
            start_s += self.loop_s


def _steps_of(event: AnyEvent, start_s: float, draws: random.Random) -> list[Step]:
    at_s = start_s + event.at_s
    if event.spread_s:
        at_s += draws.uniform(0.0, event.spread_s)
    found = [Step(at_s, event)]
    if isinstance(event, Lasting) and event.for_s is not None:
        found.append(Step(at_s + event.for_s, _end_of(event, at_s + event.for_s)))
    return found


def _end_of(event: Lasting, at_s: float) -> AnyEvent:
    match event:
        case Stall():
            return Resume(at_s, way=event.way)
        case Partition():
            return Heal(at_s)
        case Drop():
            return replace(event, at_s=at_s, percent=0.0, for_s=None)
        case _:
            return BringUp(at_s)


def steps_of_trace(trace: Trace, base: LinkShape | None = None) -> Iterator[Step]:
    """A trace as steps, without end; what it does not tell is that of `base`."""
    for point in trace.rounds():
        yield Step(point.at_s, SetShapes(*shapes_at(point, base)))


def merged(schedules: Iterable[Iterator[Step]]) -> Iterator[Step]:
    """Several schedules as one, in the order of time."""
    return heapq.merge(*schedules, key=lambda step: step.at_s)


@dataclass(frozen=True)
class _Document:
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)
    version: Annotated[int, Field(ge=1, le=1)]
    events: Annotated[list[Annotated[AnyEvent, Field(discriminator="do")]], Field(max_length=MOST_EVENTS)]
    loop_s: Annotated[float, Field(ge=_SHORTEST_ROUND_S, le=1e7, allow_inf_nan=False)] | None = None


_ADAPTER: Final = TypeAdapter(_Document)


def load_script(path: Path) -> Script:
    """Read a script from a JSON file.

    Raises:
        ConfigError: it cannot be read, is over 4 MiB, or is no script; one line that names file and field.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read the script {path}: {error.strerror}") from None
    return parse_script(data, str(path))


def parse_script(data: str | bytes, origin: str = "script") -> Script:
    """Read a script from JSON text, such as `{"version": 1, "events": [{"at_s": 2, "do": "reset"}]}`.

    Args:
        data: the text.
        origin: name for error messages, such as the file's path.

    Raises:
        ConfigError: as `load_script`.
    """
    if len(data) > _MOST_BYTES:
        raise ConfigError(f"{origin}: expected a script of at most {_MOST_BYTES} bytes, came more; shorten it")
    document = _checked(data, origin)
    try:
        return Script(tuple(document.events), document.loop_s)
    except ConfigError as error:
        raise ConfigError(f"{origin}: {error}") from None


def _checked(data: str | bytes, origin: str) -> _Document:
    try:
        return _ADAPTER.validate_json(data)
    except ValidationError as error:
        raise ConfigError(f"{origin}: {_first_problem(error)}") from None


def _first_problem(error: ValidationError) -> str:
    problem: Any = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in problem["loc"])[:200]
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "json_invalid":
        return f"expected JSON: {message}"
    came = problem["input"]
    shown = f", came {came!r:.60}" if isinstance(came, str | int | float) and repr(came)[:50] not in message else ""
    text = f"{where}: {message}{shown}" if where else f"{message}{shown}"
    return "".join(each if each.isprintable() else " " for each in text[:_LONGEST])
