"""How well costs are predicted on this host from a profile of half of a model's blocks.

Each model's profile times half of its blocks, chosen as `flagsplit profile --share 0.5` does. Then are timed: every run
of neighboring blocks that were not measured, as one segment; and whole plans, the model in one, two and three segments
run in a row. What the calibrated costs say of each is compared with what it took, the lowest tenth of its runs. All is
measured twice, minutes apart, and the faster time counts. Figures, as relative errors:

    median_error, p90_error      of segments and plans together
    *_segments, *_plans          of each alone
    *_unseen                     of segments of blocks whose like was measured in no model: the regression alone
    roofline_*                   the same for the uncalibrated roofline with the figures of `apps/host_profile.py`
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

import flagsplit
from flagsplit.apps.host_profile import measure_host
from flagsplit.apps.profiler import ProfileOptions, ProfileResult, low_decile, profile_bundle
from flagsplit.apps.segment_timer import SegmentTimer
from flagsplit.apps.zoo import pull
from flagsplit.errors import FlagsplitError
from flagsplit.runtime.bundle import Bundle, default_cache
from flagsplit.splitter.calibration import Calibration, boundary_bytes, calibrate
from flagsplit.splitter.costs import Tier, model_costs
from flagsplit.splitter.profiles import Profile, merge_profiles

MODELS: dict[str, dict[str, tuple[int, ...]]] = {
    "ppocr-rec": {"x": (1, 3, 48, 320)},
    "light-squeezenet": {},
    "moonshine-encoder": {"input_values": (1, 32000), "attention_mask": (1, 32000)},
    "minilm": {"ids": (1, 64), "mask": (1, 64)},
    "ppocr-det": {"x": (1, 3, 640, 640)},
    "light-resnet50": {},
    "light-shufflenet": {},
    "light-densenet121": {},
    "light-inception-v1": {},
}
QUICK = ("ppocr-rec", "light-squeezenet", "moonshine-encoder")
SHARE = 0.5
PIECES = (1, 2, 3)


@dataclass(frozen=True)
class Case:
    """Segments run in a row, what that took and whether the regression alone had to predict it."""

    parts: tuple[tuple[int, ...], ...]
    took_s: float
    is_plan: bool


@dataclass(frozen=True)
class Measured:
    """One model: its profile of half of the blocks, and what else was timed."""

    result: ProfileResult
    cases: tuple[Case, ...]


def measure(bundle: Bundle, seconds: float) -> Measured:
    """Profile half of the blocks, then time the other half and whole plans."""
    result = profile_bundle(bundle, "edge", ProfileOptions(share=SHARE, threads=1, seconds=seconds))
    count = len(result.graph.blocks)
    held_out = [(part,) for part in _runs([i for i in range(count) if i not in set(result.measured)])]
    plans = [tuple(tuple(map(int, part)) for part in np.array_split(np.arange(count), pieces)) for pieces in PIECES]
    groups = [*held_out, *plans]
    with SegmentTimer(bundle, 0, threads=1) as timer:
        times = timer.time([part for group in groups for part in group], seconds)
    took = iter(low_decile(times).tolist())
    cases = [Case(group, sum(next(took) for _ in group), at >= len(held_out)) for at, group in enumerate(groups)]
    return Measured(result, tuple(cases))


def merged(first: Measured, second: Measured) -> Measured:
    """The faster time of each: a slow spell of the host hits one of two measurements that are minutes apart."""
    profile = merge_profiles([first.result.profile, second.result.profile])
    pairs = zip(first.cases, second.cases, strict=True)
    cases = tuple(min(pair, key=lambda case: case.took_s) for pair in pairs)
    return Measured(replace(first.result, profile=profile), cases)


def _runs(indices: Sequence[int]) -> list[tuple[int, ...]]:
    """Maximal runs of consecutive numbers."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and runs[-1][-1] == index - 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    return [tuple(run) for run in runs]


def errors_of(measured: Measured, profile: Profile, tier: Tier) -> dict[str, list[float]]:
    """Relative errors by kind of case."""
    graph = measured.result.graph
    calibration = calibrate(graph, tier, profile)
    roofline = model_costs(graph, [tier], []).seconds[:, 0]
    found: dict[str, list[float]] = {
        name: [] for name in ("segments", "plans", "unseen", "roofline_segments", "roofline_plans")
    }
    for case in measured.cases:
        said = sum(calibration.segment_s(part, boundary_bytes(graph, part)) for part in case.parts)
        plain = sum(float(roofline[list(part)].sum()) for part in case.parts)
        kind = "plans" if case.is_plan else "segments"
        found[kind].append(abs(said / case.took_s - 1))
        found[f"roofline_{kind}"].append(abs(plain / case.took_s - 1))
        if not case.is_plan and _is_unseen(case, calibration):
            found["unseen"].append(abs(said / case.took_s - 1))
    return found


def _is_unseen(case: Case, calibration: Calibration) -> bool:
    return not any(calibration.measured[index] for part in case.parts for index in part)


def figures_of(errors: dict[str, list[float]]) -> dict[str, float]:
    """Medians and 90th percentiles by kind, and of segments and plans together."""
    together = {
        "": errors["segments"] + errors["plans"],
        "roofline": errors["roofline_segments"] + errors["roofline_plans"],
    }
    found: dict[str, float] = {}
    for kind, values in {**together, **errors}.items():
        prefix, _, rest = kind.rpartition("roofline")
        prefix, rest = ("roofline_" if "roofline" in kind else prefix), rest.strip("_")
        suffix = f"_{rest}" if rest else ""
        if values:
            found[f"{prefix}median_error{suffix}"] = float(np.median(values))
            found[f"{prefix}p90_error{suffix}"] = float(np.quantile(values, 0.9))
    return found


def bundles_of(names: Sequence[str], folder: Path) -> tuple[dict[str, Bundle], list[str]]:
    """A bundle of one tier for each model that can be had, and the names of the others."""
    found, missing = {}, []
    for name in names:
        try:
            path = _minilm() if name == "minilm" else pull(name)
        except FlagsplitError as error:
            print(f"skipped {name}: {error}", file=sys.stderr)
            path = None
        if path is None:
            missing.append(name)
            continue
        flagsplit.build(path, "edge", folder / f"{name}.flagsplit", shapes=MODELS[name])
        found[name] = flagsplit.open(folder / f"{name}.flagsplit", cache=folder / "cache")
    return found, missing


def _minilm() -> Path | None:
    """MiniLM as PyTorch exports it, kept in the cache; None where it is not there and PyTorch is not installed."""
    path = default_cache() / "bench" / "minilm.onnx"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, str(Path(__file__).with_name("flagir_corpus.py")), "--worker", "minilm", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own program
        if done.returncode:
            print(f"skipped minilm: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
            path.unlink(missing_ok=True)
            return None
    return path


def main() -> None:
    """Run, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="three models, less time for each")
    options = parser.parse_args()
    seconds = 1.5 if options.quick else 7.0
    tier = Tier("edge", measure_host(1))
    with tempfile.TemporaryDirectory() as folder:
        bundles, missing = bundles_of(QUICK if options.quick else list(MODELS), Path(folder))
        passes = [{name: measure(bundle, seconds) for name, bundle in bundles.items()} for _ in range(2)]
    measured = {name: merged(passes[0][name], passes[1][name]) for name in bundles}
    profile = merge_profiles([each.result.profile for each in measured.values()])
    errors = {name: errors_of(each, profile, tier) for name, each in measured.items()}
    kinds = next(iter(errors.values()))
    figures = figures_of({kind: [value for each in errors.values() for value in each[kind]] for kind in kinds})
    table = {name: _row(measured[name], figures_of(errors[name])) for name in measured}
    conditions = {
        "machine": platform.machine(),
        "threads": 1,
        "numerics": "exact",
        "share": SHARE,
        "statistic": "lowest tenth, less time waiting for a processor; the faster of two passes",
        "seconds_per_model": 4 * seconds,
        "left_out": missing,
    }
    if options.json:
        print(json.dumps({"figures": figures, "models": table, "conditions": conditions, "basis": "measured"}))
        return
    for key, value in figures.items():
        print(f"{key:36} {value:.4f}")
    for name, row in table.items():
        print(f"{name:20}", "  ".join(f"{key} {value:.4g}" for key, value in row.items()))


def _row(measured: Measured, figures: dict[str, float]) -> dict[str, float]:
    """One model of the table."""
    kept = (
        "median_error_segments",
        "p90_error_segments",
        "median_error_plans",
        "p90_error_plans",
        "roofline_median_error",
    )
    counts = {"blocks": len(measured.result.graph.blocks), "measured": len(measured.result.measured)}
    whole = next(case.took_s for case in measured.cases if case.is_plan)
    return {**counts, "whole_ms": whole * 1e3, **{name: figures[name] for name in kept if name in figures}}


if __name__ == "__main__":
    main()
