"""How much the gateway has in hand, for whom, and what there is room for."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from flagsplit.apps.decoder_service.gateway_errors import ApiError, busy
from flagsplit.apps.decoder_service.gateway_settings import GatewaySettings
from flagsplit.apps.decoder_service.gateway_sound import PcmSound


class Load:
    """Counts of streams and bytes of bodies. Used on one event loop.

    Args:
        settings: the limits.

    Attributes:
        streams: being generated now.
        body_bytes: promised to bodies now.
        draining: whether new requests are turned away.
    """

    def __init__(self, settings: GatewaySettings) -> None:
        self._settings = settings
        self._by_client: Counter[str] = Counter()
        self._sounds: set[PcmSound] = set()
        self.streams = 0
        self.body_bytes = 0
        self.draining = False

    @contextmanager
    def take_streams(self, client: str, count: int) -> Iterator[None]:
        """Room for some streams of one client, until the block ends.

        Raises:
            ApiError: there is none.
        """
        limit = self._settings.max_streams_per_client
        if count > limit:
            raise ApiError(400, f"one request may ask for {limit} answers, came {count}; ask for them in several")
        if self._by_client[client] + count > limit:
            raise busy(f"{limit} streams of one client are generated at once; wait for some to end", 1.0)
        if self.streams + count > self._settings.max_streams:
            raise busy(f"the gateway generates {self._settings.max_streams} streams at once; try again soon", 1.0)
        self.streams += count
        self._by_client[client] += count
        try:
            yield
        finally:
            self.streams -= count
            self._by_client[client] -= count
            if not self._by_client[client]:
                del self._by_client[client]

    @contextmanager
    def take_bytes(self, size_bytes: int) -> Iterator[None]:
        """Memory for a body, until the block ends.

        Raises:
            ApiError: there is none.
        """
        self.check_bytes(size_bytes)
        self.body_bytes += size_bytes
        try:
            yield
        finally:
            self.body_bytes -= size_bytes

    @contextmanager
    def hear(self, sound: PcmSound) -> Iterator[None]:
        """Count what waits of a sound beside the bodies, until the block ends."""
        self._sounds.add(sound)
        try:
            yield
        finally:
            self._sounds.discard(sound)

    def check_bytes(self, size_bytes: int) -> None:
        """Raise unless there is memory for so much more.

        Raises:
            ApiError: there is none.
        """
        waiting = sum(sound.waiting_bytes for sound in self._sounds)
        if self.body_bytes + waiting + size_bytes > self._settings.body_budget_bytes:
            raise busy("the gateway has its hands full of uploads; try again soon", 1.0)
