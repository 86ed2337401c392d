"""How long requests wait while another policy or another bundle takes over in a session under steady load.

A session asks two worker processes at fixed times, by plans over all three tiers, whether or not earlier requests
are answered; a latency counts from the moment at which the request was due. Three ways of change, in turns:

- `picked`: `update_sla` answered from the pool.
- `swap`: another bundle of the same model is sent to the workers by `flagsplit swap`, a process of low
  priority, loaded beside the old one, and adopted; then the old one is retired.
- `rebuilt`: `update_sla` that builds the bundle again in a process of its own, sends it and adopts it.

A request counts to the change if any of its time lies between the call and half a second after its return. What is
normal is measured in the same run: just as many requests, half of them the last ones before the change, under the old
plans, and half the first ones after it, under the new ones. The wait ratio of a way is its worst latency in all changes
over the worst of all these calm requests, a maximum over a maximum of equally many. A ratio of 2 is an extra wait
of one normal latency, the most that a change may cost.

Figures: `failed`, requests without an answer or with a wrong one (bar 0); `picked_wait_ratio`, `swap_wait_ratio`,
`rebuilt_wait_ratio` (bars 2). Conditions have the 99th percentiles by the same rule, and the ratios of every change.
"""

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import flagsplit
from flagsplit.apps.groundwork import BuildOptions
from flagsplit.apps.local import LocalWorkers
from flagsplit.apps.pipeline import build
from flagsplit.apps.zoo import pull
from flagsplit.runtime.background import in_background
from flagsplit.runtime.bundle import Bundle
from flagsplit.runtime.session import Answer, Session, SessionSettings
from flagsplit.splitter.sla import parse_sla
from flagsplit.targets.interface import Array, LoadOptions
from flagsplit.transport.messages import PeerAddress

TIERS = ("phone", "edge", "cloud")
WAYS = ("picked", "swap", "rebuilt")
BARS = {"failed": 0, **{f"{way}_wait_ratio": 2.0 for way in WAYS}}
SHAPE = (1, 3, 224, 224)
KINDS = 16
_AFTER_S = 0.5
_PATIENCE_S = 30.0
_SHORTEST_PERIOD_S = 0.02
_CALM_S = {"picked": 1.0, "swap": 1.5, "rebuilt": 2.5}
_LOOSE_USD, _TIGHT_USD = 1e6, 1e5


@dataclass
class Asked:
    """One request: when it was due and when it was answered, monotonic seconds; `epoch` is the one that answered."""

    due: float
    answered: float = float("inf")
    epoch: int = -1

    @property
    def latency_s(self) -> float:
        """From when it was due."""
        return self.answered - self.due


@dataclass
class Change:
    """A change that was made between two moments, and the requests that met it."""

    way: str
    began: float
    ended: float
    during: list[float] = field(default_factory=list)
    calm: list[float] = field(default_factory=list)

    def look(self, asked: list[Asked], since: float) -> None:
        """Sort latencies out: of requests during the change, and of as many before and after it."""
        over = self.ended + _AFTER_S
        self.during = [one.latency_s for one in asked if one.answered >= self.began and one.due < over]
        before = [one.latency_s for one in asked if one.due >= since and one.answered < self.began]
        before = before[-(len(self.during) // 2) :]
        after = [one.latency_s for one in asked if one.due >= over][: len(self.during) - len(before)]
        self.calm = before + after if all(map(math.isfinite, after)) else []

    def ratio(self, percentile: float) -> float:
        """Latency during the change over what is normal."""
        return float(np.percentile(self.during, percentile) / np.percentile(self.calm, percentile))


class Load:
    """Asks every `period_s` without end, and checks every answer."""

    def __init__(
        self, session: Session, inputs: list[dict[str, Array]], wanted: list[dict[str, Array]], period_s: float
    ) -> None:
        self._session, self._inputs, self._wanted, self._period_s = session, inputs, wanted, period_s
        self.asked: list[Asked] = []
        self.failures: list[str] = []
        self._answered = threading.Semaphore(0)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def _ask(self) -> None:
        due = time.monotonic()
        while not self._over.wait(max(0.0, due - time.monotonic())):
            one, number = Asked(due), len(self.asked) % KINDS
            self.asked.append(one)
            future = self._session.submit(self._inputs[number], deadline_s=_PATIENCE_S)
            future.add_done_callback(lambda done, one=one, number=number: self._check(one, number, done))  # type: ignore[misc]
            due += self._period_s

    def _check(self, one: Asked, number: int, future: "Future[Answer]") -> None:
        one.answered = time.monotonic()
        try:
            answer = future.result()
        except Exception as error:  # noqa: BLE001 - whatever it is, the request failed
            self.failures.append(str(error))
        else:
            one.epoch = answer.report.epoch
            if any(not np.array_equal(answer[name], array) for name, array in self._wanted[number].items()):
                self.failures.append("a wrong answer")
        self._answered.release()

    def stop(self) -> int:
        """End, wait for what is under way; how many were not answered, or wrongly."""
        self._over.set()
        self._thread.join()
        missing = sum(not self._answered.acquire(timeout=_PATIENCE_S) for _ in self.asked)
        return missing + len(self.failures)


class Changes:
    """Makes changes of each way; each leads from plans over all tiers to others over all tiers."""

    def __init__(self, session: Session, others: list[Bundle], workers: dict[str, PeerAddress]) -> None:
        self._session, self._others, self._workers = session, others, workers
        self._count = 0

    def make(self, way: str) -> Change:
        """One change, from now on."""
        self._count += 1
        began = time.monotonic()
        {"picked": self._pick, "swap": self._swap, "rebuilt": self._rebuild}[way]()
        return Change(way, began, time.monotonic())

    def _pick(self) -> None:
        if self._session.update_sla(_policy(_TIGHT_USD)) != "picked":
            raise RuntimeError("the pool has plans for it, but the bundle was built again")

    def _swap(self) -> None:
        """As an operator does, the old bundle's end at the workers included; the sender would be on another host."""
        old, new = self._session.bundle, self._others.pop()
        self._send(new)
        self._session.swap(new)
        self._send(new, "--retire", old.digest)

    def _send(self, bundle: Bundle, *options: str) -> None:
        tiers = [word for tier, at in self._workers.items() for word in ("--tier", f"{tier}={at.address}")]
        command = [sys.executable, "-m", "flagsplit.apps.cli", "swap", str(bundle.path), *tiers, *options]
        in_background(partial(subprocess.run, check=True, stdout=subprocess.DEVNULL), command)

    def _rebuild(self) -> None:
        if self._session.update_sla(_policy(_LOOSE_USD + self._count)) != "rebuilt":
            raise RuntimeError("expected a new build, but the pool was used")


def _policy(price_usd: float) -> dict[str, Any]:
    """All tiers at work, and a bound that no plan comes near: other policies and bundles, plans that take as long."""
    return {"use_tiers": list(TIERS), "bounds": {"price_per_1k_usd": price_usd}}


def build_bundles(folder: Path, count: int) -> list[Bundle]:
    """A small real network, built under as many policies."""
    bundles = []
    for number in range(count):
        path = folder / f"{number}.flagsplit"
        options = BuildOptions(shapes={"data_0": SHAPE})
        build(pull("light-squeezenet"), TIERS, path, options=options, sla=parse_sla(_policy(_LOOSE_USD - number - 1)))
        bundles.append(flagsplit.open(path))
    return bundles


def _period_s(session: Session, inputs: list[dict[str, Array]]) -> float:
    """Twice the time that a request takes alone: every tier has pauses, none has long ones."""
    times = [session.run(inputs[number % KINDS]).report.latency_ms / 1e3 for number in range(30)]
    return max(_SHORTEST_PERIOD_S, 2 * statistics.median(times[10:]))


def _one(changes: Changes, load: Load, way: str, calm_s: float) -> Change:
    """A change amid as many calm requests."""
    since = time.monotonic()
    time.sleep(calm_s)
    change = changes.make(way)
    give_up = time.monotonic() + _PATIENCE_S
    time.sleep(_AFTER_S)
    while not change.calm or len(change.calm) < len(change.during):
        if time.monotonic() > give_up:
            raise RuntimeError(f"{way}: no calm after the change within {_PATIENCE_S:g} s")
        time.sleep(0.1)
        change.look(load.asked, since)
    return change


def run(rounds: int) -> dict[str, Any]:
    """All ways in turns."""
    rngs = [np.random.default_rng(number) for number in range(KINDS)]
    inputs = [{"data_0": each.standard_normal(SHAPE).astype(np.float32)} for each in rngs]
    changed: list[Change] = []
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["FLAGSPLIT_CACHE"] = scratch
        first, *others = build_bundles(Path(scratch), rounds + 1)
        whole = first.load_whole(LoadOptions(threads=1))
        wanted = [dict(whole.run(each)) for each in inputs]
        whole.close()
        settings = SessionSettings(host=LoadOptions(threads=1))
        with (
            LocalWorkers(first.path, TIERS[1:]) as workers,
            flagsplit.connect(first, workers.addresses, settings=settings) as session,
        ):
            period_s = _period_s(session, inputs)
            load = Load(session, inputs, wanted, period_s)
            changes = Changes(session, others, workers.addresses)
            for _ in range(rounds):
                changed += [_one(changes, load, way, calm_s) for way, calm_s in _CALM_S.items()]
            failed = load.stop()
            asked = len(load.asked)
    return {
        "figures": {"failed": failed, **{f"{way}_wait_ratio": _ratio(changed, way, 100) for way in WAYS}},
        "conditions": {
            "requests": asked,
            "rounds": rounds,
            "period_ms": 1e3 * period_s,
            "of_each_change": [_shown(change) for change in changed],
            **{f"{way}_p99_ratio": _ratio(changed, way, 99) for way in WAYS},
            **{
                f"{way}_median_ratio": statistics.median(one.ratio(100) for one in changed if one.way == way)
                for way in WAYS
            },
            "failures": load.failures[:5],
            "bars": BARS,
            "cores": os.cpu_count(),
            "machine": platform.machine(),
            "python": platform.python_version(),
        },
        "basis": "measured",
    }


def _ratio(changed: list[Change], way: str, percentile: float) -> float:
    mine = [change for change in changed if change.way == way]
    during = [latency_s for change in mine for latency_s in change.during]
    calm = [latency_s for change in mine for latency_s in change.calm]
    return Change(way, 0.0, 0.0, during, calm).ratio(percentile)


def _shown(change: Change) -> dict[str, Any]:
    return {
        "way": change.way,
        "took_s": round(change.ended - change.began, 3),
        "requests": len(change.during),
        "worst_ms": round(1e3 * max(change.during), 1),
        "calm_worst_ms": round(1e3 * max(change.calm), 1),
        "ratio": round(change.ratio(100), 2),
        "median_ms": round(1e3 * statistics.median(change.during), 1),
        "calm_median_ms": round(1e3 * statistics.median(change.calm), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="one change of each way")
    arguments = parser.parse_args()
    found = run(1 if arguments.quick else 5)
    if arguments.json:
        print(json.dumps(found))
        return
    for name, value in found["figures"].items():
        print(f"{name} {value:.4g}")
    for name, value in found["conditions"].items():
        print(f"  {name}: {value}")


if __name__ == "__main__":
    main()
