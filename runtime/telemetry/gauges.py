"""Gauges: what the newest stats say, put into metric families when a registry is read.

What cannot be known yet is left out, so that its absence is not taken for a zero.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from flagsplit.runtime.telemetry.labels import BoundedLabel
from flagsplit.runtime.telemetry.stats import EngineStats, PeerStats, SessionStats, Stats, WorkerStats


@dataclass(frozen=True)
class Reading:
    """Everything that gauges show, at one moment.

    Attributes:
        uptime_s: seconds since the start.
        ready: whether requests are welcome.
        stats: of the machine.
        engine: of its engine.
        plan: name of the plan in use, "" if unknown.
    """

    uptime_s: float
    ready: bool
    stats: Stats
    engine: EngineStats
    plan: str = ""


class Gauges(Collector):
    """Reads when asked.

    Args:
        read: gives the newest figures; called on the thread that asks.
        info: what this is: version, role, tier, bundle.
    """

    def __init__(self, read: Callable[[], Reading], info: Mapping[str, str]) -> None:
        self._read = read
        self._info = dict(info)
        self._reason = BoundedLabel()
        self._plan = BoundedLabel()

    def describe(self) -> Iterator[Metric]:
        """Nothing: the names are found by collecting."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """All families."""
        reading = self._read()
        yield InfoMetricFamily("flagsplit_build", "What this process is.", self._info)
        yield _gauge("uptime_seconds", "Time since the start.", reading.uptime_s)
        yield _gauge("ready", "1 if requests are welcome.", reading.ready)
        yield from _common(reading.stats)
        yield from _engine(reading.engine)
        yield _peers(reading.stats.peers)
        yield from _links(reading.stats)
        if isinstance(reading.stats, WorkerStats):
            yield _gauge("draining", "1 if nothing new is taken.", reading.stats.draining)
        else:
            yield from self._session(reading.stats, reading.plan)

    def _session(self, stats: SessionStats, plan: str) -> Iterator[Metric]:
        yield _gauge("waiting_requests", "Requests that wait for room in the window.", stats.waiting)
        in_use = _family("plan_in_use", "1 for the plan in use.", "plan")
        if plan:
            in_use.add_metric([self._plan(plan)], 1)
        yield in_use
        predicted = _family("plan_predicted_seconds", "Latency of the best plans at the state of now.", "plan")
        for each in stats.plans[:2]:
            predicted.add_metric([self._plan(each.plan)], each.predicted_s)
        yield predicted
        switches = CounterMetricFamily("flagsplit_plan_switches", "Changes of the plan in use.", labels=["reason"])
        counts: dict[str, int] = {}
        for reason, count in stats.switches.items():
            counts[self._reason(reason)] = counts.get(self._reason(reason), 0) + count
        for reason, count in counts.items():
            switches.add_metric([reason], count)
        yield switches
        slowdown = _family("tier_slowdown", "Factor on a tier's nominal times, as estimated.", "tier")
        wait = _family("tier_wait_seconds", "How long a new run would wait at a tier, as it said last.", "tier")
        for peer in stats.peers:
            for family, value in ((slowdown, peer.slowdown), (wait, peer.wait_s)):
                if peer.state == "up" and value is not None:
                    family.add_metric([peer.tier], value)
        yield from (slowdown, wait)


def _family(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"flagsplit_{name}", text, labels=list(labels))


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"flagsplit_{name}", text, value=float(value))


def _common(stats: Stats) -> Iterator[Metric]:
    yield _gauge("queue_length", "Runs asked for that are not back.", stats.queue)
    yield _gauge("flights", "Requests held.", stats.flights)
    yield _gauge("held_bytes", "Tensors held for requests.", stats.held_bytes)
    yield _gauge("epoch", "The newest epoch heard of.", stats.epoch)
    paused = sum(peer.credit_paused for peer in stats.peers)
    yield _gauge("credit_paused_peers", "Peers whose data waits for credit.", paused)


def _engine(engine: EngineStats) -> Iterator[Metric]:
    yield _gauge("resident_segments", "Segments that are loaded.", len(engine.resident_bytes))
    yield _gauge("resident_bytes", "What loaded segments hold, estimated.", sum(engine.resident_bytes.values()))
    yield _gauge("resident_budget_bytes", "What they may hold.", engine.budget_bytes)


def _peers(peers: tuple[PeerStats, ...]) -> Metric:
    family = _family("peers_up", "Peers that are connected, by their tier.", "tier")
    up: dict[str, int] = {}
    for peer in peers:
        up[peer.tier] = up.get(peer.tier, 0) + (peer.count if peer.state == "up" else 0)
    for tier, count in up.items():
        family.add_metric([tier], count)
    return family


def _links(stats: Stats) -> Iterator[Metric]:
    rate = _family("link_bytes_per_second", "What a link carries, as estimated.", "source", "target")
    rtt = _family("link_rtt_seconds", "Round trip of a short message, as estimated.", "source", "target")
    loss = _family("link_loss_ratio", "Share of packets lost, as estimated.", "source", "target")
    for link in stats.links:
        for family, value in ((rate, link.bytes_per_s), (rtt, link.rtt_s), (loss, link.loss)):
            family.add_metric([link.source, link.target], value)
    yield from (rate, rtt, loss)
