"""The state of the world, theta: how slow the tiers are now, what the links cost now, who is alive.

A plan's features phi (`flagsplit.splitter.plan`) times the vector of a state is that plan's latency in seconds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from flagsplit.errors import PolicyError
from flagsplit.splitter.links import Link


@dataclass(frozen=True)
class State:
    """One state of K tiers and the K-1 links between them; link i joins tiers i and i+1.

    Attributes:
        slowdown: by tier, factor on its nominal seconds (1 is nominal, 2 is half as fast).
        up_s_per_byte, down_s_per_byte: by link, away from and towards the first tier.
        up_s_per_message, down_s_per_message: by link, half a round trip each unless measured.
        alive: by tier; a dead tier runs nothing. As a relay it is passed by, at the same cost for want of a better one.
    """

    slowdown: tuple[float, ...]
    up_s_per_byte: tuple[float, ...]
    down_s_per_byte: tuple[float, ...]
    up_s_per_message: tuple[float, ...]
    down_s_per_message: tuple[float, ...]
    alive: tuple[bool, ...]

    def __post_init__(self) -> None:
        links = len(self.slowdown) - 1
        parts = (self.up_s_per_byte, self.down_s_per_byte, self.up_s_per_message, self.down_s_per_message)
        if len(self.alive) != links + 1 or any(len(part) != links for part in parts):
            raise PolicyError(f"state: expected {links + 1} tiers and {links} links in every field")
        if not all(math.isfinite(x) and x >= 0 for part in (self.slowdown, *parts) for x in part):
            raise PolicyError("state: every figure must be finite and 0 or more; mark a dead tier in `alive`")

    @classmethod
    def nominal(cls, links: Sequence[Link]) -> "State":
        """Every tier alive and at its nominal speed, every link as described."""
        half = tuple(link.rtt_s / 2 for link in links)
        return cls(
            slowdown=(1.0,) * (len(links) + 1),
            up_s_per_byte=tuple(1 / link.up_bytes_per_s for link in links),
            down_s_per_byte=tuple(1 / link.down_bytes_per_s for link in links),
            up_s_per_message=half,
            down_s_per_message=half,
            alive=(True,) * (len(links) + 1),
        )

    def scaled(self, bandwidth: Sequence[float], rtt: float = 1.0) -> "State":
        """This state with the bandwidth of each link and all round-trip times multiplied."""
        return replace(
            self,
            up_s_per_byte=tuple(s / f for s, f in zip(self.up_s_per_byte, bandwidth, strict=True)),
            down_s_per_byte=tuple(s / f for s, f in zip(self.down_s_per_byte, bandwidth, strict=True)),
            up_s_per_message=tuple(s * rtt for s in self.up_s_per_message),
            down_s_per_message=tuple(s * rtt for s in self.down_s_per_message),
        )

    def vector(self) -> NDArray[np.float64]:
        """Theta in the order of `Features.latency_vector`, shape (5K - 4,)."""
        return np.array(
            self.slowdown + self.up_s_per_byte + self.down_s_per_byte + self.up_s_per_message + self.down_s_per_message
        )
