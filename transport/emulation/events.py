"""What can happen to an emulated link, as data. `script.py` puts events in order, `player.py` makes them happen."""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, ConfigDict, Field

from flagsplit.errors import ConfigError
from flagsplit.transport.emulation.profiles import PROFILES, parse_profile
from flagsplit.transport.emulation.proxy import Way

_MOST_BYTES = 1 << 50
_LONGEST_S = 1e7


def _known(name: str) -> str:
    if name not in PROFILES:
        raise ValueError(f"expected one of {', '.join(PROFILES)}")
    return name


def _readable(text: str) -> str:
    try:
        parse_profile(text)
    except ConfigError as error:
        raise ValueError(str(error)) from None
    return text


_Time = Annotated[float, Field(ge=0, le=_LONGEST_S, allow_inf_nan=False)]
_Span = Annotated[float, Field(gt=0, le=_LONGEST_S, allow_inf_nan=False)]
_Bytes = Annotated[int, Field(ge=0, le=_MOST_BYTES)]
_Percent = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
_Link = Annotated[str, Field(max_length=100), AfterValidator(_readable)]
_Name = Annotated[str, Field(max_length=100), AfterValidator(_known)]


@dataclass(frozen=True)
class Event:
    """Something that happens at a time.

    Attributes:
        at_s: seconds since the proxy, or the round of the script, began.
        spread_s: up to so much later, drawn by the seed.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)
    at_s: _Time
    spread_s: _Time = field(default=0.0, kw_only=True)


@dataclass(frozen=True)
class Lasting(Event):
    """Something that ends by itself after `for_s` seconds, if that is given."""

    for_s: _Span | None = field(default=None, kw_only=True)


@dataclass(frozen=True, kw_only=True)
class Shape(Event):
    """Another link from now on, as a text such as `2mbit/200ms/40ms/2%`."""

    do: Literal["shape"] = "shape"
    link: _Link


@dataclass(frozen=True, kw_only=True)
class Profile(Event):
    """Another link from now on, one of those with a name."""

    do: Literal["profile"] = "profile"
    name: _Name


@dataclass(frozen=True, kw_only=True)
class Stall(Lasting):
    """Nothing moves that way; new connections are accepted."""

    do: Literal["stall"] = "stall"
    way: Way = "both"


@dataclass(frozen=True, kw_only=True)
class Resume(Event):
    """The end of a stall."""

    do: Literal["resume"] = "resume"
    way: Way = "both"


@dataclass(frozen=True, kw_only=True)
class Partition(Lasting):
    """A black hole: nothing moves, nobody is told, new connections hang."""

    do: Literal["partition"] = "partition"


@dataclass(frozen=True, kw_only=True)
class Heal(Event):
    """The end of a partition."""

    do: Literal["heal"] = "heal"


@dataclass(frozen=True, kw_only=True)
class TakeDown(Lasting):
    """Every connection is reset, and each new one at once."""

    do: Literal["down"] = "down"


@dataclass(frozen=True, kw_only=True)
class BringUp(Event):
    """Connections are accepted again."""

    do: Literal["up"] = "up"


@dataclass(frozen=True, kw_only=True)
class Drop(Lasting):
    """That share of new connections is reset at once, drawn by the proxy's seed."""

    do: Literal["drop"] = "drop"
    percent: _Percent


@dataclass(frozen=True, kw_only=True)
class Reset(Event):
    """Every connection is reset; new ones are accepted."""

    do: Literal["reset"] = "reset"


@dataclass(frozen=True, kw_only=True)
class HalfClose(Event):
    """One direction of every connection ends, as if its sender had no more to say."""

    do: Literal["half_close"] = "half_close"
    way: Way


@dataclass(frozen=True, kw_only=True)
class CutAfter(Event):
    """The connection that would carry the byte after so many more that way is reset; those before it arrive."""

    do: Literal["cut_after"] = "cut_after"
    way: Way
    bytes: _Bytes


@dataclass(frozen=True, kw_only=True)
class Corrupt(Event):
    """All bits of the byte after so many more that way are inverted."""

    do: Literal["corrupt"] = "corrupt"
    way: Way
    byte: _Bytes


AnyEvent = (
    Shape
    | Profile
    | Stall
    | Resume
    | Partition
    | Heal
    | TakeDown
    | BringUp
    | Drop
    | Reset
    | HalfClose
    | CutAfter
    | Corrupt
)
