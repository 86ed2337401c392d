"""What sharing an engine costs and brings: batches, loads beside runs, messages beside runs, two unlike clients.

All on segments of a real model on this host, each on one thread.

Figures: `batch_gain`, requests per second in batches of up to 8 over one by one; `wait_ms_p50` and `wait_ms_max`, what
short runs waited for while other segments were loaded, and `wait_ms_max_quiet` while none was; `echo_ms_p99` and
`echo_ms_p99_quiet`, a message to another thread and back with and without runs beside it; `small_client_ms` and
`small_client_alone_ms`, how long a client with one request at a time waits for its answer beside one with fifty.
"""

import argparse
import json
import os
import platform
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from queue import Queue

import numpy as np

import flagsplit
from flagsplit.apps import zoo
from flagsplit.runtime.batching import BatchOptions
from flagsplit.runtime.bundle import Bundle
from flagsplit.runtime.engine import Engine
from flagsplit.runtime.events import Ran, Run
from flagsplit.targets.interface import Array, LoadOptions, TensorSpec

MODEL = "ppocr-cls"
HOST = LoadOptions(threads=1)
_SMALL = 16
"""Size of what is open beside the rows: small requests are those that gain from batches."""


class Stage:
    """An engine over the cloud's segments of a bundle."""

    def __init__(self, bundle: Bundle, batching: BatchOptions | None = None, budget_bytes: float = 1e12) -> None:
        self.results: Queue[Ran] = Queue()
        self.engine = Engine(
            lambda _, segment: bundle.load(1, segment, HOST), (), {}, budget_bytes, self.results.put, batching=batching
        )

    def ask(self, token: int, segment: str, inputs: Mapping[str, Array], client: str = "") -> None:
        self.engine.submit(Run(token, segment, inputs, client=client))


def inputs_of(specs: tuple[TensorSpec, ...], size: int) -> dict[str, Array]:
    """One row of numbers for each input."""
    random = np.random.default_rng(0)
    return {
        spec.name: random.standard_normal(
            [dim if isinstance(dim, int) else 1 if at == 0 else size for at, dim in enumerate(spec.shape)]
        ).astype(spec.dtype)
        for spec in specs
    }


def batch_gain(bundle: Bundle, segment: str, inputs: Mapping[str, Array], seconds: float) -> tuple[float, float]:
    """Requests per second with and without batches, by turns."""
    rates: dict[int, list[float]] = {1: [], 8: []}
    stages = {size: Stage(bundle, BatchOptions(size, 0.0)) for size in rates}
    for stage in stages.values():
        stage.engine.start([segment])
    until = time.monotonic() + seconds
    while time.monotonic() < until or len(rates[8]) < 3:
        for size, stage in stages.items():
            began = time.monotonic()
            for token in range(64):
                stage.ask(token, segment, inputs)
            for _ in range(64):
                stage.results.get()
            rates[size].append(64 / (time.monotonic() - began))
    for stage in stages.values():
        stage.engine.stop()
    return statistics.median(rates[8]), statistics.median(rates[1])


def waits_ms(bundle: Bundle, segment: str, inputs: Mapping[str, Array], others: list[str]) -> list[float]:
    """What runs of one segment waited for, while others are loaded or, if there are none, for half a second."""
    stage = Stage(bundle)
    stage.engine.start([segment])
    stage.ask(0, segment, inputs)
    stage.results.get()
    loading = stage.engine.add("again", others, {}, others)
    found, until = [], time.monotonic() + (0.0 if others else 0.5)
    while not loading.done() or time.monotonic() < until:
        stage.ask(0, segment, inputs)
        found.append(stage.results.get().wait_us / 1e3)
    stage.engine.stop()
    return found


def echo_ms(beside: Callable[[], None] | None, seconds: float) -> list[float]:
    """How long a message to another thread and back takes, with something going on beside or not."""
    near, far = socket.socketpair()
    ended = threading.Event()

    def echo() -> None:
        while data := far.recv(64):
            far.send(data)

    def work() -> None:
        while beside is not None and not ended.is_set():
            beside()

    threads = [threading.Thread(target=echo), threading.Thread(target=work)]
    for thread in threads:
        thread.start()
    found, until = [], time.monotonic() + seconds
    while time.monotonic() < until:
        began = time.perf_counter()
        near.send(b"ping")
        near.recv(64)
        found.append((time.perf_counter() - began) * 1e3)
        time.sleep(0.001)
    ended.set()
    near.close()
    for thread in threads:
        thread.join()
    far.close()
    return found


def small_client_ms(bundle: Bundle, segment: str, inputs: Mapping[str, Array], hungry: int) -> float:
    """The median time to the answer of a client with one request at a time, beside one with so many."""
    stage = Stage(bundle)
    stage.engine.start([segment])
    found, small = list[float](), 1_000_000
    for token in range(hungry):
        stage.ask(token, segment, inputs, "hungry")
    for token in range(40):
        began = time.perf_counter()
        stage.ask(small + token, segment, inputs, "small")
        while (ran := stage.results.get()).token < small:
            stage.ask(ran.token, segment, inputs, "hungry")
        found.append((time.perf_counter() - began) * 1e3)
    stage.engine.stop()
    return statistics.median(found)


def measure(seconds: float) -> dict[str, float]:
    """All figures."""
    with tempfile.TemporaryDirectory() as folder:
        built = flagsplit.build(zoo.pull(MODEL), "phone,cloud", Path(folder) / "x.flagsplit")
        bundle = flagsplit.open(built.path, cache=Path(folder))
        loaded = {segment: bundle.load(1, segment, HOST) for segment in bundle.segments_of(1)}
        (whole,) = (step.segment for step in bundle.plans.steps["all-cloud"])
        segment, executable = whole, loaded[whole]
        small, large = inputs_of(executable.inputs, _SMALL), inputs_of(executable.inputs, 12 * _SMALL)
        batched, single = batch_gain(bundle, segment, small, seconds)
        others = [name for name in loaded if name != segment]
        loading = [wait for _ in range(max(1, int(seconds))) for wait in waits_ms(bundle, segment, small, others)]
        quiet = waits_ms(bundle, segment, small, [])
        busy_echo = echo_ms(lambda: void(executable.run(large)), seconds)
        quiet_echo = echo_ms(None, seconds)
        return {
            "batch_gain": batched / single,
            "requests_per_s_batched": batched,
            "requests_per_s_single": single,
            "wait_ms_p50": statistics.median(loading),
            "wait_ms_max": max(loading),
            "wait_ms_max_quiet": max(quiet),
            "echo_ms_p99": float(np.percentile(busy_echo, 99)),
            "echo_ms_p99_quiet": float(np.percentile(quiet_echo, 99)),
            "small_client_ms": small_client_ms(bundle, segment, small, 50),
            "small_client_alone_ms": small_client_ms(bundle, segment, small, 0),
        }


def void(_: object) -> None:
    """What a run gives is of no interest here."""


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="shorter measurements")
    given = parser.parse_args()
    figures = {name: round(value, 4) for name, value in measure(1.0 if given.quick else 6.0).items()}
    conditions = {"model": MODEL, "threads": 1, "cores": os.cpu_count(), "host": platform.machine()}
    if given.json:
        print(json.dumps({"figures": figures, "conditions": conditions, "basis": "measured"}, indent=1))
        return
    for name, value in figures.items():
        print(f"{name:24} {value}")


if __name__ == "__main__":
    main()
