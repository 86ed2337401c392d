"""Links by name, and the short text that describes one: `lte`, or `20mbit/50ms/8ms/0.5%`.

The text is that of `flagsplit.splitter.links` with a jitter added, so that what plans are made for can be emulated as
it stands: the first time is the round trip, of which each way gets half.
"""

import re
from dataclasses import dataclass
from typing import Final

from flagsplit.errors import ConfigError
from flagsplit.transport.emulation.pacer import LinkShape

_BITS: Final = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}
_SECONDS: Final = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_NUMBER = r"(\d{1,12}(?:\.\d{1,12})?)"
_FORM: Final = re.compile(
    rf"{_NUMBER}(k|m|g)?bit(?::{_NUMBER}(k|m|g)?bit)?/{_NUMBER}(us|ms|s)(?:/{_NUMBER}(us|ms|s))?"
    rf"(?:/{_NUMBER}%(?::{_NUMBER}%)?)?(?:@[a-z0-9][a-z0-9_-]*)?",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class LinkProfile:
    """A link in both directions.

    Attributes:
        name: what it is called, or the text that it was read from.
        up, down: away from whoever connects, and back.
    """

    name: str
    up: LinkShape
    down: LinkShape


def _same_both_ways(name: str, mbit: float, delay_ms: float, jitter_ms: float, loss_percent: float) -> LinkProfile:
    shape = LinkShape(mbit * 1e6 / 8, delay_ms / 1e3, jitter_ms / 1e3, loss_percent / 100)
    return LinkProfile(name, shape, shape)


PROFILES: Final = {
    profile.name: profile
    for profile in (
        _same_both_ways("wifi", 100, 3, 2, 0.1),
        _same_both_ways("lte", 20, 25, 8, 0.5),
        _same_both_ways("5g", 200, 8, 3, 0.1),
        _same_both_ways("bad", 2, 100, 40, 2),
    )
}
"""What there is by name: Mbit/s, milliseconds one way, jitter in milliseconds, per cent of packets lost.

Estimates of what such links are on an ordinary day, not of the best that they can do.
"""


def parse_profile(text: str) -> LinkProfile:
    """Read a link: a name, or `BW/RTT`, `UP:DOWN/RTT`, either with `/JITTER`, `/LOSS%` and `@MEDIUM` behind it.

    Bandwidth is in bits per second (`kbit`, `mbit`, `gbit`), times are in `us`, `ms` or `s`, the loss a share of the
    packets (`/0.5%`, or `/0.5%:0.1%` up and down). The medium says nothing here.

    Raises:
        ConfigError: the text has none of the forms, or a figure is out of range.
    """
    form = text.strip().lower()
    if form in PROFILES:
        return PROFILES[form]
    match = _FORM.fullmatch(form)
    if match is None:
        raise ConfigError(
            f"link {text[:60]!r}: expected BW/RTT such as '20mbit/50ms', UP:DOWN/RTT such as '20mbit:100mbit/30ms', "
            f"with a jitter and a loss such as '20mbit/50ms/8ms/0.5%', or a name ({', '.join(PROFILES)})"
        )
    up, up_unit, down, down_unit, rtt, rtt_unit, jitter, jitter_unit, up_loss, down_loss = match.groups()
    delay_s = float(rtt) * _SECONDS[rtt_unit] / 2
    jitter_s = float(jitter) * _SECONDS[jitter_unit] if jitter else 0.0
    rates = [float(up) * _BITS[up_unit or ""] / 8]
    rates.append(rates[0] if down is None else float(down) * _BITS[down_unit or ""] / 8)
    losses = [float(up_loss or 0) / 100, float(down_loss or up_loss or 0) / 100]
    if 0 in rates:
        raise ConfigError(f"link {text!r}: expected a bandwidth above 0")
    try:
        shapes = [LinkShape(rate, delay_s, jitter_s, loss) for rate, loss in zip(rates, losses, strict=True)]
    except ConfigError as error:
        raise ConfigError(f"link {text!r}: {error}") from None
    return LinkProfile(form, *shapes)
