"""When one direction of an emulated link takes bytes, and when they come out: arithmetic on times, no sockets.

A link sends at a fixed rate, delays what it sent, and buffers little; bytes that do not fit wait at the sender. A
packet that is lost holds its connection up until it would have been sent again. The proxy that moves real bytes by
these times is in `proxy.py`.
"""

import math
import random
from dataclasses import dataclass
from typing import Final

from flagsplit.errors import ConfigError

PACKET_BYTES: Final = 1448
"""What TCP puts into one Ethernet frame."""

_BUFFER_S: Final = 0.01
_QUANTUM_S: Final = 0.001
_MOST_PACKETS: Final = 45  # of a piece: just under 64 KiB
_LEAST_TIMEOUT_S: Final = 0.2


@dataclass(frozen=True, slots=True)
class LinkShape:
    """What one direction of a link does to bytes.

    Attributes:
        bytes_per_s: its rate; `math.inf` does not limit it, at 0 it takes nothing.
        delay_s: seconds that a byte is under way after it was sent, one way.
        jitter_s: up to so many seconds more, drawn evenly for each piece; the order of bytes stays.
        loss: share of the packets of 1,448 bytes that are lost, 0 or more and below 1. Each holds its connection up for
            `timeout_s`, in this direction.

    Raises:
        ConfigError: a figure is negative, too large or no number.
    """

    bytes_per_s: float
    delay_s: float = 0.0
    jitter_s: float = 0.0
    loss: float = 0.0

    def __post_init__(self) -> None:
        if not self.bytes_per_s >= 0:
            raise ConfigError(f"bytes_per_s of a link: expected a rate, 0 or more, came {self.bytes_per_s}")
        for name in ("delay_s", "jitter_s"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"{name} of a link: expected seconds, 0 or more, came {value}")
        if not 0 <= self.loss < 1:
            raise ConfigError(f"loss of a link: expected a share, 0 or more and below 1, came {self.loss}")

    @property
    def quantum_bytes(self) -> int:
        """The most that the link takes in one piece: whole packets, about a millisecond of its rate."""
        packets = min(self.bytes_per_s * _QUANTUM_S / PACKET_BYTES, _MOST_PACKETS)
        return max(round(packets), 1) * PACKET_BYTES

    @property
    def timeout_s(self) -> float:
        """Seconds until a lost packet is sent again.

        The retransmission time-out of RFC 6298, the mean round trip and four times its mean deviation, where the way
        back is like this one; the second is 0.2 s at least, as in Linux.
        """
        return 2 * self.delay_s + self.jitter_s + max(_LEAST_TIMEOUT_S, 4 * self.jitter_s / 3)

    @property
    def goodput_bytes_per_s(self) -> float:
        """What one connection that always has more to send gets through, on the average, losses included."""
        if self.bytes_per_s == 0:
            return 0.0
        piece_s = self.quantum_bytes / self.bytes_per_s
        held_s = self.lost(self.quantum_bytes) * self.timeout_s
        return self.quantum_bytes / (piece_s + held_s) if piece_s + held_s else math.inf

    def lost(self, size_bytes: int) -> float:
        """How probable it is that a piece of so many bytes loses a packet."""
        return 0.0 if self.loss == 0 else 1 - float((1 - self.loss) ** math.ceil(size_bytes / PACKET_BYTES))


class Pacer:
    """One direction of a link.

    Args:
        shape: what it does.
        draws: where jitter and losses come from.
    """

    def __init__(self, shape: LinkShape, draws: random.Random) -> None:
        self._draws = draws
        self._free_at = -math.inf
        self.shape = shape

    @property
    def shape(self) -> LinkShape:
        """What it does to bytes taken from now on; those under way keep their times."""
        return self._shape

    @shape.setter
    def shape(self, shape: LinkShape) -> None:
        self._shape = shape
        self.quantum_bytes = shape.quantum_bytes
        quantum_s = self.quantum_bytes / shape.bytes_per_s if shape.bytes_per_s else 0.0
        self._ahead_s = max(_BUFFER_S, 2 * quantum_s) - quantum_s

    @property
    def free_at(self) -> float:
        """When all that was taken so far is sent, in seconds on the caller's clock."""
        return self._free_at

    def takes_from(self) -> float:
        """When there is room in the buffer for `quantum_bytes` more, in seconds on the caller's clock."""
        return self._free_at - self._ahead_s if self._shape.bytes_per_s else math.inf

    def take(self, size_bytes: int, now: float) -> float:
        """Take bytes; the time at which the last of them comes out."""
        if size_bytes:
            self._free_at = max(now, self._free_at) + size_bytes / self._shape.bytes_per_s
        sent_at = max(now, self._free_at)
        return sent_at + self._shape.delay_s + self._draws.uniform(0.0, self._shape.jitter_s)

    def held_up_s(self, size_bytes: int) -> float:
        """Seconds that the connection of the bytes just taken waits for a lost packet; 0 if none was lost."""
        lost = self._shape.lost(size_bytes)
        return self._shape.timeout_s if lost and self._draws.random() < lost else 0.0
