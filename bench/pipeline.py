"""Whether stages overlap: a stream through three tiers against its slowest stage, a request against its parts.

Three tiers on this host, each slowed so that three fit on few cores; nothing is between them but loopback. Each stage
is measured alone: the same segment, loaded in this process, run one after the other with the same slow-down. The parts
of a request are its stages and, for each hop, the bytes at what a plain TCP connection moves here.

Figures, each the median over rounds: `rate_ratio`, requests per second of the stream over those of the slowest stage
alone (bar 0.9); `latency_ratio`, the latency of a request alone, less 1 ms a hop, over the sum of its parts (bar 1.1).
"""

import argparse
import json
import platform
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import flagsplit
from flagsplit.apps.groundwork import BuildOptions
from flagsplit.apps.pipeline import build
from flagsplit.apps.zoo import pull
from flagsplit.runtime.bundle import Bundle
from flagsplit.runtime.inputs import random_inputs
from flagsplit.runtime.session import Session, SessionSettings
from flagsplit.runtime.session_machine import SessionOptions
from flagsplit.splitter.problem import Problem
from flagsplit.targets.interface import Array, LoadOptions

TIERS = ("phone", "edge", "cloud")
PLAN = "stages"
MODELS = {"ppocr-rec": (1, 3, 48, 160), "light-squeezenet": (1, 3, 224, 224)}
SLOWDOWN = 4.0
RATE_BAR, LATENCY_BAR, HOP_S = 0.9, 1.1, 1e-3


def _in_thirds(problem: Problem) -> dict[str, tuple[int, ...]]:
    """The blocks in their order, cut where a third and two thirds of the predicted seconds are over."""
    seconds = problem.costs.seconds[:, 0]
    done = np.cumsum(seconds) - seconds / 2
    return {PLAN: tuple(np.minimum(done / seconds.sum() * len(TIERS), len(TIERS) - 1).astype(int).tolist())}


def build_stages(name: str, shape: tuple[int, ...], folder: Path) -> tuple[Bundle, dict[str, Array]]:
    """A bundle with a plan that uses all tiers about equally."""
    folder.mkdir()
    options = BuildOptions(shapes={"x" if name.startswith("ppocr") else "data_0": shape}, extra_plans=_in_thirds)
    path = folder / f"{name}.flagsplit"
    build(pull(name), TIERS, path, devices=dict.fromkeys(TIERS, "generic-phone-cpu"), options=options)
    bundle = flagsplit.open(path, cache=folder / "cache")
    return bundle, random_inputs(bundle.inputs, bundle.facts.nominal_dims)


def stages_alone_s(bundle: Bundle, inputs: Mapping[str, Array], rounds: int) -> list[float]:
    """Seconds of each stage, run by itself and slowed like a tier."""
    values, found = dict(inputs), []
    for step in bundle.plans.steps[PLAN]:
        loaded = bundle.load(step.tier, step.segment, LoadOptions(threads=1))
        given = {name: values[name] for name in step.inputs}
        times = []
        for _ in range(rounds):
            started = time.perf_counter()
            outputs = loaded.run(given)
            time.sleep((SLOWDOWN - 1) * (time.perf_counter() - started))
            times.append(time.perf_counter() - started)
        values.update(outputs)
        loaded.close()
        found.append(statistics.median(times))
    return found


def tcp_s(size_bytes: int, rounds: int) -> float:
    """Seconds to move so many bytes over a TCP connection of this host and hear back."""
    server = socket.create_server(("127.0.0.1", 0))

    def echo() -> None:
        peer, _ = server.accept()
        with peer:
            for _ in range(rounds):
                left = size_bytes
                while left:
                    left -= len(peer.recv(min(left, 1 << 20)))
                peer.sendall(b"\0")

    thread = threading.Thread(target=echo)
    thread.start()
    payload, times = bytes(size_bytes), []
    with socket.create_connection(server.getsockname()) as client:
        for _ in range(rounds):
            started = time.perf_counter()
            client.sendall(payload)
            client.recv(1)
            times.append(time.perf_counter() - started)
    thread.join()
    server.close()
    return statistics.median(times)


def measure(session: Session, bundle: Bundle, inputs: Mapping[str, Array], requests: int) -> dict[str, float]:
    """One round: the stages alone, one request after the other, a stream."""
    alone_s = stages_alone_s(bundle, inputs, 6)
    singles = [session.run(inputs, plan=PLAN) for _ in range(6)]
    report = singles[-1].report
    links_s = sum(tcp_s(link.bytes, 5) for link in report.links)
    latency_s = statistics.median(answer.report.latency_ms for answer in singles) / 1e3
    started = time.perf_counter()
    answers = list(session.stream((inputs for _ in range(requests)), plan=PLAN))
    took_s = time.perf_counter() - started
    if any((answer.report.plan, answer.report.attempts) != (PLAN, 1) for answer in (*singles, *answers)):
        raise RuntimeError(f"a request took another way: {list(session.events)}")
    hops = sum(link.messages for link in report.links)
    first_s = sum(alone_s)  # the pipeline is full after this; what comes then is its steady rate
    rate = (requests - 1) / (took_s - first_s)
    return {
        "rate_ratio": rate * max(alone_s),
        "latency_ratio": (latency_s - hops * HOP_S) / (sum(alone_s) + links_s),
        "slowest_stage_ms": max(alone_s) * 1e3,
        "latency_ms": latency_s * 1e3,
        "hops": hops,
    }


def run(models: Mapping[str, tuple[int, ...]], rounds: int, requests: int) -> dict[str, Any]:
    """All models."""
    cases = {}
    settings = SessionSettings(host=LoadOptions(threads=1), machine=SessionOptions(window=12), max_pending=12)
    with tempfile.TemporaryDirectory() as scratch:
        for name, shape in models.items():
            bundle, inputs = build_stages(name, shape, Path(scratch) / name)
            with flagsplit.connect(bundle, settings=settings, slowdowns=dict.fromkeys(TIERS, SLOWDOWN)) as session:
                session.run(inputs, plan=PLAN)
                found = [measure(session, bundle, inputs, requests) for _ in range(rounds)]
            cases[name] = {key: statistics.median(each[key] for each in found) for key in found[0]}
    return {
        "figures": {
            "rate_ratio": min(case["rate_ratio"] for case in cases.values()),
            "latency_ratio": max(case["latency_ratio"] for case in cases.values()),
        },
        "conditions": {
            "cases": cases,
            "rounds": rounds,
            "requests": requests,
            "slowdown": SLOWDOWN,
            "bars": {"rate_ratio": RATE_BAR, "latency_ratio": LATENCY_BAR},
            "machine": platform.machine(),
            "python": platform.python_version(),
        },
        "basis": "emulated",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="one model, few rounds")
    arguments = parser.parse_args()
    models = dict(list(MODELS.items())[:1]) if arguments.quick else MODELS
    found = run(models, 3 if arguments.quick else 7, 25 if arguments.quick else 80)
    if arguments.json:
        print(json.dumps(found))
        return
    for name, case in found["conditions"]["cases"].items():
        print(name, ", ".join(f"{key} {value:.4g}" for key, value in case.items()))
    for key, value in found["figures"].items():
        print(f"{key} {value:.3f}")


if __name__ == "__main__":
    main()
