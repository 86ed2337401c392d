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
    """One state of K tiers and L links: first the K-1 of the line, link i joining tiers i and i+1, then by-passes.

    Attributes:
        slowdown: by tier, factor on its nominal seconds (1 is nominal, 2 is half as fast).
        up_s_per_byte, down_s_per_byte: by link, away from and towards the first tier.
        up_s_per_message, down_s_per_message: by link, half a round trip each unless measured.
        alive: by tier; a dead tier runs nothing. As a relay it is passed by, at the same cost for want of a better one.
        wait_s: by tier, seconds that a request waits for its turn, once where it runs something, not where it is only
            relayed; empty where nobody waits. Only the choice from a pool looks at it, solvers do not.
    """

    slowdown: tuple[float, ...]
    up_s_per_byte: tuple[float, ...]
    down_s_per_byte: tuple[float, ...]
    up_s_per_message: tuple[float, ...]
    down_s_per_message: tuple[float, ...]
    alive: tuple[bool, ...]
    wait_s: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        links = len(self.up_s_per_byte)
        parts = (self.up_s_per_byte, self.down_s_per_byte, self.up_s_per_message, self.down_s_per_message)
        tiers = len(self.slowdown)
        if len(self.alive) != tiers or links < tiers - 1 or any(len(part) != links for part in parts):
            raise PolicyError(f"state: expected {tiers} tiers, and {max(links, tiers - 1)} links in every field")
        if self.wait_s and len(self.wait_s) != tiers:
            raise PolicyError(f"state: expected a wait for each of {tiers} tiers, got {len(self.wait_s)}")
        every = sum((self.slowdown, self.wait_s, *parts), ())
        # The sum is finite if all are: made for every request, so the usual case is to be quick.
        fine = min(every, default=0.0) >= 0 and math.isfinite(sum(every))
        if not fine and not all(math.isfinite(x) and x >= 0 for x in every):
            raise PolicyError("state: every figure must be finite and 0 or more; mark a dead tier in `alive`")

    @classmethod
    def nominal(cls, links: Sequence[Link], bypasses: Sequence[Link] = ()) -> "State":
        """Every tier alive and at its nominal speed, every link as described."""
        every = (*links, *bypasses)
        return cls(
            slowdown=(1.0,) * (len(links) + 1),
            up_s_per_byte=tuple(link.up_s_per_byte for link in every),
            down_s_per_byte=tuple(link.down_s_per_byte for link in every),
            up_s_per_message=tuple(link.up_s_per_message for link in every),
            down_s_per_message=tuple(link.down_s_per_message for link in every),
            alive=(True,) * (len(links) + 1),
        )

    def scaled(self, bandwidth: Sequence[float], rtt: float = 1.0, slowdown: Sequence[float] = ()) -> "State":
        """This state with the bandwidth of each link, all round-trip times and the tiers' slow-downs multiplied."""
        factors = slowdown or (1.0,) * len(self.slowdown)
        return replace(
            self,
            slowdown=tuple(s * f for s, f in zip(self.slowdown, factors, strict=True)),
            up_s_per_byte=tuple(s / f for s, f in zip(self.up_s_per_byte, bandwidth, strict=True)),
            down_s_per_byte=tuple(s / f for s, f in zip(self.down_s_per_byte, bandwidth, strict=True)),
            up_s_per_message=tuple(s * rtt for s in self.up_s_per_message),
            down_s_per_message=tuple(s * rtt for s in self.down_s_per_message),
        )

    def vector(self) -> NDArray[np.float64]:
        """Theta in the order of `Features.latency_vector`, shape (K + 4L,)."""
        return np.array(
            self.slowdown + self.up_s_per_byte + self.down_s_per_byte + self.up_s_per_message + self.down_s_per_message
        )
