"""Segments that take as long as they are told, for tests of the compute thread."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from queue import Queue

import numpy as np

from flagsplit.errors import BundleError
from flagsplit.runtime.batching import BatchOptions
from flagsplit.runtime.engine import Engine
from flagsplit.runtime.events import Ran, Run
from flagsplit.runtime.fair_queue import SegmentKey
from flagsplit.targets.interface import Array, TensorSpec

OPEN = (TensorSpec("x", "float32", ("batch", 3)),)


class Timed:
    """A segment that adds one, slowly, and notes the rows of each run."""

    def __init__(self, takes_s: float = 0.0, specs: tuple[TensorSpec, ...] = OPEN) -> None:
        self.takes_s = takes_s
        self.inputs = self.outputs = specs
        self.rows: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self.closed = 0
        self.is_running = False

    def run(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        self.is_running = True
        assert self.gate.wait(10)
        time.sleep(self.takes_s)
        self.rows.append(len(tensors["x"]))
        self.is_running = False
        return self.answer(tensors["x"])

    def answer(self, x: Array) -> dict[str, Array]:
        return {"x": x + 1}

    def close(self) -> None:
        assert not self.is_running, "closed while it runs"
        self.closed += 1


class Host:
    """An engine over timed segments, and what it answers.

    Attributes:
        segments: what can be loaded, by bundle and id.
        load_s: what each load takes.
        loads: what was loaded, in order.
    """

    def __init__(
        self,
        segments: Mapping[SegmentKey, Timed],
        budget: float = 1e9,
        batching: BatchOptions | None = None,
        order: Sequence[str] = (),
        load_s: float = 0.0,
    ) -> None:
        self.segments = dict(segments)
        self.load_s = load_s
        self.loads: list[SegmentKey] = []
        self.broken: set[SegmentKey] = set()
        self.results: Queue[Ran] = Queue()
        sizes = {segment: 10.0 for bundle, segment in segments if not bundle}
        self.engine = Engine(self.load, order, sizes, budget, self.results.put, batching=batching)

    def load(self, bundle: str, segment: str) -> Timed:
        time.sleep(self.load_s)
        self.loads.append((bundle, segment))
        if (bundle, segment) in self.broken:
            raise BundleError(f"cannot load {segment}")
        return self.segments[bundle, segment]

    def submit(self, token: int, segment: str = "a", client: str = "", bundle: str = "", rows: int = 1) -> None:
        self.engine.submit(Run(token, segment, {"x": np.full((rows, 3), token, np.float32)}, bundle, client))

    def answers(self, number: int) -> list[Ran]:
        """The next results, in the order in which they came."""
        return [self.results.get(timeout=10) for _ in range(number)]

    def loaded(self) -> set[SegmentKey]:
        return {(holding.bundle, holding.segment) for holding in self.engine.residency().loaded}


def wait_for(condition: Callable[[], object], timeout_s: float = 5.0) -> None:
    """Wait until a function of no arguments says yes."""
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.002)
