"""What a listener knows of its connections: whose they are, and by which routing ids they are known."""

from collections import deque
from dataclasses import dataclass, field
from typing import Final

from flagsplit.transport.floodguard import Meter
from flagsplit.transport.flow import Flow
from flagsplit.transport.messages import Lane
from flagsplit.transport.peer_limits import PeerRates

# A routing id is never used twice, so that one is remembered for longer than needed does no harm.
REMEMBERED_ROUTES: Final = 1024


@dataclass(slots=True, eq=False)
class Connection:
    """One accepted connection. `inode` tells it from a later one that got the same descriptor number."""

    fd: int
    inode: int
    since_s: float = 0.0
    route: bytes = b""
    peer: "InboundPeer | None" = None
    lane: Lane = Lane.CONTROL
    introduced: bool = False
    ignored: bool = False
    meter: Meter = field(default_factory=Meter)


@dataclass(slots=True, eq=False)
class InboundPeer:
    """The two connections of one attempt of one process. `serial` grows with each of its attempts."""

    name: str
    instance: str
    serial: int
    user_id: str
    flow: Flow
    rates: PeerRates
    lines: dict[Lane, Connection]
    up: bool = False


class Routes:
    """Connections by routing id, those that ended lately too: their last messages may be unread still.

    Whose route is not known is looked for by its descriptor, which another connection may have by now.

    Args:
        remembered: how many of those that ended.
    """

    def __init__(self, remembered: int = REMEMBERED_ROUTES) -> None:
        self._remembered = remembered
        self._known: dict[bytes, Connection] = {}
        self._ended: deque[bytes] = deque()

    def __contains__(self, route: object) -> bool:
        return route in self._known

    def __len__(self) -> int:
        """How many have not ended."""
        return len(self._known) - len(self._ended)

    def get(self, route: bytes) -> Connection | None:
        """The connection; one that is ignored, if it ended; None if the route was never seen."""
        return self._known.get(route)

    def add(self, connection: Connection) -> None:
        """It has a route now."""
        self._known[connection.route] = connection

    def end(self, connection: Connection) -> None:
        """What comes from there from now on is for nobody. A second call does nothing."""
        if self._known.get(connection.route) is not connection:
            return
        self._known[connection.route] = _ENDED
        self._ended.append(connection.route)
        if len(self._ended) > self._remembered:
            del self._known[self._ended.popleft()]


_ENDED: Final = Connection(-1, -1, ignored=True)
