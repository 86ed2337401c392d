"""What it takes to hold all pooled plans of a model on one tier: as whole segments, and as the atoms that they share.

The farthest of two tiers of a real model, with further plans that cut at every tenth of it. Each way is loaded in a
process of its own, and measured there.

Figures: `segments_bytes` and `atoms_bytes`, by how much the process's private memory grew; `segments_estimated_bytes`
and `atoms_estimated_bytes`, what was expected; `weights_bytes`, of the model; `chain_over_whole`, the ratio of the
medians of one run of the whole model on the tier as a chain and as one segment, in turns; `switch_ms_p50` and
`switch_ms_max`, from asking to the start of a run of another plan than before, everything loaded.
"""

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from queue import Queue

from flagsplit.apps import zoo
from flagsplit.apps.groundwork import BuildOptions
from flagsplit.apps.pipeline import build
from flagsplit.runtime.bundle import Bundle, open_bundle
from flagsplit.runtime.engine import Engine
from flagsplit.runtime.events import Ran, Run
from flagsplit.runtime.inputs import random_inputs
from flagsplit.runtime.residency import Mode, loadout
from flagsplit.splitter.problem import Problem
from flagsplit.targets.interface import Array, LoadOptions

MODELS = {"ppocr-rec": {"p2o.DynamicDimension.0": 1, "p2o.DynamicDimension.1": 160}, "light-resnet50": {}}
HOST = LoadOptions(threads=1)


def tenths(problem: Problem) -> dict[str, list[int]]:
    """Plans that go over to the second tier after each tenth of the blocks."""
    n = len(problem.graph.blocks)
    return {f"tenth-{at}": [0] * (n * at // 10) + [1] * (n - n * at // 10) for at in range(1, 10)}


def held(path: Path, cache: Path, mode: Mode) -> tuple[float, int]:
    """What an engine with everything loaded was expected to hold, and holds."""
    bundle = open_bundle(path, cache)
    way = loadout(bundle, 1, 1e12, HOST, mode)
    engine = Engine(
        lambda _, segment: way.load(segment), way.order, way.size_bytes, 1e12, print, parts=way.parts, mode=mode
    )
    engine.start(way.order)
    residency = engine.residency()
    engine.stop()
    return residency.estimated_bytes, residency.measured_bytes or 0


def feeds(bundle: Bundle) -> dict[str, dict[str, Array]]:
    """Inputs of each segment of the second tier."""
    ways = [loadout(bundle, tier, 1e12, HOST, "segments") for tier in range(2)]
    found: dict[str, dict[str, Array]] = {}
    for plan in bundle.plans.pool.plans:
        values = random_inputs(bundle.inputs, bundle.facts.nominal_dims)
        for step in bundle.plans.steps[plan.name]:
            given = {name: values[name] for name in step.inputs}
            executable = ways[step.tier].load(step.segment)
            values |= executable.run(given)
            executable.close()
            if step.tier == 1:
                found[step.segment] = given
    return found


def chain_over_whole(bundle: Bundle, given: dict[str, dict[str, Array]], runs: int) -> float:
    """How much longer the longest segment takes as a chain."""
    chain, whole = loadout(bundle, 1, 1e12, HOST, "atoms"), loadout(bundle, 1, 1e12, HOST, "segments")
    segment = max(chain.parts, key=lambda name: len(chain.parts[name]))
    loaded = {"chain": chain.load(segment), "whole": whole.load(segment)}
    took: dict[str, list[float]] = {name: [] for name in loaded}
    for _ in range(runs):
        for name, executable in loaded.items():
            began = time.perf_counter()
            executable.run(given[segment])
            took[name].append(time.perf_counter() - began)
    return statistics.median(took["chain"]) / statistics.median(took["whole"])


def switches_ms(bundle: Bundle, given: dict[str, dict[str, Array]], runs: int) -> list[float]:
    """From asking to the start of each run, plans taking turns."""
    way, results = loadout(bundle, 1, 1e12, HOST, "atoms"), Queue[Ran]()
    engine = Engine(lambda _, segment: way.load(segment), way.order, way.size_bytes, 1e12, results.put, parts=way.parts)
    engine.start(way.order)
    found = []
    for token in range(runs):
        segment = way.order[token % len(way.order)]
        engine.submit(Run(token, segment, given[segment]))
        found.append(results.get().wait_us / 1e3)
    engine.stop()
    return found


def measure(name: str, runs: int) -> dict[str, float]:
    """All figures of one model."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        options = BuildOptions(dims=MODELS[name], residency="atoms", extra_plans=tenths)
        built = build(zoo.pull(name), ("phone", "cloud"), folder / "x.flagsplit", options=options)
        bundle = open_bundle(built.path, folder)
        figures: dict[str, float] = {"weights_bytes": built.weights_bytes}
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            for mode in ("segments", "atoms"):
                expected, found = pool.apply(held, (built.path, folder, mode))
                figures |= {f"{mode}_estimated_bytes": expected, f"{mode}_bytes": found}
        given = feeds(bundle)
        figures["chain_over_whole"] = chain_over_whole(bundle, given, runs)
        switches = switches_ms(bundle, given, 4 * runs)
        return figures | {"switch_ms_p50": statistics.median(switches), "switch_ms_max": max(switches)}


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="one model, fewer runs")
    given = parser.parse_args()
    names, runs = (list(MODELS)[:1], 15) if given.quick else (list(MODELS), 40)
    figures = {f"{figure}_{name}": round(value, 4) for name in names for figure, value in measure(name, runs).items()}
    conditions = {"threads": 1, "cores": os.cpu_count(), "machine": platform.machine(), "runs": runs}
    if given.json:
        print(json.dumps({"figures": figures, "conditions": conditions, "basis": "measured"}))
        return
    for name, value in figures.items():
        print(f"{name:44} {value:.6g}")


if __name__ == "__main__":
    main()
