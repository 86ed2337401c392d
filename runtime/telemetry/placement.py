"""Where a worker's runs stand on the session's clock, which no other clock is compared with.

Between the moment when a session sent tensors away and the moment when the answer to them was complete, the workers of
the hops in between each waited and ran for as long as their `HopTiming` says. What is left was spent on the links and
is shared among the crossings in proportion to their bytes, each message counted as `MESSAGE_BYTES` more. So runs and
waits are measured, the sum of all crossings is measured, and the share of each crossing is an estimate.
Should the timings say more than the time that passed, all are shortened alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from flagsplit.transport.messages import HopTiming

MESSAGE_BYTES: Final = 1024


@dataclass(frozen=True)
class Placed:
    """A part of the time between.

    Attributes:
        what: "link" on the way to a hop or home, "wait" or "run" at it.
        hop: position among the hops given; for the way home, their number.
        start_s, end_s: on the session's clock.
    """

    what: Literal["link", "wait", "run"]
    hop: int
    start_s: float
    end_s: float


def place(start_s: float, end_s: float, hops: Sequence[HopTiming]) -> tuple[Placed, ...]:
    """Put the hops between two moments in order, without gaps.

    Args:
        start_s: when the tensors for the first hop were sent.
        end_s: when those of the last hop were here.
        hops: timings of the hops in between, at least one.
    """
    total_s = max(end_s - start_s, 0.0)
    busy_s = sum(hop.wait_us + hop.run_us for hop in hops) / 1e6
    shrink = min(1.0, total_s / busy_s) if busy_s else 1.0
    crossed = [hops[0].bytes_in, *(hop.bytes_out for hop in hops)]
    weight = sum(crossed) + MESSAGE_BYTES * len(crossed)
    links_s = [(total_s - busy_s * shrink) * (size + MESSAGE_BYTES) / weight for size in crossed]
    placed: list[Placed] = []
    now = start_s
    for index, hop in enumerate(hops):
        parts: tuple[tuple[Literal["link", "wait", "run"], float], ...] = (
            ("link", links_s[index]),
            ("wait", hop.wait_us / 1e6 * shrink),
            ("run", hop.run_us / 1e6 * shrink),
        )
        for what, lasts_s in parts:
            placed.append(Placed(what, index, now, now + lasts_s))
            now += lasts_s
    return (*placed, Placed("link", len(hops), now, max(now, end_s)))
