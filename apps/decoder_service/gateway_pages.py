"""Where a gateway of its own can be watched, apart from where its clients ask."""

from prometheus_client.exposition import generate_latest

from flagsplit.apps.decoder_service.gateway import Gateway
from flagsplit.apps.decoder_service.gateway_backend import Backend
from flagsplit.runtime.telemetry.http import HttpServer, Page, json_page

_TEXT = "text/plain; version=0.0.4; charset=utf-8"


def watch_gateway(gateway: Gateway, backend: Backend, address: str) -> HttpServer:
    """Serve metrics and health.

    Args:
        gateway: to be watched.
        backend: what must be ready.
        address: `HOST:PORT`; port 0 takes a free one.

    Raises:
        ConfigError: the address is malformed or taken.
    """

    def ready() -> Page:
        reason = backend.not_ready()
        return json_page(503 if reason else 200, {"ready": not reason, "reason": reason})

    return HttpServer(
        address,
        {
            "/metrics": lambda: Page(200, _TEXT, generate_latest(gateway.metrics.registry)),
            "/healthz": lambda: json_page(200, {"alive": True}),
            "/readyz": ready,
        },
    )
