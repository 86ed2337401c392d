"""Seconds that each block of a graph takes on this host, one thread, measured in place.

Every block is compiled as a segment of its own and all run in their order on real values, in turns with the whole
graph. A call of the engine costs something however little it does; that is taken off each block so that the blocks add
up to the whole.
"""

import statistics
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flagsplit import flagir
from flagsplit.flagir import Skeleton
from flagsplit.targets.catalogue import get_target
from flagsplit.targets.interface import Array, CompileOptions, Executable, LoadOptions

_PAUSE_S = 0.02


class Profiled:
    """A model of one input, ready to be timed block by block.

    Args:
        path: the model.
        shape: of its input.
        folder: for its files, empty; kept until the object is done with.

    Attributes:
        inputs: made-up inputs.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], folder: Path) -> None:
        model = flagir.read_model(path)
        flagir.canonicalize(model)
        flagir.save(model, folder)
        skeleton = Skeleton(model)
        (name,) = skeleton.inputs
        dims = flagir.nominal_dims(skeleton, flagir.dims_of_shapes(skeleton, {name: shape}))
        self._graph = flagir.block_graph(model, dims, skeleton)
        self.inputs: dict[str, Array] = {name: np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
        place = {node: block.index for block in self._graph.blocks for node in block.nodes}
        self._parts = [step.segment for step in flagir.cut_into_steps(model, place, len(self._graph.blocks))]
        (whole,) = [step.segment for step in flagir.cut_into_steps(model, dict.fromkeys(place, 0), 1)]
        self._whole = whole
        target = get_target("ort")
        artifact = target.compile(model, [whole, *self._parts], CompileOptions())
        stored, host = artifact.store(folder, folder / flagir.WEIGHTS_NAME), LoadOptions(threads=1)
        self._loaded: dict[str, Executable] = {part: target.load(stored, part, host) for part in artifact.entries}

    def whole_s(self) -> float:
        """Seconds of one run of the whole graph, now."""
        started = time.perf_counter()
        self._loaded[self._whole.id].run(self.inputs)
        return time.perf_counter() - started

    def seconds(self, rounds: int) -> dict[str, float]:
        """Median seconds of each block over so many rounds, by the block's name."""
        values = dict(self.inputs)
        took: dict[str, list[float]] = {segment: [] for segment in self._loaded}
        for _ in range(rounds + 1):
            for segments in ([self._whole], self._parts):
                time.sleep(_PAUSE_S)  # a tier is idle before a request comes
                for segment in segments:
                    given = {name: values[name] for name in segment.inputs}
                    started = time.perf_counter()
                    values.update(self._loaded[segment.id].run(given))
                    took[segment.id].append(time.perf_counter() - started)
        medians = {segment: statistics.median(times[1:]) for segment, times in took.items()}
        adding_up = _adding_up([medians[part.id] for part in self._parts], medians[self._whole.id])
        by_node = {part.nodes[0]: float(s) for part, s in zip(self._parts, adding_up, strict=True)}
        return {block.name: by_node[block.nodes[0]] for block in self._graph.blocks}


def _adding_up(parts: list[float], whole: float) -> NDArray[np.float64]:
    """Take the same off each part, no more than it has, so that the sum is the whole; then the rest in proportion."""
    times = np.array(parts)
    low, high = 0.0, float(times.max())
    for _ in range(60):
        call_s = (low + high) / 2
        low, high = (call_s, high) if np.maximum(times - call_s, 0.0).sum() > whole else (low, call_s)
    left: NDArray[np.float64] = np.maximum(times - low, times * 1e-3)
    scaled: NDArray[np.float64] = left * (whole / left.sum())
    return scaled
