"""Links between neighboring tiers, and the short text that describes one.

A link joins a tier to the tier *before* it in the line: `--link edge=100mbit/5ms` is the link between `edge` and
whatever stands before `edge`. "Up" is away from the first tier, "down" is back towards it. Named links (`wifi`) come
from the catalogue, see `flagsplit.splitter.devices`.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from flagsplit.errors import PolicyError

_BITS = {"bit": 1.0, "kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_NUMBER = r"(\d+(?:\.\d+)?)"
_FORM = re.compile(
    rf"{_NUMBER}(k|m|g)?bit(?::{_NUMBER}(k|m|g)?bit)?/{_NUMBER}(us|ms|s)(?:@([a-z0-9][a-z0-9_-]*))?", re.ASCII
)
_HELP = "expected BW/RTT such as '100mbit/5ms', UP:DOWN/RTT such as '20mbit:100mbit/30ms', or a name"


@dataclass(frozen=True)
class Link:
    """One link of the relay line.

    Attributes:
        name: the catalogue name, or the text it was parsed from.
        up_bytes_per_s: goodput away from the first tier.
        down_bytes_per_s: goodput towards the first tier.
        rtt_s: round-trip time of a small message; half of it is charged to a message in each direction.
        medium: which radio figures of a phone apply (`wifi`, `lte`, `5g`, ...); wired devices have none.
        source: where the figures come from.
    """

    name: str
    up_bytes_per_s: float
    down_bytes_per_s: float
    rtt_s: float
    medium: str = "wifi"
    source: str = "given by the user"

    def __post_init__(self) -> None:
        for field in ("up_bytes_per_s", "down_bytes_per_s"):
            value = getattr(self, field)
            if not (math.isfinite(value) and value > 0):
                raise PolicyError(f"link {self.name!r}: {field} must be above 0 and finite, got {value}")
        if not (math.isfinite(self.rtt_s) and self.rtt_s >= 0):
            raise PolicyError(f"link {self.name!r}: rtt_s must be 0 or more and finite, got {self.rtt_s}")


def parse_link(text: str, named: Mapping[str, Link] | None = None) -> Link:
    """Read a link from `BW/RTT`, `UP:DOWN/RTT` (either with an optional `@MEDIUM`) or a name.

    Bandwidth is in bits per second (`kbit`, `mbit`, `gbit`), the round-trip time in `us`, `ms` or `s`. A link given by
    figures counts as `wifi` for a phone's radio energy unless `@lte` or the like says otherwise.

    Args:
        text: what the user wrote.
        named: links known by name, usually `Catalogue.links`.

    Raises:
        PolicyError: the text has none of the forms, or a bandwidth is zero.
    """
    known = named or {}
    form = text.strip().lower()
    if form in known:
        return known[form]
    match = _FORM.fullmatch(form)
    if match is None:
        names = ", ".join(sorted(known)) or "none are loaded"
        raise PolicyError(f"link {text!r}: {_HELP} ({names})")
    up, up_unit, down, down_unit, rtt, rtt_unit, medium = match.groups()
    up_rate = float(up) * _BITS[f"{up_unit or ''}bit"] / 8
    down_rate = up_rate if down is None else float(down) * _BITS[f"{down_unit or ''}bit"] / 8
    return Link(form, up_rate, down_rate, float(rtt) * _SECONDS[rtt_unit], medium or "wifi")
