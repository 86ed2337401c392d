"""How fast tensors move between two processes of this host, as ratios to plain TCP sockets that move the same bytes.

What is timed is what the runtime uses: `ZmqChannel`, Open and Chunks, `Assembly`, checksums at both ends. All ways take
turns in each round, in another order each time; a ratio is taken within a round, a figure is the median of the rounds.

Figures: `throughput_*` and `curve_4mb`, bytes per second of a stream over those of plain TCP; `latency_4kb`, the median
of round trips, one at a time, over that of plain TCP, and `latency_4kb_vs_grpc` over that of gRPC. Those that end in
`_vs_bare` are ratios to pyzmq alone, the bound for whatever is built on it. The table has all ways with what they
reached, and their processor seconds per GB, both processes together.
"""

import argparse
import json
import os
import platform
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from transport_peer import WAYS, Pair, pair

from flagsplit.transport.checksum import crc32

BARS = {
    "throughput_4mb": ">= 0.9",
    "throughput_64mb": ">= 0.9",
    "latency_4kb": "<= 6.0",
    "latency_4kb_vs_grpc": "< 1.0",
    "curve_4mb": ">= 0.4",
}
_LATENCY_BYTES = 4096
_SIZES = {"256kb": 256 << 10, "4mb": 4 << 20, "64mb": 64 << 20}
_SLOW = {("curve", "64mb"), ("memory", "64mb"), ("grpc", "64mb"), ("shared", "256kb")}
_SLOW |= {("bare-curve", "64mb"), ("bare-curve", "256kb")}
"""Not measured: nothing is decided by them, and they take long."""


@dataclass(frozen=True)
class Effort:
    """How many rounds, bytes of each stream, and round trips, in each round."""

    rounds: int
    stream_bytes: int
    round_trips: int


@dataclass
class Measured:
    """What one way reached, by what was sent; a list has one entry per round.

    Attributes:
        gb_per_s: of streams.
        cpu_s_per_gb: of streams, both processes.
        p50_us, p99_us: of round trips.
    """

    gb_per_s: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    cpu_s_per_gb: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    p50_us: list[float] = field(default_factory=list)
    p99_us: list[float] = field(default_factory=list)

    def to_data(self) -> dict[str, Any]:
        """Medians with the quartiles around them, for JSON."""
        data: dict[str, Any] = {"p50_us": _spread(self.p50_us), "p99_us": _spread(self.p99_us)}
        for size, reached in self.gb_per_s.items():
            data[size] = {"gb_per_s": _spread(reached), "cpu_s_per_gb": statistics.median(self.cpu_s_per_gb[size])}
        return data


def measure(effort: Effort) -> dict[str, Measured]:
    """All ways, taking turns."""
    draws = random.Random(0)
    payload = {size: memoryview(bytearray(draws.randbytes(size_bytes))) for size, size_bytes in _SIZES.items()}
    small = payload["256kb"][:_LATENCY_BYTES]
    found = {way: Measured() for way in WAYS}
    with ExitStack() as stack:
        pairs = {way: stack.enter_context(pair(way)) for way in WAYS}
        for way in WAYS:
            pairs[way].client.round_trips(small, effort.round_trips // 4)
        for _ in range(effort.rounds):
            for way in draws.sample(WAYS, len(WAYS)):
                took = sorted(pairs[way].client.round_trips(small, effort.round_trips))
                found[way].p50_us.append(took[len(took) // 2] * 1e6)
                found[way].p99_us.append(took[len(took) * 99 // 100] * 1e6)
            for size, data in payload.items():
                for way in draws.sample(WAYS, len(WAYS)):
                    if (way, size) not in _SLOW:
                        _stream(pairs[way], found[way], size, data, max(3, effort.stream_bytes // len(data)))
    return found


def _stream(between: Pair, found: Measured, size: str, data: memoryview, count: int) -> None:
    gigabytes = len(data) * count / 1e9
    before_s = between.cpu_s()
    found.gb_per_s[size].append(gigabytes / between.client.stream(data, count))
    found.cpu_s_per_gb[size].append((between.cpu_s() - before_s) / gigabytes)


def ratios_of(found: Mapping[str, Measured]) -> dict[str, list[float]]:
    """What the figures are medians of: one ratio per round."""
    raw, own = found["raw"], found["tcp"]
    return {
        "throughput_4mb": _over(own.gb_per_s["4mb"], raw.gb_per_s["4mb"]),
        "throughput_64mb": _over(own.gb_per_s["64mb"], raw.gb_per_s["64mb"]),
        "latency_4kb": _over(own.p50_us, raw.p50_us),
        "latency_4kb_vs_grpc": _over(own.p50_us, found["grpc"].p50_us),
        "curve_4mb": _over(found["curve"].gb_per_s["4mb"], raw.gb_per_s["4mb"]),
        "throughput_256kb": _over(own.gb_per_s["256kb"], raw.gb_per_s["256kb"]),
        "latency_4kb_p99": _over(own.p99_us, raw.p99_us),
        "ipc_4mb": _over(found["ipc"].gb_per_s["4mb"], raw.gb_per_s["4mb"]),
        "ipc_latency_4kb": _over(found["ipc"].p50_us, raw.p50_us),
        "shared_4mb": _over(found["shared"].gb_per_s["4mb"], raw.gb_per_s["4mb"]),
        "shared_latency_4kb": _over(found["shared"].p50_us, raw.p50_us),
        "bare_4mb": _over(found["bare"].gb_per_s["4mb"], raw.gb_per_s["4mb"]),
        "bare_latency_4kb": _over(found["bare"].p50_us, raw.p50_us),
        "bare_curve_4mb": _over(found["bare-curve"].gb_per_s["4mb"], raw.gb_per_s["4mb"]),
        "throughput_4mb_vs_bare": _over(own.gb_per_s["4mb"], found["bare"].gb_per_s["4mb"]),
        "throughput_64mb_vs_bare": _over(own.gb_per_s["64mb"], found["bare"].gb_per_s["64mb"]),
        "latency_4kb_vs_bare": _over(own.p50_us, found["bare"].p50_us),
        "curve_4mb_vs_bare": _over(found["curve"].gb_per_s["4mb"], found["bare-curve"].gb_per_s["4mb"]),
        "grpc_4mb": _over(found["grpc"].gb_per_s["4mb"], raw.gb_per_s["4mb"]),
    }


def _over(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    return [one / other for one, other in zip(ours, theirs, strict=True)]


def _spread(values: Sequence[float]) -> list[float]:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return [low, middle, high]


def _crc_gb_per_s() -> float:
    """The checksum alone: what no tensor can be faster than at either end."""
    data = os.urandom(1 << 20)
    took = []
    for _ in range(50):
        started = time.perf_counter()
        crc32(data)
        took.append(time.perf_counter() - started)
    return len(data) / 1e9 / min(took)


def main() -> None:
    """Run, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, shorter streams")
    options = parser.parse_args()
    effort = Effort(3, 48 << 20, 300) if options.quick else Effort(9, 128 << 20, 600)
    found = measure(effort)
    ratios = ratios_of(found)
    figures = {name: statistics.median(values) for name, values in ratios.items()}
    if options.json:
        conditions = {
            "machine": platform.machine(),
            "cores": os.cpu_count(),
            "load": os.getloadavg()[0],
            "rounds": effort.rounds,
            "stream_bytes": effort.stream_bytes,
            "round_trips": effort.round_trips,
            "crc32_gb_per_s": _crc_gb_per_s(),
            "bars": BARS,
        }
        table = {way: measured.to_data() for way, measured in found.items()}
        quartiles = {name: _spread(values) for name, values in ratios.items()}
        data = {"figures": figures, "conditions": conditions, "basis": "measured"}
        print(json.dumps({**data, "quartiles": quartiles, "table": table}))
        return
    for way, measured in found.items():
        streams = "".join(
            f"{size:>8} {statistics.median(reached):6.2f} GB/s {statistics.median(cpu_s_per_gb):5.2f} s/GB"
            for (size, reached), cpu_s_per_gb in zip(
                measured.gb_per_s.items(), measured.cpu_s_per_gb.values(), strict=True
            )
        )
        p50_us, p99_us = statistics.median(measured.p50_us), statistics.median(measured.p99_us)
        print(f"{way:8} 4kb {p50_us:8.1f} us, p99 {p99_us:8.1f} us {streams}")
    print()
    for name, values in ratios.items():
        low, middle, high = _spread(values)
        print(f"{name:24} {middle:8.3f}  ({low:.3f} to {high:.3f})  {BARS.get(name, '')}")


if __name__ == "__main__":
    main()
