"""Figures of a gateway for Prometheus."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from flagsplit.apps.decoder_service.gateway_load import Load

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class GatewayMetrics:
    """Counters, and gauges of what is in hand.

    Args:
        load: what is in hand.
        registry: where they are to be found.
    """

    def __init__(self, load: Load, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        self._requests = Counter(
            "flagsplit_gateway_requests", "Requests answered.", ("route", "status"), registry=self.registry
        )
        self._seconds = Histogram(
            "flagsplit_gateway_request_seconds",
            "From the head of a request to the end of its answer.",
            ("route",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._first = Histogram(
            "flagsplit_gateway_first_event_seconds",
            "From the head of a request to the first event of its answer.",
            ("route",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._tokens = Counter("flagsplit_gateway_tokens", "Tokens given out.", ("route",), registry=self.registry)
        self.registry.register(_Gauges(load))

    def answered(self, route: str, status: int, seconds: float) -> None:
        """A request is over."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def first_event(self, route: str, seconds: float) -> None:
        """The client sees something."""
        self._first.labels(route).observe(seconds)

    def tokens(self, route: str, count: int) -> None:
        """Tokens were made for a client."""
        self._tokens.labels(route).inc(count)


class _Gauges(Collector):
    def __init__(self, load: Load) -> None:
        self._load = load

    def collect(self) -> Iterator[Metric]:
        """What there is now."""
        yield GaugeMetricFamily("flagsplit_gateway_streams", "Streams being generated.", self._load.streams)
        yield GaugeMetricFamily("flagsplit_gateway_body_bytes", "Bytes promised to bodies.", self._load.body_bytes)
        yield GaugeMetricFamily("flagsplit_gateway_draining", "Whether it ends.", float(self._load.draining))
