"""Which requests are over, for a while: control overtakes data, and late data must not bring a request back to life."""

import math

from flagsplit.runtime.relay import FlightKey

_PER_SESSION = 1024
_SESSIONS = 1024


class Ends:
    """The requests that ended last, by session, so that no session can push out what is known of another's."""

    def __init__(self) -> None:
        self._ended: dict[str, dict[int, float]] = {}

    def remember(self, key: FlightKey, attempt: int | None) -> None:
        """A request ended; None stands for all its attempts, past and to come."""
        sid, rid = key
        ended = self._ended.pop(sid, {})
        self._ended[sid] = ended
        ended.pop(rid, None)
        ended[rid] = math.inf if attempt is None else attempt
        if len(ended) > _PER_SESSION:
            del ended[next(iter(ended))]
        if len(self._ended) > _SESSIONS:
            del self._ended[next(iter(self._ended))]

    def is_over(self, key: FlightKey, attempt: int) -> bool:
        """Whether nobody waits for that attempt any more."""
        return attempt <= self._ended.get(key[0], {}).get(key[1], -1)
