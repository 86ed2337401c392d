"""What it takes to compile phone artifacts: seconds, peak memory, what three plans in one file cost, how exact it is.

Each model and target is compiled in a process of its own: the whole model, and the two halves of two cuts, as a bundle
with three plans has them. `TARGET_MODEL_seconds` and `_peak_mb` are of that process from the canonical graph on, the
SDK's import included (bars for ppocr-rec: 20 s, 1,500 MB). `_size_ratio` is the artifact of all segments over that of
the whole model alone (bar 1.1). `_error`
is the largest norm-relative difference from ONNX Runtime over the segments. Products that are quantized on the fly, as
in moonshine-encoder, are made floating first, for ONNX Runtime too.
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
import wave
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from flagsplit import flagir
from flagsplit.apps.ocr import cut_line, find_lines, first_page, prepare
from flagsplit.apps.ocr.recogniser import resample
from flagsplit.apps.zoo import pull
from flagsplit.errors import FlagsplitError
from flagsplit.flagir import Segment, Skeleton
from flagsplit.flagir.passes.float_products import float_products
from flagsplit.runtime.inputs import random_inputs
from flagsplit.runtime.manifest import Tensor
from flagsplit.targets.catalogue import get_target, missing_sdk
from flagsplit.targets.interface import Array, Artifact, CompileOptions, LoadOptions, StoredArtifact

SHAPES: Mapping[str, Mapping[str, tuple[int, ...]]] = {
    "ppocr-rec": {"x": (1, 3, 48, 320)},
    "ppocr-det": {"x": (1, 3, 320, 320)},
    "ppocr-cls": {"x": (1, 3, 48, 192)},
    "light-squeezenet": {"data_0": (1, 3, 224, 224)},
    "light-densenet121": {"data_0": (1, 3, 224, 224)},
    "moonshine-encoder": {"input_values": (1, 32000), "attention_mask": (1, 32000)},
}
QUICK = ("ppocr-rec",)
TARGETS = ("coreml", "litert", "qnn")
BARS = {"seconds": 20.0, "peak_mb": 1500.0, "size_ratio": 1.1}
HOST = LoadOptions(threads=2)


def segments_of(model: ir.Model, dims: Mapping[str, int]) -> list[Segment]:
    """The whole model, then both halves of a cut at a third and of one at two thirds."""
    blocks = flagir.block_graph(model, dims).blocks
    found = {}
    for share in (0.0, 1 / 3, 2 / 3):
        place = {
            node: int(share > 0 and block.index >= share * len(blocks)) for block in blocks for node in block.nodes
        }
        for step in flagir.cut_into_steps(model, place, 2):
            found[step.segment.id] = step.segment
    return list(found.values())


def compile_one(name: str, target_name: str, folder: Path) -> dict[str, float]:
    """Compile all segments of a model, in this process.

    Args:
        name: of the model in the zoo.
        target_name: the target.
        folder: for the artifact.
    """
    model = flagir.read_model(pull(name))
    flagir.canonicalize(model)
    float_products(model)
    flagir.save(model, folder)
    skeleton = Skeleton(model)
    dims = flagir.nominal_dims(skeleton, flagir.dims_of_shapes(skeleton, SHAPES[name]))
    sample = _sample(name, dims)
    options = CompileOptions(dims=dims, samples=[sample], weights=folder / flagir.WEIGHTS_NAME)
    segments = segments_of(model, dims)
    target = get_target(target_name)
    started = time.perf_counter()
    artifact = target.compile(model, segments, options)
    seconds = time.perf_counter() - started
    peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    peak_mb = sum(peaks) / 1e3
    alone = target.compile(model, segments[:1], options)
    stored = artifact.store(folder / "artifact", folder / flagir.WEIGHTS_NAME)
    return {
        "seconds": seconds,
        "peak_mb": peak_mb,
        "size_mb": _bytes(artifact) / 1e6,
        "size_ratio": _bytes(artifact) / _bytes(alone),
        "error": _error(model, segments, stored, target_name, sample, folder),
    }


def _sample(name: str, dims: Mapping[str, int]) -> dict[str, Array]:
    """Printed text for what reads text, as its own preprocessing gives it, speech for what hears it, else noise."""
    given, shape = next(iter(SHAPES[name].items()))
    if name == "moonshine-encoder":
        with wave.open(str(pull("beckett.wav"))) as recording:
            heard = np.frombuffer(recording.readframes(shape[1]), np.int16).astype(np.float32) / 32768
        return {given: heard[None], "attention_mask": np.ones(shape, np.int64)}
    if not name.startswith("ppocr"):
        return random_inputs([Tensor(name=given, dtype="float32", shape=list(shape))], dims)
    page = first_page()
    if name == "ppocr-det":
        gray = resample(page, shape[2], shape[3]) / 255
        mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
        picture = (gray[None] - mean[:, None, None]) / deviation[:, None, None]
        return {given: picture[None].astype(np.float32)}
    return {given: prepare([cut_line(page, find_lines(page)[0])], width_px=shape[3])}


def _bytes(artifact: Artifact) -> int:
    return sum(data.stat().st_size if isinstance(data, Path) else len(data) for data in artifact.files.values())


def _error(
    model: ir.Model,
    segments: Sequence[Segment],
    stored: StoredArtifact,
    target_name: str,
    sample: Mapping[str, Array],
    folder: Path,
) -> float:
    """The largest difference of any output of any segment, over the norm of what it should be."""
    ort, target, worst = get_target("ort"), get_target(target_name), 0.0
    reference = ort.compile(model, segments, CompileOptions()).store(folder / "ort", folder / flagir.WEIGHTS_NAME)
    values = dict(sample)
    for segment in (*segments[1:], segments[0]):
        inputs = {name: values[name] for name in segment.inputs}
        expected = ort.load(reference, segment.id, HOST).run(inputs)
        loaded = target.load(stored, segment.id, HOST)
        came = loaded.run(inputs)
        loaded.close()
        values.update(expected)
        for name, array in expected.items():
            wanted = np.asarray(array, np.float64)
            difference = np.linalg.norm(np.asarray(came[name], np.float64) - wanted)
            worst = max(worst, float(difference / max(np.linalg.norm(wanted), 1e-30)))
    return worst


def _in_a_process(name: str, target: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--one", name, "--target", target]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - this very program
    if done.returncode:
        return {"failed": done.stderr.strip().split("\n")[-1][:300]}
    found: dict[str, Any] = json.loads(done.stdout.strip().split("\n")[-1])
    return found


def main() -> None:
    """Run, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="ppocr-rec alone")
    parser.add_argument("--target", action="append", help="only these targets")
    parser.add_argument("--one", default="", help="compile one model here, for this program's own use")
    options = parser.parse_args()
    if options.one:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(compile_one(options.one, options.target[0], Path(folder))))
        return
    figures: dict[str, float] = {}
    left_out: dict[str, str] = {}
    for target in options.target or TARGETS:
        if why := missing_sdk(target):
            left_out[target] = why
            continue
        for name in QUICK if options.quick else SHAPES:
            for what, figure in _in_a_process(name, target).items():
                if what == "failed":
                    left_out[f"{target}_{name}"] = figure
                else:
                    figures[f"{target}_{name}_{what}"] = figure
            if not options.json:
                print(name, target, {k: round(v, 4) for k, v in figures.items() if k.startswith(f"{target}_{name}_")})
    conditions = {
        "left_out": left_out,
        "bars": BARS,
        "machine": platform.machine(),
        "python": platform.python_version(),
    }
    if options.json:
        print(json.dumps({"figures": figures, "conditions": conditions, "basis": "measured"}))


if __name__ == "__main__":
    try:
        main()
    except FlagsplitError as error:
        sys.exit(f"phone_build: {error}")
