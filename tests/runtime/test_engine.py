"""The compute thread, and the shell that gives it work."""

import math
import threading
import time
from collections.abc import Mapping
from queue import Queue

import numpy as np
import pytest

from flagsplit.errors import BundleError, ConfigError, InputError
from flagsplit.runtime import engine
from flagsplit.runtime.engine import Engine
from flagsplit.runtime.events import Connect, Event, Instruction, Leave, Note, Ran, Run, Skip, Tick
from flagsplit.runtime.session import SessionSettings
from flagsplit.runtime.shell import Shell, describe
from flagsplit.runtime.worker import WorkerSettings
from flagsplit.targets.interface import Array, TensorSpec
from flagsplit.transport.channel import Down
from flagsplit.transport.memory import MemoryChannel, MemoryNetwork


class Fake:
    """A segment that adds one, until it is told otherwise."""

    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log
        self.error: BaseException | None = None
        self.gate = threading.Event()
        self.gate.set()

    def run(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        assert self.gate.wait(10)
        self.log.append(f"run {self.name}")
        if self.error is not None:
            raise self.error
        return {name: array + 1 for name, array in tensors.items()}

    def close(self) -> None:
        self.log.append(f"close {self.name}")


class Bench:
    """An engine over fakes a, b, c, d of 10 bytes each."""

    def __init__(self, budget: float = 100.0, order: str = "abcd", slowdown: float = 1.0) -> None:
        self.log: list[str] = []
        self.fakes = {name: Fake(name, self.log) for name in "abcd"}
        self.broken: set[str] = set()
        self.results: Queue[Ran] = Queue()
        self.engine = Engine(self.load, list(order), dict.fromkeys("abcd", 10.0), budget, self.results.put, slowdown)

    def load(self, bundle: str, segment: str) -> Fake:
        assert not bundle
        if segment in self.broken:
            raise BundleError(f"cannot load {segment}")
        self.log.append(f"load {segment}")
        return self.fakes[segment]

    def run(self, segment: str, token: int = 1) -> Ran:
        self.engine.submit(Run(token, segment, {"x": np.arange(3)}))
        return self.results.get(timeout=10)

    def settle(self) -> None:
        """Wait until nothing is loaded any more."""
        seen = -1
        while len(self.log) != seen:
            seen = len(self.log)
            time.sleep(0.03)

    def loaded(self) -> set[str]:
        """What the log says is loaded."""
        found: set[str] = set()
        for line in self.log:
            word, name = line.split()
            if word == "load":
                assert name not in found, "loaded twice"
                found.add(name)
            if word == "close":
                found.remove(name)
        return found


def test_preload_comes_first_then_the_others_in_their_order() -> None:
    bench = Bench()
    bench.engine.start(["c"])
    assert bench.log[0] == "load c"
    bench.settle()
    assert bench.log == ["load c", "load a", "load b", "load d"]
    bench.engine.stop()
    assert bench.loaded() == set()


def test_spares_stay_within_the_budget_and_the_least_used_makes_room() -> None:
    bench = Bench(budget=25.0)
    bench.engine.start(["a"])
    bench.settle()
    assert bench.loaded() == {"a", "b"}
    bench.run("a")
    bench.run("c")
    assert bench.loaded() == {"a", "c"}, "b was loaded on the chance only"
    bench.run("a")
    bench.run("d")
    assert bench.loaded() == {"a", "d"}
    bench.engine.stop()


def test_one_segment_is_loaded_whatever_the_budget() -> None:
    bench = Bench(budget=1.0, order="")
    bench.engine.start([])
    for name in "abab":
        assert bench.run(name).error == ""
        assert bench.loaded() == {name}
    bench.engine.stop()


def test_results_come_in_order_with_their_times() -> None:
    bench = Bench(order="")
    bench.engine.start([])
    bench.fakes["a"].gate.clear()
    for token in (7, 8):
        bench.engine.submit(Run(token, "a", {"x": np.arange(3)}))
    time.sleep(0.02)
    bench.fakes["a"].gate.set()
    first, second = bench.results.get(timeout=10), bench.results.get(timeout=10)
    assert (first.token, second.token) == (7, 8)
    assert first.outputs is not None
    assert first.outputs["x"].tolist() == [1, 2, 3]
    assert first.run_us >= 10_000
    assert second.wait_us >= 10_000
    bench.engine.stop()


@pytest.mark.parametrize(
    "error", [InputError("bad shape"), MemoryError(), ValueError("surprise"), RuntimeError("surprise"), OSError("disk")]
)
def test_what_a_segment_raises_comes_back_and_the_next_run_works(error: Exception) -> None:
    bench = Bench()
    bench.engine.start([])
    bench.fakes["a"].error = error
    ran = bench.run("a")
    assert ran.outputs is None
    assert ran.error
    assert "\n" not in ran.error
    assert bench.run("b", 2).outputs is not None
    bench.engine.stop()


def test_a_segment_that_cannot_be_loaded() -> None:
    bench = Bench()
    bench.broken = {"a"}
    with pytest.raises(BundleError):
        bench.engine.start(["a"])
    bench.engine.stop()
    bench = Bench()
    bench.broken = {"a"}
    bench.engine.start(["b"])
    bench.settle()
    assert "cannot load a" in bench.run("a").error
    assert bench.run("b", 2).error == ""
    bench.engine.stop()
    assert bench.loaded() == set()


def test_skip_drops_what_did_not_begin() -> None:
    bench = Bench(order="")
    bench.engine.start([])
    bench.fakes["a"].gate.clear()
    for token in (1, 2, 3):
        bench.engine.submit(Run(token, "a", {"x": np.arange(3)}))
    time.sleep(0.02)
    bench.engine.skip(2)
    assert bench.results.get(timeout=10) == Ran(2, None, "skipped")
    bench.engine.skip(1)
    bench.fakes["a"].gate.set()
    assert [bench.results.get(timeout=10).token for _ in range(2)] == [1, 3]
    bench.engine.stop()


def test_stop_ends_the_run_under_way_and_drops_the_others() -> None:
    threads = threading.active_count()
    bench = Bench(order="")
    bench.engine.start([])
    bench.fakes["a"].gate.clear()
    for token in (1, 2):
        bench.engine.submit(Run(token, "a", {"x": np.arange(3)}))
    time.sleep(0.02)
    stopper = threading.Thread(target=bench.engine.stop)
    stopper.start()
    bench.fakes["a"].gate.set()
    stopper.join(10)
    assert bench.log == ["load a", "run a", "close a"]
    bench.engine.stop()
    assert threading.active_count() == threads


class Script:
    """A machine that notes events and says what it is told to."""

    def __init__(self) -> None:
        self.events: Queue[Event] = Queue()
        self.answers: dict[type, list[Instruction]] = {}
        self.error: Exception | None = None
        self.ticked = 0.0

    def handle(self, event: Event, now: float) -> list[Instruction]:
        self.events.put(event)
        self.ticked = now
        if self.error is not None:
            raise self.error
        return self.answers.get(type(event), [])

    def next_tick(self) -> float:
        return self.ticked + 0.02

    def next_of(self, kind: type) -> Event:
        while True:
            event = self.events.get(timeout=10)
            if isinstance(event, kind):
                return event


class Stage:
    """A shell around a script."""

    def __init__(self) -> None:
        self.script = Script()
        self.bench = Bench(order="")
        self.channel = MemoryChannel(MemoryNetwork())
        self.told: Queue[Instruction] = Queue()
        self.failed: Queue[Exception] = Queue()
        self.shell = Shell(self.script, self.channel, self.bench.engine, self.told.put, self.failed.put, "test-shell")
        self.bench.engine.start([])


def test_a_shell_carries_events_in_and_instructions_out() -> None:
    stage = Stage()
    stage.script.answers[Leave] = [Note("bye")]
    stage.shell.start([Note("hello"), Connect("peer", "mem://nowhere", "")])
    assert stage.told.get(timeout=10) == Note("hello")
    assert stage.script.next_of(Down)
    assert stage.script.next_of(Tick)
    stage.script.answers[Ran] = [Run(5, "a", {"x": np.arange(3)})]
    stage.shell.post(Ran(1, None))
    stage.script.next_of(Ran)
    assert stage.bench.results.get(timeout=10).token == 5
    stage.script.answers[Ran] = [Skip(5)]
    stage.shell.stop()
    assert stage.told.get(timeout=10) == Note("bye")
    assert stage.shell.join(0)
    stage.shell.stop()
    stage.shell.post(Tick())
    assert stage.bench.loaded() == set()


def test_a_machine_that_breaks_is_told_once_and_everything_is_freed() -> None:
    stage = Stage()
    stage.shell.start([])
    stage.script.error = ValueError("surprise")
    error = stage.failed.get(timeout=10)
    assert stage.shell.join(10)
    assert stage.failed.empty()
    assert "surprise" in str(describe(error))
    assert not stage.bench.engine._thread.is_alive()


def test_an_address_that_is_none_is_an_error_at_the_start_and_a_lost_peer_later() -> None:
    stage = Stage()
    with pytest.raises(ConfigError):
        stage.shell.start([Connect("peer", "nonsense", "")])
    assert not stage.bench.engine._thread.is_alive()
    stage = Stage()
    stage.script.answers[Ran] = [Connect("peer", "nonsense", "")]
    stage.shell.start([])
    stage.shell.post(Ran(1, None))
    down = stage.script.next_of(Down)
    assert isinstance(down, Down)
    assert down.peer == "peer"
    stage.shell.stop()
    assert stage.failed.empty()


def test_what_a_run_waited_for_a_processor_is_not_slowed_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "processor_waits_s", iter([5.0, 5.02]).__next__)
    bench = Bench(slowdown=5.0)
    bench.engine.start(list("abcd"))
    bench.fakes["a"].gate.clear()
    threading.Timer(0.03, bench.fakes["a"].gate.set).start()
    run_s = bench.run("a").run_us / 1e6
    assert 0.01 * 5 * 0.9 < run_s < 0.03 * 5 * 0.9
    bench.engine.stop()


def test_waits_for_a_processor_only_grow() -> None:
    before = engine.processor_waits_s()
    assert 0 <= before <= engine.processor_waits_s()


def test_a_slowed_engine_is_busy_for_so_many_times_as_long() -> None:
    bench = Bench(slowdown=5.0)
    bench.engine.start(list("abcd"))
    opened = threading.Timer(0.03, bench.fakes["a"].gate.set)
    bench.fakes["a"].gate.clear()
    opened.start()
    started = time.monotonic()
    first = bench.run("a")
    took_s = time.monotonic() - started
    assert 0.03 * 5 * 0.9 < first.run_us / 1e6 <= took_s
    bench.engine.stop()


def test_a_slowed_engine_stops_at_once() -> None:
    bench = Bench(slowdown=1e6)
    bench.engine.start(list("abcd"))
    bench.engine.submit(Run(1, "a", {"x": np.zeros(1)}))
    while "run a" not in bench.log:
        time.sleep(0.001)
    bench.engine.stop()
    assert bench.loaded() == set()


@pytest.mark.parametrize("slowdown", [0.5, 0.0, -1.0, math.nan, math.inf])
def test_no_tier_can_be_made_faster(slowdown: float) -> None:
    said = f"slowdown: expected a factor of 1 or more, came {slowdown};"
    with pytest.raises(ConfigError, match=said):
        SessionSettings(slowdown=slowdown)
    with pytest.raises(ConfigError, match=said):
        WorkerSettings(slowdown=slowdown)
