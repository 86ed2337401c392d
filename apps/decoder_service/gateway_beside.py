"""A gateway beside a decoder service, in one process and with one engine."""

from collections.abc import Callable

from flagsplit.apps.decoder_service.gateway import Gateway
from flagsplit.apps.decoder_service.gateway_opening import open_backend, whole_input
from flagsplit.apps.decoder_service.gateway_settings import GatewaySettings
from flagsplit.apps.decoder_service.gateway_source import EngineSource
from flagsplit.apps.decoder_service.serve import DecoderService


class GatewayBeside:
    """Serves from the constructor on; close it before the service is stopped.

    Args:
        service: whose engine makes the tokens.
        settings: of the gateway.
        name: what clients call the model; by default its own name.

    Attributes:
        url: where it answers.

    Raises:
        ConfigError, ModelError, PeerError: see `Gateway` and `open_backend`.
    """

    def __init__(self, service: DecoderService, settings: GatewaySettings, name: str = "") -> None:
        source = service.source
        whole_input(source)
        tier = service.streams.program.tier
        self._tokens = EngineSource(service.hub.user, service.encode, tier, lambda: service.streams.readiness()[1])
        try:
            backend = open_backend(source, self._tokens, name)
            self._gateway = Gateway([backend], settings, service.streams.registry)
        except BaseException:
            self._tokens.close()
            raise
        self.url = self._gateway.url

    def finish(self, done: Callable[[], None]) -> None:
        """Turn new requests away; call `done` when those that are in hand have ended, or had their time."""
        self._gateway.finish(done)

    def close(self) -> None:
        """End at once. A second call does nothing."""
        self._gateway.close(at_once=True)
        self._tokens.close()
