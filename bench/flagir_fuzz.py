"""Damaged and hostile model files: each gives a model or an error of ours, within time and memory.

Half-way valid files are made from small models by mutations, all from a seed (`damaged_models.py`). Each is read, made
canonical, checked, saved, loaded, listed and cut, in a worker that may crash. Figures:

    cases       how many
    accepted    imports that went through
    refused     errors of ours, with a reason
    foreign     other errors: a bug
    crashed     a worker that died or took over 10 s
    over_1gb    imports that took over 1 GB
    peak_mb     the most that any import took
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import onnx
from damaged_models import BYTES_CASES, STRUCTURE_CASES, base_models, case
from isolated import run_all, serve

from flagsplit import flagir
from flagsplit.errors import FlagsplitError, InternalError

QUICK_STRIDE = 20
LIMIT_S = 10.0
LIMIT_MB = 1000.0
BATCH = 20
"""Mutations that a worker does at one go; those of a batch that dies are done again one by one."""


def import_all(path: Path, folder: Path) -> None:
    """All that a stranger's file goes through."""
    model = flagir.read_model(path)
    flagir.canonicalize(model)
    flagir.check(model)
    flagir.save(model, folder)
    loaded = flagir.load(folder)
    flagir.check(loaded)
    skeleton = flagir.Skeleton(loaded)
    dims = flagir.nominal_dims(skeleton, {})
    flagir.block_graph(loaded, dims, skeleton)
    flagir.cut_into_steps(loaded, {node.name or "": 0 for node in loaded.graph}, 2)


def outcome(data: bytes) -> dict[str, str]:
    """`state`, `why` and, of an error that is not ours, its kind."""
    with tempfile.TemporaryDirectory() as root:
        (Path(root) / "secret").write_bytes(bytes(1 << 16))
        inside = Path(root) / "inside"
        (inside / "made").mkdir(parents=True)
        (inside / "link").symlink_to(root)
        (inside / "weights").write_bytes(bytes(1 << 12))
        path = inside / "model.onnx"
        path.write_bytes(data)
        try:
            import_all(path, inside / "made")
        except InternalError as error:
            return {"state": "foreign", "why": str(error)}
        except FlagsplitError as error:
            return {"state": "refused", "why": str(error)}
        except Exception as error:  # noqa: BLE001 - what is not ours is what is looked for
            return {"state": "foreign", "why": f"{type(error).__name__}: {error}"}
        return {"state": "accepted", "why": ""}


def answer(task: dict[str, Any]) -> dict[str, Any]:
    """A worker's answer to a range of cases."""
    models = base_models()
    found = []
    for number in range(task["first"], task["last"], task["stride"]):
        started = time.perf_counter()
        found.append({"number": number, **outcome(case(number, models)), "took_s": time.perf_counter() - started})
    return {"cases": found}


def run_fuzz(stride: int) -> list[dict[str, Any]]:
    """The outcome of every `stride`-th case."""
    step = BATCH * stride
    total = BYTES_CASES + STRUCTURE_CASES
    tasks = {
        str(first): {"first": first, "last": min(first + step, total), "stride": stride}
        for first in range(0, total, step)
    }
    found = _ask(tasks, BATCH * LIMIT_S)
    rest = [at for at, each in found.items() if "crashed" in each or each["rose_mb"] > LIMIT_MB]
    alone = {
        str(number): {"first": number, "last": number + 1, "stride": 1}
        for name in rest
        for number in range(tasks[name]["first"], tasks[name]["last"], stride)
    }
    found = {name: each for name, each in found.items() if name not in rest} | {
        f"{name} alone": each for name, each in _ask(alone, LIMIT_S).items()
    }
    outcomes = []
    for name, each in found.items():
        cases = each.get("cases") or [{"number": int(name.split()[0]), "state": "crashed", "why": each["crashed"]}]
        outcomes.extend({**one, "rose_mb": each.get("rose_mb", 0.0)} for one in cases)
    for one in outcomes:
        if one.get("took_s", 0.0) > LIMIT_S:
            one.update(state="crashed", why=f"took {one['took_s']:.1f} s")
    return sorted(outcomes, key=lambda one: one["number"])


def _ask(tasks: dict[str, dict[str, Any]], limit_s: float) -> dict[str, dict[str, Any]]:
    worker, workers = [sys.executable, __file__, "--worker"], min(4, os.cpu_count() or 1)
    return run_all(worker, tasks, workers=workers, limit_s=limit_s) if tasks else {}


def main() -> None:
    """Run, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help=f"every {QUICK_STRIDE}th case")
    parser.add_argument("--details", type=Path, metavar="FILE", help="write the outcome of every case")
    parser.add_argument("--case", type=int, metavar="N", help="write the file of case N to standard output")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        serve(answer)
        return
    if options.case is not None:
        sys.stdout.buffer.write(case(options.case, base_models()))
        return
    found = run_fuzz(QUICK_STRIDE if options.quick else 1)
    if options.details:
        options.details.write_text(json.dumps(found, indent=1))
    for one in found:
        if one["state"] in ("foreign", "crashed") or one["rose_mb"] > LIMIT_MB:
            print(f"case {one['number']}: {one['state']}, {one['why'][:300]}", file=sys.stderr)
    states = [one["state"] for one in found]
    figures: dict[str, float] = {"cases": len(found)}
    figures |= {state: states.count(state) for state in ("accepted", "refused", "foreign", "crashed")}
    figures["over_1gb"] = sum(one["rose_mb"] > LIMIT_MB for one in found)
    figures["peak_mb"] = max(one["rose_mb"] for one in found)
    if options.json:
        conditions = {"machine": platform.machine(), "onnx": onnx.__version__, "limit_s": LIMIT_S}
        print(json.dumps({"figures": figures, "conditions": conditions, "basis": "measured"}))
    else:
        for key, value in figures.items():
            print(f"{key:12} {value:.6g}")


if __name__ == "__main__":
    main()
