"""How long answers stay away when a tier is killed, frozen or cut off, and whether any is lost, doubled or wrong.

A session keeps eight requests in flight to two worker processes, each behind a proxy that stands for its link. Again
and again, at random moments, one of them is killed (its connections close at once), frozen, or its link swallows
everything without a word. The gap is the longest time without an answer from the fault on. Every answer is compared
with the unsplit model's, bit for bit.

Figures: `requests` and of them `lost`, `doubled`, `wrong` (bars 0); `kill_gap_ms_p95` (bar 150);
`partition_gap_heartbeats_p95` for frozen and cut off tiers (bar 3); `switch_ms_p99`, how long the session's state
machine takes to move all requests in flight to another plan (bar 1).
"""

import argparse
import json
import platform
import random
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from victims import Victims

import flagsplit
from flagsplit.apps.groundwork import BuildOptions
from flagsplit.apps.pipeline import build
from flagsplit.apps.zoo import pull
from flagsplit.runtime.bundle import Bundle
from flagsplit.runtime.events import Deliver, Event, Instruction, TierChanged
from flagsplit.runtime.liveness import LivenessOptions
from flagsplit.runtime.session import Answer, Session, SessionSettings
from flagsplit.runtime.session_machine import SessionOptions
from flagsplit.splitter.problem import Problem
from flagsplit.targets.interface import Array, LoadOptions
from flagsplit.transport.channel import Down

TIERS = ("phone", "edge", "cloud")
PLAN = "every-tier"
WINDOW = 8
HEARTBEAT_S = 0.25
KINDS = 16
BARS = {"lost": 0, "doubled": 0, "wrong": 0, "kill_gap_ms_p95": 150.0, "partition_gap_heartbeats_p95": 3.0}
BARS["switch_ms_p99"] = 1.0
_PATIENCE_S = 30.0


def _plans(problem: Problem) -> dict[str, tuple[int, ...]]:
    """A plan over all tiers, which is asked for; what is left without one of them the pool knows."""
    count = len(problem.graph.blocks)
    return {PLAN: tuple(min(2, 3 * at // count) for at in range(count))}


def build_bundle(folder: Path) -> Bundle:
    """A small real network."""
    options = BuildOptions(shapes={"data_0": (1, 3, 224, 224)}, extra_plans=_plans)
    build(pull("light-squeezenet"), TIERS, folder / "x.flagsplit", options=options)
    return flagsplit.open(folder / "x.flagsplit", cache=folder / "cache")


@dataclass
class Watch:
    """Listens in on a session.

    Attributes:
        answered: when answers came, monotonic seconds.
        delivered: how often each request was answered.
        switches_ms: what the machine took where a tier went.
    """

    answered: list[float] = field(default_factory=list)
    delivered: Counter[int] = field(default_factory=Counter)
    switches_ms: list[float] = field(default_factory=list)

    def on(self, session: Session) -> None:
        """Begin."""
        machine, tell = session._machine.handle, session._shell._tell

        def handle(event: Event, now: float) -> list[Instruction]:
            started = time.perf_counter()
            said = machine(event, now)
            took_ms = (time.perf_counter() - started) * 1e3
            if isinstance(event, Down) or any(isinstance(one, TierChanged) and one.state == "down" for one in said):
                self.switches_ms.append(took_ms)
            return said

        def told(instruction: Instruction) -> None:
            if isinstance(instruction, Deliver):
                self.answered.append(time.monotonic())
                self.delivered[instruction.rid] += 1
            tell(instruction)

        session._machine.handle = handle  # type: ignore[method-assign]
        session._shell._tell = told  # type: ignore[method-assign]

    def gap_s(self, since: float, until: float) -> float:
        """The longest time without an answer that ends after a moment."""
        before = max((at for at in self.answered if at <= since), default=since)
        times = [before, *(at for at in self.answered if since < at <= until), until]
        return max(b - max(a, since) for a, b in pairwise(times))


class Load:
    """Asks without end, eight requests at once, and checks every answer."""

    def __init__(self, session: Session, inputs: list[dict[str, Array]], wanted: list[dict[str, Array]]) -> None:
        self._session, self._inputs, self._wanted = session, inputs, wanted
        self.asked = self.wrong = 0
        self.plans: Counter[str] = Counter()
        self.failures: list[str] = []
        self._over = threading.Event()
        self._free = threading.Semaphore(WINDOW)
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def _ask(self) -> None:
        while not self._over.is_set():
            self._free.acquire()
            number = self.asked
            self.asked += 1
            future = self._session.submit(self._inputs[number % KINDS], plan=PLAN, deadline_s=_PATIENCE_S)
            future.add_done_callback(lambda done, number=number: self._check(number, done))  # type: ignore[misc]

    def _check(self, number: int, future: "Future[Answer]") -> None:
        try:
            answer = future.result()
        except Exception as error:  # noqa: BLE001 - whatever it is, the request is lost
            self.failures.append(str(error))
        else:
            wanted = self._wanted[number % KINDS]
            self.wrong += any(not np.array_equal(answer[name], array) for name, array in wanted.items())
            self.plans[answer.report.plan] += 1
        self._free.release()

    def stop(self) -> int:
        """End, wait for what is under way; how many were never answered."""
        self._over.set()
        self._thread.join()
        missing = sum(not self._free.acquire(timeout=_PATIENCE_S) for _ in range(WINDOW))
        return missing + len(self.failures)


def _until(done: Callable[[], bool], what: str) -> None:
    give_up = time.monotonic() + _PATIENCE_S
    while not done():
        if time.monotonic() > give_up:
            raise RuntimeError(f"{what} did not happen within {_PATIENCE_S:g} s")
        time.sleep(0.005)


def _settle(session: Session, load: Load) -> None:
    """All tiers are up, and the plan over all of them answers."""
    _until(lambda: set(session.tiers.values()) == {"up"}, "the return of all tiers")
    before = load.plans[PLAN]
    _until(lambda: load.plans[PLAN] >= before + WINDOW, "answers by every tier")


def run(kills: int, silences: int, seed: int) -> dict[str, Any]:
    """All faults, in random order."""
    rng = random.Random(seed)
    faults = ["kill"] * kills + [rng.choice(["freeze", "cut off"]) for _ in range(silences)]
    rng.shuffle(faults)
    machine = SessionOptions(window=WINDOW, max_attempts=64, liveness=LivenessOptions(heartbeat_s=HEARTBEAT_S))
    settings = SessionSettings(host=LoadOptions(threads=1), machine=machine)
    gaps: dict[str, list[float]] = {"kill": [], "silence": []}
    watch = Watch()
    with tempfile.TemporaryDirectory() as scratch:
        bundle = build_bundle(Path(scratch))
        whole = bundle.load_whole(LoadOptions(threads=1))
        rngs = [np.random.default_rng(number) for number in range(KINDS)]
        inputs = [{"data_0": each.standard_normal((1, 3, 224, 224)).astype(np.float32)} for each in rngs]
        wanted = [dict(whole.run(each)) for each in inputs]
        whole.close()
        with (
            Victims(bundle.path, TIERS[1:]) as victims,
            flagsplit.connect(bundle, victims.addresses, settings=settings) as session,
        ):
            watch.on(session)
            load = Load(session, inputs, wanted)
            for fault in faults:
                _settle(session, load)
                time.sleep(rng.uniform(0, 0.3))
                victim = victims.of[rng.choice(TIERS[1:])]
                {"kill": victim.kill, "freeze": victim.freeze, "cut off": victim.link.partition}[fault]()
                since = time.monotonic()
                time.sleep(4 * HEARTBEAT_S)
                gaps["kill" if fault == "kill" else "silence"].append(watch.gap_s(since, time.monotonic()))
                victim.heal()
            _settle(session, load)
            lost = load.stop()
    return {
        "figures": {
            "requests": load.asked,
            "lost": lost,
            "doubled": sum(count > 1 for count in watch.delivered.values()),
            "wrong": load.wrong,
            "kill_gap_ms_p95": 1e3 * float(np.percentile(gaps["kill"], 95)),
            "partition_gap_heartbeats_p95": float(np.percentile(gaps["silence"], 95)) / HEARTBEAT_S,
            "switch_ms_p99": float(np.percentile(watch.switches_ms, 99)),
        },
        "conditions": {
            "kills": kills,
            "silences": silences,
            "in_flight_at_faults": WINDOW * len(faults),
            "heartbeat_s": HEARTBEAT_S,
            "kill_gap_ms_median": 1e3 * statistics.median(gaps["kill"]),
            "silence_gap_ms_median": 1e3 * statistics.median(gaps["silence"]),
            "switch_ms_median": statistics.median(watch.switches_ms),
            "plans": dict(load.plans),
            "failures": load.failures[:5],
            "bars": BARS,
            "seed": seed,
            "machine": platform.machine(),
            "python": platform.python_version(),
        },
        "basis": "measured",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="few faults")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    found = run(*((5, 5) if arguments.quick else (30, 30)), arguments.seed)
    if arguments.json:
        print(json.dumps(found))
        return
    for name, value in found["figures"].items():
        print(f"{name} {value:.4g}")
    for name, value in found["conditions"].items():
        print(f"  {name}: {value}")


if __name__ == "__main__":
    main()
