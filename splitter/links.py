"""Links between neighboring tiers, and the short text that describes one.

A link joins a tier to the tier *before* it in the line: `--link edge=100mbit/5ms` is the link between `edge` and
whatever stands before `edge`. "Up" is away from the first tier, "down" is back towards it. Named links (`wifi`) come
from the catalogue, see `flagsplit.splitter.devices`.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from flagsplit.errors import PolicyError

_BITS = {"bit": 1.0, "kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_NUMBER = r"(\d+(?:\.\d+)?)"
_FORM = re.compile(
    rf"{_NUMBER}(k|m|g)?bit(?::{_NUMBER}(k|m|g)?bit)?/{_NUMBER}(us|ms|s)(?:/{_NUMBER}%(?::{_NUMBER}%)?)?"
    r"(?:@([a-z0-9][a-z0-9_-]*))?",
    re.ASCII,
)
_HELP = (
    "expected BW/RTT such as '100mbit/5ms', UP:DOWN/RTT such as '20mbit:100mbit/30ms', either with a loss such as "
    "'20mbit/30ms/0.5%', or a name"
)
_SEGMENT_BYTES = 1448
_LEAST_BYTES_PER_S = 1e-200  # seconds per byte stay a number, whatever the loss


@dataclass(frozen=True)
class Link:
    """One link of the relay line.

    Attributes:
        name: the catalogue name, or the text it was parsed from.
        up_bytes_per_s: rate away from the first tier, without loss.
        down_bytes_per_s: rate towards the first tier, without loss.
        rtt_s: round-trip time of a small message; half of it is charged to a message in each direction.
        medium: which radio figures of a phone apply (`wifi`, `lte`, `5g`, ...); wired devices have none.
        source: where the figures come from.
        up_loss, down_loss: share of the packets that are lost, 0 or more and below 1.
    """

    name: str
    up_bytes_per_s: float
    down_bytes_per_s: float
    rtt_s: float
    medium: str = "wifi"
    source: str = "given by the user"
    up_loss: float = 0.0
    down_loss: float = 0.0

    def __post_init__(self) -> None:
        for field in ("up_bytes_per_s", "down_bytes_per_s"):
            value = getattr(self, field)
            if not (math.isfinite(value) and value >= _LEAST_BYTES_PER_S):
                raise PolicyError(f"link {self.name!r}: {field} must be above 0 and finite, got {value}")
        if not (math.isfinite(self.rtt_s) and self.rtt_s >= 0):
            raise PolicyError(f"link {self.name!r}: rtt_s must be 0 or more and finite, got {self.rtt_s}")
        for field in ("up_loss", "down_loss"):
            if not 0 <= getattr(self, field) < 1:
                raise PolicyError(
                    f"link {self.name!r}: {field} must be 0 or more and below 1, got {getattr(self, field)}"
                )

    @property
    def up_s_per_byte(self) -> float:
        """Seconds that a byte takes away from the first tier, loss included."""
        return 1 / _goodput(self.up_bytes_per_s, self.rtt_s, self.up_loss)

    @property
    def down_s_per_byte(self) -> float:
        """Seconds that a byte takes towards the first tier, loss included."""
        return 1 / _goodput(self.down_bytes_per_s, self.rtt_s, self.down_loss)

    @property
    def up_s_per_message(self) -> float:
        """Seconds that a message takes to arrive away from the first tier, beside those of its bytes."""
        return self.rtt_s * (0.5 + 2 * self.up_loss)

    @property
    def down_s_per_message(self) -> float:
        """Seconds that a message takes to arrive towards the first tier, beside those of its bytes."""
        return self.rtt_s * (0.5 + 2 * self.down_loss)


def _goodput(bytes_per_s: float, rtt_s: float, loss: float) -> float:
    """What TCP carries over a link that loses packets.

    Lost packets are sent again; and where the window is what limits, its mean is that of CUBIC (RFC 9438, with beta 0.7
    and C 0.4: 1.054 (rtt/p)^(3/4) segments) or, if larger, of Reno (1.31 / sqrt(p)). A message whose last packet is
    lost waits for the tail loss probe, two round trips (RFC 8985), hence `rtt_s * 2 * loss` above.
    """
    arrived = bytes_per_s * (1 - loss)
    if loss == 0 or rtt_s == 0:
        return arrived
    segments: float = max(1.054 * (rtt_s / loss) ** 0.75, 1.31 / math.sqrt(loss))
    return min(arrived, segments * _SEGMENT_BYTES / rtt_s)


def parse_link(text: str, named: Mapping[str, Link] | None = None) -> Link:
    """Read a link from `BW/RTT`, `UP:DOWN/RTT` (either with an optional `/LOSS%` and `@MEDIUM`) or a name.

    Bandwidth is in bits per second (`kbit`, `mbit`, `gbit`), the round-trip time in `us`, `ms` or `s`, the loss a share
    of the packets (`/0.5%`, or `/0.5%:0.1%` up and down). A link given by figures counts as `wifi` for a phone's radio
    energy unless `@lte` or the like says otherwise.

    Args:
        text: what the user wrote.
        named: links known by name, usually `Catalogue.links`.

    Raises:
        PolicyError: the text has none of the forms, or a bandwidth is zero.
    """
    known = named or {}
    form = text.strip().lower()
    if text.strip() in known or form in known:
        return known.get(text.strip()) or known[form]
    match = _FORM.fullmatch(form)
    if match is None:
        names = ", ".join(sorted(known)) or "none are loaded"
        raise PolicyError(f"link {text!r}: {_HELP} ({names})")
    up, up_unit, down, down_unit, rtt, rtt_unit, up_loss, down_loss, medium = match.groups()
    up_rate = float(up) * _BITS[f"{up_unit or ''}bit"] / 8
    down_rate = up_rate if down is None else float(down) * _BITS[f"{down_unit or ''}bit"] / 8
    lost_up = float(up_loss or 0) / 100
    lost_down = lost_up if down_loss is None else float(down_loss) / 100
    return Link(
        form,
        up_rate,
        down_rate,
        float(rtt) * _SECONDS[rtt_unit],
        medium or "wifi",
        up_loss=lost_up,
        down_loss=lost_down,
    )


def parse_what_if(text: str, link: Link, named: Mapping[str, Link]) -> Link:
    """A link of which only some figures change: `5mbit/80ms` or a name replaces all, `5mbit` or `/80ms` a part.

    Raises:
        PolicyError: the text has none of the forms.
    """
    form = text.strip().lower()
    if text.strip() in named or form in named or "/" in form.strip("/"):
        return parse_link(text, named)
    rtt = f"{link.rtt_s * 1e3:.9f}ms"
    rates = f"{link.up_bytes_per_s * 8:.3f}bit:{link.down_bytes_per_s * 8:.3f}bit"
    found = parse_link(f"{rates}{form}" if form.startswith("/") else f"{form.rstrip('/')}/{rtt}", named)
    return replace(found, name=form, medium=link.medium, up_loss=link.up_loss, down_loss=link.down_loss)
