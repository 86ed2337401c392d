"""Ten minutes of everything going wrong at random: does every request get one right answer, and does nothing leak?

A session asks two workers, each behind an emulated link, from several threads. Meanwhile workers are killed and started
again, frozen and woken; links are reset, cut off, made slow and narrow; the session's clock jumps; requests are given
up. Then all is healed, and what is left is counted.

Figures: `requests` that were answered, of them `lost`, `doubled`, `wrong`; `rss_growth`, by how much the session's
resident memory rose from a quarter of the way to the end (bar 0.10); `worker_rss_growth`, the same of the workers from
their warm state after the last start, a tenth of `requests` later; `threads_left`, `descriptors_left`; `faults` of each
kind.
"""

import argparse
import gc
import json
import math
import platform
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import CancelledError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from victims import Victims

import flagsplit
from flagsplit.apps.groundwork import BuildOptions
from flagsplit.apps.pipeline import build
from flagsplit.runtime import shell
from flagsplit.runtime.bundle import Bundle
from flagsplit.runtime.events import Deliver, Instruction
from flagsplit.runtime.liveness import LivenessOptions
from flagsplit.runtime.session import Session, SessionSettings
from flagsplit.runtime.session_machine import SessionOptions
from flagsplit.splitter.problem import Problem
from flagsplit.targets.interface import Array, Executable, LoadOptions
from flagsplit.transport.emulation import LinkShape

TIERS = ("phone", "edge", "cloud")
PLANS = ("every-tier", "no-edge", "no-cloud", "")
WIDTH = 48
ASKERS = 4
_FREE = LinkShape(math.inf)
_PATIENCE_S = 60.0


def build_bundle(folder: Path) -> Bundle:
    """Dense layers with a residual, any batch size: tensors from a few bytes to megabytes."""
    nodes = [helper.make_node("MatMul", ["x", "w0"], ["v0"])]
    for at in range(1, 5):
        nodes += [
            helper.make_node("MatMul", [f"v{at - 1}", f"w{at}"], [f"m{at}"]),
            helper.make_node("Relu", [f"m{at}"], [f"r{at}"]),
            helper.make_node("Add", [f"r{at}", "v0"], [f"v{at}"]),
        ]
    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", WIDTH]) for name in ("x", "v4")]
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array((rng.standard_normal((WIDTH, WIDTH)) / 8).astype(np.float32), f"w{at}")
        for at in range(5)
    ]
    graph = helper.make_graph(nodes, "soak", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), folder / "x.onnx")

    def plans(problem: Problem) -> dict[str, tuple[int, ...]]:
        count = len(problem.graph.blocks)
        thirds = tuple(min(2, 3 * at // count) for at in range(count))
        return {
            "every-tier": thirds,
            "no-edge": tuple(2 * min(1, tier) for tier in thirds),
            "no-cloud": tuple(min(1, tier) for tier in thirds),
        }

    options = BuildOptions(dims={"batch": 64}, extra_plans=plans)
    build(folder / "x.onnx", TIERS, folder / "x.flagsplit", options=options)
    return flagsplit.open(folder / "x.flagsplit", cache=folder / "cache")


class Askers:
    """Threads that ask without end and check what comes; they pause while the count is taken."""

    def __init__(self, session: Session, whole: Executable, seed: int) -> None:
        self._session, self._whole, self._seed = session, whole, seed
        self._whole_lock = threading.Lock()
        self.counts: Counter[str] = Counter()
        self.plans: Counter[str] = Counter()
        self.problems: list[str] = []
        self.over = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(number,), daemon=True) for number in range(ASKERS)]
        for thread in self._threads:
            thread.start()

    def _inputs(self, rng: random.Random) -> dict[str, Array]:
        batch = rng.choice([0, 1, 3, 64, 64, 500, rng.choice([64, 3_000, 12_000])])
        return {"x": np.random.default_rng(rng.randrange(1 << 32)).standard_normal((batch, WIDTH)).astype(np.float32)}

    def _ask(self, number: int) -> None:
        rng = random.Random(f"{self._seed} {number}")
        while not self.over.is_set():
            inputs, plan = self._inputs(rng), rng.choice(PLANS)
            asked = self._session.submit(inputs, plan=plan, deadline_s=math.inf)
            self.counts["asked"] += 1
            if rng.random() < 0.03:
                time.sleep(rng.uniform(0, 0.02))
                self.counts["given up"] += asked.cancel()
                if asked.cancelled():
                    continue
            try:
                answer = asked.result(_PATIENCE_S)
            except (Exception, CancelledError) as error:  # noqa: BLE001 - whatever it is, the request is lost
                self.counts["lost"] += 1
                self.problems.append(f"{type(error).__name__}: {error}")
                continue
            with self._whole_lock:
                wanted = self._whole.run(inputs)
            self.counts["answered"] += 1
            self.counts["wrong"] += any(not np.array_equal(answer[name], array) for name, array in wanted.items())
            self.plans[answer.report.plan] += 1

    def stop(self) -> None:
        """Let every request end."""
        self.over.set()
        for thread in self._threads:
            thread.join(_PATIENCE_S + 5)


class Mayhem:
    """Does one thing at a time to one tier, for a while, then heals it."""

    def __init__(self, victims: Victims, clock: SimpleNamespace, rng: random.Random) -> None:
        self._victims, self._clock, self._rng = victims, clock, rng
        self.counts: Counter[str] = Counter()

    def strike(self) -> None:
        """One fault, from its beginning to its end."""
        victim = self._victims.of[self._rng.choice(TIERS[1:])]
        other = self._victims.of[self._rng.choice(TIERS[1:])]
        narrow = LinkShape(self._rng.choice([2e5, 1e6]), self._rng.choice([0.0, 0.05]), 0.01)
        strikes: dict[str, Callable[[], object]] = {
            "kill -9": victim.kill,
            "kill -9 both": lambda: (victim.kill(), other.kill() if other is not victim else None),
            "SIGSTOP": victim.freeze,
            "reset": victim.link.cut,
            "partition": victim.link.partition,
            "slow link": lambda: victim.link.set_shapes(narrow),
            "slow consumer": lambda: victim.link.set_shapes(narrow, _FREE),
            "clock jump": lambda: setattr(self._clock, "offset_s", self._clock.offset_s + self._rng.uniform(-3, 30)),
        }
        kind = self._rng.choice(sorted(strikes))
        self.counts[kind] += 1
        strikes[kind]()
        time.sleep(self._rng.choice([0.0, 0.1, 0.5, 2.0]))
        self.heal()

    def heal(self) -> None:
        """Undo everything."""
        for victim in self._victims.of.values():
            victim.link.set_shapes(_FREE)
            victim.heal()


def _rss_mb(process_id: int | str = "self") -> float:
    status = Path(f"/proc/{process_id}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) / 1e3


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def _until(done: Callable[[], bool], patience_s: float) -> bool:
    give_up = time.monotonic() + patience_s
    while not done():
        if time.monotonic() > give_up:
            return False
        time.sleep(0.05)
    return True


def _answer(askers: "Askers", requests: int) -> None:
    """Wait until so many more requests were answered."""
    wanted = askers.counts["answered"] + requests
    _until(lambda: askers.counts["answered"] >= wanted, 60.0)


def run(seconds: float, requests: int, seed: int) -> dict[str, Any]:
    """Soak for so long, and longer if so many requests take longer (at most twice)."""
    clock = SimpleNamespace(offset_s=0.0)
    real, shell.time = shell.time, SimpleNamespace(monotonic=lambda: time.monotonic() + clock.offset_s)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            bundle = build_bundle(Path(scratch))
            whole = bundle.load_whole(LoadOptions(threads=1))
            with flagsplit.connect(bundle) as before:  # what a process makes once and keeps, it makes here
                before.run({"x": np.zeros((3_000, WIDTH), np.float32)}, plan=PLANS[0])
            threads, descriptors = threading.active_count(), _descriptors()
            machine = SessionOptions(
                window=ASKERS, attempt_s=4.0, max_attempts=1 << 20, liveness=LivenessOptions(heartbeat_s=0.25)
            )
            settings = SessionSettings(host=LoadOptions(threads=1), machine=machine)
            with (
                Victims(bundle.path, TIERS[1:]) as victims,
                flagsplit.connect(bundle, victims.addresses, settings=settings) as session,
            ):
                figures, conditions = _soak(session, whole, victims, clock, seconds, requests, seed)
            gc.collect()
            _until(lambda: threading.active_count() <= threads and _descriptors() <= descriptors, 5.0)
            figures["threads_left"] = threading.active_count() - threads
            figures["descriptors_left"] = _descriptors() - descriptors
            whole.close()
    finally:
        shell.time = real
    return {"figures": figures, "conditions": conditions, "basis": "measured"}


def _deliveries(session: Session) -> bytearray:
    """How often each request is answered from here on; a byte for each, for it counts as growth of this process."""
    tell, delivered = session._shell._tell, bytearray()

    def told(instruction: Instruction) -> None:
        if isinstance(instruction, Deliver):
            delivered.extend(bytes(max(0, instruction.rid + 1 - len(delivered))))
            delivered[instruction.rid] += 1
        tell(instruction)

    session._shell._tell = told  # type: ignore[method-assign]
    return delivered


def _soak(
    session: Session,
    whole: Executable,
    victims: Victims,
    clock: SimpleNamespace,
    seconds: float,
    requests: int,
    seed: int,
) -> tuple[dict[str, Any], dict[str, Any]]:
    delivered = _deliveries(session)
    askers = Askers(session, whole, seed)
    mayhem = Mayhem(victims, clock, random.Random(seed))
    started, early_mb = time.monotonic(), 0.0
    while (spent_s := time.monotonic() - started) < seconds or (
        askers.counts["answered"] < requests and spent_s < 2 * seconds
    ):
        mayhem.strike()
        time.sleep(mayhem._rng.choice([0.0, 0.2, 1.0]))
        if not early_mb and spent_s > seconds / 4:
            early_mb = _rss_mb()
    mayhem.heal()
    if not _until(lambda: set(session.tiers.values()) == {"up"}, _PATIENCE_S):
        askers.problems.append(f"tiers did not come back: {session.tiers}")
    # Some workers have just been started: they load and pack what they serve with the first requests.
    _answer(askers, requests // 10)
    warm_mb = {tier: _rss_mb(victim.process_id) for tier, victim in victims.of.items()}
    _answer(askers, requests // 5)
    askers.stop()
    late_mb = _rss_mb()
    worker_mb = {tier: _rss_mb(victim.process_id) for tier, victim in victims.of.items()}
    if session._machine.flights:
        askers.problems.append(f"{len(session._machine.flights)} requests are still held by the session")
    return {
        "requests": askers.counts["answered"],
        "lost": askers.counts["lost"],
        "doubled": sum(count > 1 for count in delivered),
        "wrong": askers.counts["wrong"],
        "rss_growth": late_mb / early_mb - 1,
        "worker_rss_growth": max(worker_mb[tier] / warm_mb[tier] - 1 for tier in worker_mb),
    }, {
        "seconds": time.monotonic() - started,
        "faults": dict(mayhem.counts),
        "given_up": askers.counts["given up"],
        "plans": dict(askers.plans),
        "rss_mb": [early_mb, late_mb],
        "worker_rss_mb": {tier: [warm_mb[tier], worker_mb[tier]] for tier in worker_mb},
        "problems": askers.problems[:5],
        "seed": seed,
        "machine": platform.machine(),
        "python": platform.python_version(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="40 seconds")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--requests", type=int, default=10_000, help="go on, at most twice as long, until so many")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    seconds, requests = (40.0, 0) if arguments.quick else (arguments.seconds, arguments.requests)
    found = run(seconds, requests, arguments.seed)
    if arguments.json:
        print(json.dumps(found))
        return
    for name, value in (found["figures"] | found["conditions"]).items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
