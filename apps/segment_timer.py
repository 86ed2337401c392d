"""Times segments of a bundle's graph on this host, through the target of one of its tiers.

Segments run in turns, so that a slow spell of the host hits all alike. Each finds its inputs as the segment before it
would have left them: real tensors of one run of the whole model, written just now. A short one runs once before it is
timed. Where the host tells it (Linux), the time in which the thread stood in line for a processor does not count: it is
other programs' load, not the segment's. What the times mean is up to the caller (`flagsplit.apps.profiler`).
"""

import gc
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from flagsplit import flagir
from flagsplit.errors import ConfigError
from flagsplit.flagir import Segment
from flagsplit.flagir.opset import IR_VERSION, OPSET
from flagsplit.flagir.segments import segment_of
from flagsplit.runtime.bundle import GRAPH_NAME, WEIGHTS_MEMBER, Bundle
from flagsplit.runtime.inputs import random_inputs
from flagsplit.targets.catalogue import get_target
from flagsplit.targets.interface import Array, CompileOptions, Executable, LoadOptions, Numerics

LEAST_ROUNDS = 3
MOST_ROUNDS = 400
_COPY_BYTES = 8 << 20
_SHORT_S = 3e-3
"""A segment that takes less runs once before it is timed: after something heavy, a small one would take twice as long,
and its time would tell of its forerunner."""
EMPTY = -1
"""Stands for the segment that does nothing: one number, passed on."""


class SegmentTimer:
    """Loads segments of a bundle and times them; a context manager that owns its files.

    Args:
        bundle: whose graph.
        tier: position of the tier whose target compiles and runs.
        threads: of one run; 0 lets the engine choose.

    Attributes:
        model: the canonical graph.
        graph: its blocks at the bundle's nominal sizes.
        numerics: of the bundle.
        target: the tier's.
        copy_s_per_byte: of the host, s to read a byte and write it elsewhere.

    Raises:
        ConfigError: the target's code cannot run on this host.
        InputError: inputs cannot be made up.
    """

    def __init__(self, bundle: Bundle, tier: int, threads: int = 1) -> None:
        artifact = bundle.artifact(tier)
        self.target = get_target(artifact.target)
        if self.target.describe().runs_here == "no":
            raise ConfigError(f"target {artifact.target} cannot run on this host; profile the tier on its own device")
        self.model = flagir.load((bundle.folder / GRAPH_NAME).parent)
        self.graph = flagir.block_graph(self.model, dict(bundle.facts.nominal_dims))
        self.numerics: Numerics = "fast" if artifact.options.get("numerics") == "fast" else "exact"
        self._weights = bundle.folder / WEIGHTS_MEMBER
        self._host = LoadOptions(threads=threads)
        self._inputs = random_inputs(bundle.inputs, bundle.facts.nominal_dims)
        self.copy_s_per_byte = _copy_s_per_byte()
        self._open = ExitStack()
        self._folder = Path(self._open.enter_context(tempfile.TemporaryDirectory(prefix="flagsplit-profile-")))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def time(
        self,
        parts: Sequence[Sequence[int]],
        seconds: float,
        progress: Callable[[float], None] = lambda _share: None,
    ) -> NDArray[np.float64]:
        """Time segments, in turns.

        Args:
            parts: each the indices of blocks that form one convex segment, or `(EMPTY,)`.
            seconds: for how long; at least `LEAST_ROUNDS` rounds are done, at most `MOST_ROUNDS`.
            progress: told the share done, 0 to 1.

        Returns:
            Seconds of each run, shape (rounds, parts).
        """
        segments = [self._segment(part) for part in parts if tuple(part) != (EMPTY,)]
        feeds = self._feeds(segments)
        with ExitStack() as loaded:
            real = iter(self._load(self.model, segments, loaded))
            empty = self._empty(loaded)
            runs = [empty if tuple(part) == (EMPTY,) else next(real) for part in parts]
            turns = [_Turn(run, feeds) for run in runs]
            waited_s = loaded.enter_context(_waiting_clock())
            for turn in turns:
                turn.seconds(waited_s)
            return _rounds(turns, waited_s, seconds, progress)

    def _segment(self, part: Sequence[int]) -> Segment:
        return segment_of(self.model, {node for index in part for node in self.graph.blocks[index].nodes})

    def _feeds(self, segments: Sequence[Segment]) -> dict[str, Array]:
        """The values that these segments read, from one run of the whole graph."""
        wanted = dict.fromkeys(name for segment in segments for name in segment.inputs)
        made = tuple(name for name in wanted if name not in self._inputs)
        if not made:
            return dict(self._inputs)
        whole = segment_of(self.model, {node.name or "" for node in self.model.graph})
        with ExitStack() as loaded:
            (run,) = self._load(self.model, [Segment("values", whole.nodes, whole.inputs, made)], loaded)
            return {**self._inputs, **run.run({name: self._inputs[name] for name in whole.inputs})}

    def _empty(self, loaded: ExitStack) -> Executable:
        """A segment that does nothing: what is left is the cost of running one."""
        given = ir.Value(name="flagsplit_x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([1]))
        node = ir.node("Relu", [given], name="flagsplit_empty")
        made = node.outputs[0]
        made.name, made.type, made.shape = "flagsplit_y", ir.TensorType(ir.DataType.FLOAT), ir.Shape([1])
        graph = ir.Graph([given], [made], nodes=[node], opset_imports={"": OPSET}, name="empty")
        model = ir.Model(graph, ir_version=IR_VERSION)
        (run,) = self._load(model, [segment_of(model, {"flagsplit_empty"})], loaded)
        return run

    def _load(self, model: ir.Model, segments: Sequence[Segment], loaded: ExitStack) -> list[Executable]:
        artifact = self.target.compile(model, segments, CompileOptions(self.numerics))
        stored = artifact.store(self._folder, self._weights)
        found = []
        for segment in segments:
            found.append(self.target.load(stored, segment.id, self._host))
            loaded.callback(found[-1].close)
        return found


class _Turn:
    """One segment with its inputs, ready to be timed."""

    def __init__(self, run: Executable, values: Mapping[str, Array]) -> None:
        self._run = run
        self._took_s = 0.0
        one = np.ones(1, np.float32)
        self._sources = {spec.name: values.get(spec.name, one) for spec in run.inputs}
        self._buffers = {name: source.copy() for name, source in self._sources.items()}

    def seconds(self, waited_s: Callable[[], float]) -> float:
        if self._took_s < _SHORT_S:
            self._run.run(self._buffers)
        for name, source in self._sources.items():
            np.copyto(self._buffers[name], source)
        waited_before = waited_s()
        started = time.perf_counter()
        self._run.run(self._buffers)
        took = time.perf_counter() - started
        self._took_s = max(took - (waited_s() - waited_before), took / 100)
        return self._took_s


def _copy_s_per_byte() -> float:
    source = np.ones(_COPY_BYTES, np.uint8)
    target = source.copy()
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        np.copyto(target, source)
        best = min(best, time.perf_counter() - started)
    return best / _COPY_BYTES


def _rounds(
    turns: Sequence[_Turn], waited_s: Callable[[], float], seconds: float, progress: Callable[[float], None]
) -> NDArray[np.float64]:
    found: list[list[float]] = []
    started = time.monotonic()
    with _no_collections():
        while len(found) < MOST_ROUNDS:
            passed = time.monotonic() - started
            if len(found) >= LEAST_ROUNDS and passed > seconds:
                break
            progress(min(1.0, max(passed / seconds, len(found) / MOST_ROUNDS)))
            found.append([turn.seconds(waited_s) for turn in turns])
    return np.array(found)


@contextmanager
def _waiting_clock() -> Iterator[Callable[[], float]]:
    """For how long this thread could have run but stood in line for a processor, s; 0 where the host does not tell."""
    try:
        file = os.open("/proc/thread-self/schedstat", os.O_RDONLY)
    except OSError:
        yield lambda: 0.0
        return
    try:
        yield lambda: int(os.pread(file, 128, 0).split()[1]) * 1e-9
    finally:
        os.close(file)


@contextmanager
def _no_collections() -> Iterator[None]:
    """Keep the garbage collector from running inside a timed call."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
