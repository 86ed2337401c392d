"""The compute thread among several clients and bundles: shares, deadlines, loads beside runs, what makes room."""

import random
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from queue import Queue

import numpy as np
import pytest
from tests.apps.models import save, wide
from tests.runtime.fake_segments import Host, Timed, wait_for

from flagsplit.errors import BundleError, PeerError
from flagsplit.runtime.batching import BatchOptions
from flagsplit.runtime.engine import DEADLINE, SKIPPED, Engine
from flagsplit.runtime.events import Ran, Run
from flagsplit.targets.cloud.ort import OrtTarget
from flagsplit.targets.interface import Array, LoadOptions, StoredArtifact


def stored(file: Path) -> StoredArtifact:
    """A model file as the artifact of segment "a"."""
    return StoredArtifact(file.parent, {"a": file.name}, {}, file)


def test_a_client_with_many_requests_does_not_hold_up_another() -> None:
    host = Host({("", "a"): Timed(0.002)})
    host.engine.start(["a"])
    for token in range(50):
        host.submit(token, client="busy")
    host.submit(100, client="small")
    order = [ran.token for ran in host.answers(51)]
    assert order.index(100) <= 2
    assert [token for token in order if token < 100] == list(range(50))
    host.engine.stop()


@pytest.mark.slow
def test_a_client_with_long_requests_gets_no_more_time_than_one_with_short_ones() -> None:
    host = Host({("", "long"): Timed(0.04), ("", "short"): Timed(0.004)})
    host.engine.start(["long", "short"])
    for token in range(12):
        host.submit(token, "long", "long")
    for token in range(100, 180):
        host.submit(token, "short", "short")
    used = {"long": 0.0, "short": 0.0}
    for ran in host.answers(70):
        used["long" if ran.token < 100 else "short"] += ran.run_us / 1e6
    assert abs(used["long"] - used["short"]) < 0.1
    host.engine.stop()


def test_what_is_past_its_deadline_does_not_run() -> None:
    host = Host({("", "a"): Timed()})
    host.segments["", "a"].gate.clear()
    host.engine.start(["a"])
    host.submit(1)
    inputs = {"x": np.zeros((1, 3), np.float32)}
    host.engine.submit(Run(2, "a", inputs, deadline=time.monotonic() + 0.01))
    host.engine.submit(Run(3, "a", inputs, deadline=time.monotonic() + 60))
    time.sleep(0.02)
    host.segments["", "a"].gate.set()
    first, late, last = host.answers(3)
    assert (first.token, late, last.token, last.error) == (1, Ran(2, None, DEADLINE), 3, "")
    assert host.segments["", "a"].rows == [1, 1]
    host.engine.stop()


def test_a_run_that_waits_for_a_load_beyond_its_deadline_is_told_in_time() -> None:
    host = Host({("", "a"): Timed()}, load_s=0.2)
    host.engine.start([])
    inputs = {"x": np.zeros((1, 3), np.float32)}
    began = time.monotonic()
    host.engine.submit(Run(1, "a", inputs, deadline=began + 0.03))
    assert host.answers(1) == [Ran(1, None, DEADLINE)]
    assert time.monotonic() - began < 0.15
    host.engine.stop()


def test_the_expected_wait_follows_what_runs_took() -> None:
    host = Host({("", "a"): Timed(0.02)})
    host.engine.start(["a"])
    assert host.engine.expected_wait_s() == 0
    host.submit(1)
    host.answers(1)
    host.segments["", "a"].gate.clear()
    for token in (2, 3, 4):
        host.submit(token, client="busy")
    wait_for(lambda: host.segments["", "a"].is_running)
    assert 0.02 <= host.engine.expected_wait_s() < 0.5
    assert 0.04 <= host.engine.expected_wait_s("busy") < 1.0
    host.segments["", "a"].gate.set()
    host.answers(3)
    host.engine.stop()


def test_runs_go_on_while_another_bundle_is_loaded() -> None:
    host = Host({("", "a"): Timed(0.001), ("new", "b"): Timed()}, load_s=0.1)
    host.engine.start(["a"])
    ready = host.engine.add("new", ["b"], {"b": 10.0}, ["b"])
    waits: list[float] = []
    while not ready.done():
        host.submit(len(waits))
        waits.append(host.answers(1)[0].wait_us / 1e6)
    assert ready.result() is None
    assert len(waits) >= 10
    assert max(waits) < 0.08, "no run waited for the load"
    host.submit(1000, "b", bundle="new")
    assert host.answers(1)[0].error == ""
    assert host.loads == [("", "a"), ("new", "b")]
    host.engine.stop()


def test_a_run_whose_segment_is_being_loaded_does_not_hold_up_others() -> None:
    host = Host({("", "a"): Timed(), ("", "b"): Timed()}, load_s=0.1)
    host.engine.start(["a"])
    host.submit(1, "b")
    host.submit(2, "a")
    assert [ran.token for ran in host.answers(2)] == [2, 1]
    host.engine.stop()


def test_a_bundle_that_is_removed_is_freed_when_its_run_has_ended() -> None:
    host = Host({("", "a"): Timed(), ("new", "a"): Timed()})
    host.engine.start(["a"])
    host.engine.add("new", ["a"], {"a": 10.0}, ["a"]).result(10)
    old = host.segments["", "a"]
    old.gate.clear()
    host.submit(1)
    host.submit(2)
    wait_for(lambda: old.is_running)
    host.engine.remove("")
    assert host.answers(1) == [Ran(2, None, SKIPPED)]
    assert not old.closed
    old.gate.set()
    assert host.answers(1)[0].error == ""
    wait_for(lambda: old.closed)
    host.submit(3, bundle="new")
    assert host.answers(1)[0].error == ""
    host.submit(4)
    assert "not served here" in host.answers(1)[0].error
    assert host.loaded() == {("new", "a")}
    host.engine.stop()
    assert (old.closed, host.segments["new", "a"].closed) == (1, 1)


def test_what_did_not_fit_beside_the_old_bundle_is_loaded_when_that_is_gone() -> None:
    host = Host({("", "a"): Timed(), ("new", "a"): Timed(), ("new", "b"): Timed()}, budget=25.0)
    host.engine.start(["a"])
    host.engine.add("new", ["a", "b"], {"a": 10.0, "b": 10.0}, ["a"]).result(10)
    time.sleep(0.02)
    assert host.loaded() == {("", "a"), ("new", "a")}
    host.engine.remove("")
    wait_for(lambda: host.loaded() == {("new", "a"), ("new", "b")})
    host.engine.stop()


def test_a_bundle_added_again_waits_for_the_memory_that_its_last_run_holds() -> None:
    host = Host({("", "a"): Timed(), ("new", "a"): Timed()}, budget=25.0)
    host.engine.start(["a"])
    host.engine.add("new", ["a"], {"a": 10.0}, ["a"]).result(10)
    old = host.segments["", "a"]
    old.gate.clear()
    host.submit(1)
    wait_for(lambda: old.is_running)
    host.engine.remove("")
    host.segments["", "a"] = Timed()
    again = host.engine.add("", ["a"], {"a": 10.0}, ["a"])
    time.sleep(0.05)
    assert len(host.loads) == 2, "three at once, and the budget is for two"
    old.gate.set()
    again.result(10)
    assert (old.closed, len(host.loads)) == (1, 3)
    host.engine.stop()


def test_a_preload_that_fails_says_so_and_harms_nobody() -> None:
    host = Host({("", "a"): Timed(), ("new", "b"): Timed()})
    host.broken = {("new", "b")}
    host.engine.start(["a"])
    with pytest.raises(BundleError, match="cannot load b"):
        host.engine.add("new", ["b"], {}, ["b"]).result(10)
    host.submit(1)
    assert host.answers(1)[0].error == ""
    host.submit(2, "b", bundle="new")
    assert "cannot load b" in host.answers(1)[0].error
    host.broken.clear()
    host.submit(3, "b", bundle="new")
    assert host.answers(1)[0].error == "", "the next run tries again"
    host.engine.stop()


def test_a_preload_ends_with_an_error_when_its_bundle_or_the_engine_goes() -> None:
    host = Host({("", "a"): Timed(), ("one", "a"): Timed(), ("two", "a"): Timed()}, load_s=0.05)
    host.engine.start([])
    gone = host.engine.add("one", ["a"], {}, ["a"])
    stopped = host.engine.add("two", ["a"], {}, ["a"])
    host.engine.remove("one")
    with pytest.raises(BundleError, match="removed before"):
        gone.result(10)
    host.engine.stop()
    if not stopped.done() or stopped.exception() is not None:
        with pytest.raises(PeerError, match="stopped"):
            stopped.result(10)


def test_every_run_of_a_segment_that_cannot_be_loaded_gets_the_error() -> None:
    host = Host({("", "a"): Timed()}, load_s=0.01)
    host.broken = {("", "a")}
    host.engine.start([])
    for token in range(4):
        host.submit(token)
    assert all("cannot load a" in ran.error for ran in host.answers(4))
    host.engine.stop()


def test_two_segments_that_do_not_fit_together_take_turns_and_all_runs_end() -> None:
    host = Host({("", "a"): Timed(0.001), ("", "b"): Timed(0.001)}, budget=10.0)
    host.engine.start([])
    for token in range(30):
        host.submit(token, "ab"[token % 2], client="xy"[token % 2])
    assert sorted(ran.token for ran in host.answers(30)) == list(range(30))
    assert len(host.loaded()) == 1
    host.engine.stop()


def test_a_loaded_segment_whose_run_was_skipped_makes_room() -> None:
    host = Host({("", "a"): Timed(), ("", "b"): Timed(), ("", "c"): Timed()}, budget=10.0, load_s=0.03)
    host.segments["", "c"].gate.clear()
    host.engine.start(["c"])
    host.submit(1, "c")
    wait_for(lambda: host.segments["", "c"].is_running)
    host.submit(2, "a")
    host.submit(3, "b")
    host.engine.skip(2)
    host.segments["", "c"].gate.set()
    assert sorted(ran.token for ran in host.answers(3)) == [1, 2, 3]
    host.engine.stop()


def test_residency_tells_estimates_and_what_was_measured() -> None:
    host = Host({("", "a"): Timed(), ("", "b"): Timed()}, budget=100.0, order=["a", "b"])
    host.engine.start(["a"])
    wait_for(lambda: len(host.loaded()) == 2)
    residency = host.engine.residency()
    assert (residency.mode, residency.budget_bytes, residency.estimated_bytes) == ("segments", 100.0, 20.0)
    assert residency.measured_bytes is None or residency.measured_bytes >= 0
    host.engine.stop()
    assert host.engine.residency().loaded == ()


@pytest.mark.slow
def test_other_threads_go_on_while_a_real_engine_computes(tmp_path: Path) -> None:
    """What carries messages must not wait for a run: ONNX Runtime lets go of the interpreter."""
    file = save(wide(4, 768), tmp_path / "wide.onnx")
    loaded = OrtTarget().load(stored(file), "a", LoadOptions(threads=1))
    results: Queue[Ran] = Queue()
    engine = Engine(lambda _bundle, _segment: loaded, (), {}, 1e9, results.put)
    engine.start(["a"])
    beats = 0
    engine.submit(Run(1, "a", {"y0": np.ones((1500, 768), np.float32)}))
    while results.empty():
        time.sleep(0.001)
        beats += 1
    ran = results.get()
    engine.stop()
    assert ran.error == ""
    assert beats >= min(20, ran.run_us / 10_000)


class Tracked(Timed):
    """Notes that it is open, and what is wrong."""

    def __init__(self, alive: set[int], wrong: list[str]) -> None:
        super().__init__()
        self._alive, self._wrong = alive, wrong
        alive.add(id(self))

    def run(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        if id(self) not in self._alive:
            self._wrong.append("run after it was closed")
        return super().run(tensors)

    def close(self) -> None:
        super().close()
        self._alive.remove(id(self))


@pytest.mark.parametrize("seed", range(6))
def test_every_run_ends_once_whatever_comes_and_goes(seed: int) -> None:
    """Random runs, skips, bundles that come and go, loads that fail, under a budget for two segments of nine."""
    rng = random.Random(seed)
    alive: set[int] = set()
    wrong: list[str] = []
    kept: list[Tracked] = []
    results: Queue[Ran] = Queue()

    def load(bundle: str, segment: str) -> Tracked:
        if segment == "c" and len(kept) % 3 == 0:
            raise BundleError(f"cannot load {segment} of {bundle}")
        kept.append(Tracked(alive, wrong))
        if len(alive) > 2:
            wrong.append(f"{len(alive)} at once, and the budget is for two")
        return kept[-1]

    sizes = dict.fromkeys("abc", 10.0)
    batching = BatchOptions(rng.choice([1, 3]), 0.001)
    engine = Engine(load, "abc", sizes, 20.0, results.put, batching=batching)
    engine.start(["a"])
    asked = 0
    for _ in range(150):
        match rng.randrange(12):
            case 0:
                engine.add(rng.choice(["", "p", "q"]), "abc", sizes, rng.choice(["", "a", "bc"]))
            case 1:
                engine.remove(rng.choice(["p", "q"]))
            case 2:
                engine.skip(rng.randrange(asked + 1))
            case 3:
                time.sleep(0.001)
            case _:
                inputs = {"x": np.ones((1, 3), np.float32)}
                deadline = time.monotonic() + rng.choice([0.0, 0.002, 60.0])
                engine.submit(Run(asked, rng.choice("abc"), inputs, rng.choice(["", "p"]), rng.choice("uvw"), deadline))
                asked += 1
    tokens = sorted(results.get(timeout=10).token for _ in range(asked))
    assert tokens == list(range(asked))
    engine.stop()
    assert results.empty()
    assert not alive
    assert not wrong


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system does not tell")
def test_what_a_real_load_takes_is_measured(tmp_path: Path) -> None:
    file = save(wide(4, 1024), tmp_path / "wide.onnx")
    target, host = OrtTarget(), LoadOptions(threads=1)
    # What earlier tests freed would take in the first of them without a trace.
    before = [target.load(stored(file), "a", host) for _ in range(6)]
    engine = Engine(lambda _bundle, _segment: target.load(stored(file), "a", host), (), {"a": 16e6}, 1e9, print)
    engine.start(["a"])
    (holding,) = engine.residency().loaded
    engine.stop()
    for each in before:
        each.close()
    assert holding.measured_bytes is not None
    assert 8e6 < holding.measured_bytes < 100e6


def test_stop_leaves_no_thread() -> None:
    before = threading.active_count()
    host = Host({("", "a"): Timed(), ("", "b"): Timed()}, order=["a", "b"], load_s=0.02)
    host.engine.start([])
    host.submit(1)
    host.engine.stop()
    assert threading.active_count() == before
    assert not host.loaded()
