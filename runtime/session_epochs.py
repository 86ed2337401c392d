"""The epochs of a session: the one that answers new requests, older ones that still have some, and one to come."""

from collections.abc import Iterator, Sequence

from flagsplit.runtime.session_facts import SessionFacts
from flagsplit.runtime.session_routes import Epoch


class Epochs:
    """Begins with one.

    Args:
        facts: of the first.

    Attributes:
        current: the one that answers new requests.
        adopt_by: when the one to come begins, whoever has not said that it serves it.
    """

    def __init__(self, facts: SessionFacts) -> None:
        self.current = Epoch(0, facts)
        self.adopt_by = 0.0
        self._all = [self.current]

    def __iter__(self) -> Iterator[Epoch]:
        """The oldest first."""
        return iter(self._all)

    @property
    def coming(self) -> Epoch | None:
        """The epoch that is being prepared."""
        return self._all[-1] if self._all[-1] is not self.current else None

    @property
    def bundles(self) -> tuple[str, ...]:
        """Digests of their bundles, the oldest first."""
        return tuple(dict.fromkeys(epoch.facts.bundle for epoch in self._all))

    def prepare(self, facts: SessionFacts, adopt_by: float) -> list[str]:
        """Another is to come; one that was being prepared already will never be.

        Returns:
            The bundles that no epoch needs any more.
        """
        dropped = [] if self.coming is None else [self._all.pop()]
        freed = self._freed(dropped)
        self._all.append(Epoch(self.current.number + 1, facts))
        self.adopt_by = adopt_by
        return freed

    def begin(self, coming: Epoch) -> None:
        """New requests are answered in it from now on."""
        self.current = coming

    def release(self) -> list[str]:
        """Older epochs without requests are over; the bundles that no epoch needs any more."""
        over = [epoch for epoch in self._all if epoch.number < self.current.number and not epoch.requests]
        self._all = [epoch for epoch in self._all if epoch not in over]
        return self._freed(over)

    def _freed(self, over: Sequence[Epoch]) -> list[str]:
        bundles = dict.fromkeys(epoch.facts.bundle for epoch in over)
        return [bundle for bundle in bundles if bundle not in self.bundles]
