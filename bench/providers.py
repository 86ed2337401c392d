"""ONNX Runtime's providers beside its CPU provider, each on one thread of this host, by turns in one run.

Figures, for each provider that is listed and each model: `<provider>_speedup_<model>`, the median time of a run on the
CPU provider over its own; `<provider>_off_<model>`, the norm of what its answers differ by over that of the answers;
`cpu_ms_<model>`. A provider that cannot load a model is in `refused`, with the reason.

OpenVINO comes in a package of its own: `make test-openvino` puts it beside the environment, and
`PYTHONPATH=.venv-openvino .venv/bin/python bench/providers.py --json` measures it.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime

from flagsplit import flagir
from flagsplit.apps.conformance_models import zoo_models
from flagsplit.errors import FlagsplitError
from flagsplit.flagir.segments import segment_of
from flagsplit.targets.cloud.ort import OrtTarget
from flagsplit.targets.cloud.ort_providers import CPU, PROVIDERS
from flagsplit.targets.conformance import CorpusModel
from flagsplit.targets.conformance.seeded_weights import draw_weights
from flagsplit.targets.interface import Array, CompileOptions, Executable, LoadOptions

MODELS = ("ppocr-cls", "ppocr-det", "ppocr-rec", "light-resnet50", "light-shufflenet", "light-squeezenet")
HOST = LoadOptions(threads=1)


def opened(asked: CorpusModel, folder: Path, names: list[str], refused: dict[str, str]) -> dict[str, Executable]:
    """A model on each provider that loads it."""
    assert asked.path is not None
    model = flagir.read_model(asked.path)
    flagir.canonicalize(model)
    if asked.seed_weights:
        draw_weights(model, asked.inputs, np.random.default_rng(0))
    flagir.save(model, folder)
    whole = segment_of(model, [node.name or "" for node in model.graph])
    found: dict[str, Executable] = {}
    for name in names:
        made = OrtTarget().compile(model, [whole], CompileOptions("fast", choices={"provider": name}))
        try:
            found[name] = OrtTarget().load(made.store(folder / name, folder / flagir.WEIGHTS_NAME), whole.id, HOST)
        except FlagsplitError as error:
            refused[f"{name} {asked.name}"] = str(error)[:200]
    return found


def times_ms(engines: Mapping[str, Executable], inputs: Mapping[str, Array], seconds: float) -> dict[str, float]:
    """The median time of a run on each, by turns."""
    found: dict[str, list[float]] = {name: [] for name in engines}
    for engine in engines.values():
        engine.run(inputs)
    until = time.monotonic() + seconds
    while time.monotonic() < until or len(found[CPU]) < 5:
        for name, engine in engines.items():
            began = time.perf_counter()
            engine.run(inputs)
            found[name].append((time.perf_counter() - began) * 1e3)
    return {name: statistics.median(times) for name, times in found.items()}


def off(came: Mapping[str, Array], wanted: Mapping[str, Array]) -> float:
    """The most that an output is off by, in norms."""
    pairs = [
        (np.asarray(came[name], np.float64).ravel(), np.asarray(wanted[name], np.float64).ravel()) for name in wanted
    ]
    return max(float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in pairs)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--seconds", type=float, default=4.0, help="how long each model runs")
    options = parser.parse_args()
    listed = onnxruntime.get_available_providers()
    names = [CPU, *(name for name, each in PROVIDERS.items() if next(iter(each.sessions)) in listed)]
    figures: dict[str, float] = {}
    refused: dict[str, str] = {}
    for asked in zoo_models(MODELS):
        if asked.path is None:
            refused[asked.name] = asked.missing
            continue
        with tempfile.TemporaryDirectory() as scratch:
            engines = opened(asked, Path(scratch), names, refused)
            took = times_ms(engines, asked.inputs, options.seconds)
            answers = {name: engine.run(asked.inputs) for name, engine in engines.items()}
            for engine in engines.values():
                engine.close()
        figures[f"cpu_ms_{asked.name}"] = round(took[CPU], 3)
        for name in engines:
            if name != CPU:
                figures[f"{name}_speedup_{asked.name}"] = round(took[CPU] / took[name], 3)
                figures[f"{name}_off_{asked.name}"] = off(answers[name], answers[CPU])
    conditions = {
        "onnxruntime": onnxruntime.__version__,
        "providers": names,
        "threads": 1,
        "cores": os.cpu_count(),
        "host": platform.machine(),
    }
    if options.json:
        data = {"figures": figures, "conditions": conditions, "refused": refused, "basis": "measured"}
        print(json.dumps(data, indent=1))
        return
    for name, value in figures.items():
        print(f"{name:40} {value:.4g}")
    for name, why in refused.items():
        print(f"{name}: {why}")


if __name__ == "__main__":
    main()
