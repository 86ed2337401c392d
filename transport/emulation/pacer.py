"""When one direction of an emulated link takes bytes, and when they come out: arithmetic on times, no sockets.

A link sends at a fixed rate, delays what it sent, and buffers little; bytes that do not fit wait at the sender. The
proxy that moves real bytes by these times is in `proxy.py`.
"""

import math
import random
from dataclasses import dataclass
from typing import Final

from flagsplit.errors import ConfigError

_BUFFER_S: Final = 0.01
_QUANTUM_S: Final = 0.001
_MIN_QUANTUM_BYTES: Final = 1448  # what one Ethernet frame carries
_MAX_QUANTUM_BYTES: Final = 64 << 10


@dataclass(frozen=True, slots=True)
class LinkShape:
    """What one direction of a link does to bytes.

    Attributes:
        bytes_per_s: its rate, above 0; `math.inf` does not limit it.
        delay_s: seconds that a byte is under way after it was sent, one way.
        jitter_s: up to so many seconds more, drawn evenly for each piece; the order of bytes stays.

    Raises:
        ConfigError: a figure is negative or no number, or the rate is zero.
    """

    bytes_per_s: float
    delay_s: float = 0.0
    jitter_s: float = 0.0

    def __post_init__(self) -> None:
        if not self.bytes_per_s > 0:
            raise ConfigError(f"bytes_per_s of a link: expected a rate above 0, came {self.bytes_per_s}")
        for name in ("delay_s", "jitter_s"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"{name} of a link: expected seconds, 0 or more, came {value}")


class Pacer:
    """One direction of a link.

    Args:
        shape: what it does.
        draws: where the jitter comes from.
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
        wanted = shape.bytes_per_s * _QUANTUM_S
        self._shape = shape
        self.quantum_bytes = int(min(max(wanted, _MIN_QUANTUM_BYTES), _MAX_QUANTUM_BYTES))
        quantum_s = self.quantum_bytes / shape.bytes_per_s
        self._ahead_s = max(_BUFFER_S, 2 * quantum_s) - quantum_s

    def takes_from(self) -> float:
        """When there is room in the buffer for `quantum_bytes` more, in seconds on the caller's clock."""
        return self._free_at - self._ahead_s

    def take(self, size_bytes: int, now: float) -> float:
        """Take bytes; the time at which the last of them comes out."""
        self._free_at = max(now, self._free_at) + size_bytes / self._shape.bytes_per_s
        return self._free_at + self._shape.delay_s + self._draws.uniform(0.0, self._shape.jitter_s)
