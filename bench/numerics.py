"""What exact numerics cost, and what they buy: ONNX Runtime with and without blocked layouts, whole and cut in three.

Figures by model: `exact_over_fast_MODEL`, the ratio of the medians of one run of the whole graph on one thread, timed
in turns; `exact_difference` and `fast_difference`, the largest difference of a graph cut in three from the whole one,
relative to the output's range.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from flagsplit import flagir
from flagsplit.apps.compare import compare
from flagsplit.apps.zoo import pull
from flagsplit.flagir import Segment, Skeleton
from flagsplit.targets.catalogue import get_target
from flagsplit.targets.interface import Array, CompileOptions, Executable, LoadOptions, Numerics

MODELS = {"ppocr-rec": (1, 3, 48, 320), "ppocr-det": (1, 3, 640, 640), "light-resnet50": (1, 3, 224, 224)}


class Cut:
    """A model, whole and in three parts, loaded with one kind of numerics."""

    def __init__(self, path: Path, shape: tuple[int, ...], numerics: Numerics, folder: Path) -> None:
        model = flagir.read_model(path)
        flagir.canonicalize(model)
        flagir.save(model, folder)
        skeleton = Skeleton(model)
        (self.input,) = skeleton.inputs
        graph = flagir.block_graph(model, flagir.dims_of_shapes(skeleton, {self.input: shape}), skeleton)
        count = len(graph.blocks)
        place = {node: block.index * 3 // count for block in graph.blocks for node in block.nodes}
        self.steps = [step.segment for step in flagir.cut_into_steps(model, place, 3)]
        (whole,) = flagir.cut_into_steps(model, dict.fromkeys(place, 0), 1)
        self.whole_segment = whole.segment
        target = get_target("ort")
        artifact = target.compile(model, [whole.segment, *self.steps], CompileOptions(numerics))
        stored = artifact.store(folder, folder / "weights.bin")

        def load(segment: Segment) -> Executable:
            return target.load(stored, segment.id, LoadOptions(threads=1))

        self.whole = load(whole.segment)
        self.parts = [load(segment) for segment in self.steps]

    def run_parts(self, inputs: dict[str, Array]) -> dict[str, Array]:
        values = dict(inputs)
        for segment, part in zip(self.steps, self.parts, strict=True):
            values.update(part.run({name: values[name] for name in segment.inputs}))
        return {name: values[name] for name in self.whole_segment.outputs}


def measure(name: str, shape: tuple[int, ...], runs: int, folder: Path) -> dict[str, float]:
    """Figures of one model."""
    cuts: dict[str, Cut] = {}
    for numerics in ("exact", "fast"):
        (folder / numerics).mkdir()
        cuts[numerics] = Cut(pull(name), shape, numerics, folder / numerics)
    inputs = {cuts["exact"].input: np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
    took: dict[str, list[float]] = {"exact": [], "fast": []}
    for _ in range(runs):
        for numerics, cut in cuts.items():
            started = time.perf_counter()
            cut.whole.run(inputs)
            took[numerics].append(time.perf_counter() - started)
    figures = {f"exact_over_fast_{name}": statistics.median(took["exact"]) / statistics.median(took["fast"])}
    for numerics, cut in cuts.items():
        differences = compare(cut.whole.run(inputs), cut.run_parts(inputs))
        figures[f"{numerics}_difference_{name}"] = max(d.max_rel for d in differences.values())
    return figures


def main() -> None:
    """Run, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="fewer runs")
    options = parser.parse_args()
    runs = 5 if options.quick else 25
    figures: dict[str, float] = {}
    for name, shape in MODELS.items():
        with tempfile.TemporaryDirectory() as folder:
            figures |= measure(name, shape, runs, Path(folder))
    if options.json:
        conditions = {"machine": platform.machine(), "threads": 1, "runs": runs}
        print(json.dumps({"figures": figures, "conditions": conditions, "basis": "measured"}))
    else:
        for key, value in figures.items():
            print(f"{key:40} {value:.4g}")


if __name__ == "__main__":
    main()
