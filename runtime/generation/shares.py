"""Which client is served next: those that wait get equal shares of the work that was done.

Deficit round robin with the smallest quantum there is, as in `flagsplit.runtime.fair_queue`, for work that is counted
as it is done, some at each step, and not a run at a time.
"""

from collections.abc import Collection, Iterable


class Shares:
    """The work of each client so far."""

    def __init__(self) -> None:
        self._used: dict[str, float] = {}
        self._floor = 0.0

    def enter(self, client: str) -> None:
        """A client has something to do (again): it starts level with the one that had least of those that are here."""
        self._used[client] = max(self._used.get(client, 0.0), self._floor)

    def charge(self, client: str, work: float) -> None:
        """Work was done for a client that entered."""
        self._used[client] += work
        self._floor = max(self._floor, min(self._used.values()))

    def order(self, clients: Iterable[str]) -> list[str]:
        """The one that had least first; of those that had as much, as they come."""
        return sorted(clients, key=lambda client: self._used[client])

    def keep(self, clients: Collection[str]) -> None:
        """Forget clients that are not among these; one that is ahead of the others only when they are level."""
        here = [used for client, used in self._used.items() if client in clients]
        if not here:
            self._used.clear()
            self._floor = 0.0
            return
        self._floor = max(self._floor, min(here))
        self._used = {each: used for each, used in self._used.items() if each in clients or used > self._floor}
