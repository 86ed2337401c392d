"""Models from many hands through FlagIR and back: does ONNX Runtime still give the same answers?

The corpus is every operator test of the installed onnx package, its light models, and the zoo. Each case is read, made
canonical, checked, saved, loaded and run, in a worker that may crash. Figures:

    cases            how many
    equal_ratio      share of the operator tests that ONNX Runtime itself runs, which it answers alike afterwards
    as_the_test      operator tests that it runs only once they are canonical, and answers as the test says
    refused          imports that ended in an error of ours, with its reason
    wrong            other answers than before, a model that no longer runs, or an error that is not ours
    crashed          a worker that died or took over 10 s (a model of the zoo: 120 s)
    cut_20k_s        reading, making canonical, checking and cutting a graph of 20,000 nodes
    import_2500mb_*  reading, making canonical, checking and saving 2.5 GB of external weights

`equal_ratio` leaves out what ONNX Runtime does not run itself; that must import or be refused too.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from isolated import run_all, serve
from large_graphs import LARGE

from flagsplit import flagir
from flagsplit.errors import FlagsplitError, ModelError

LIMIT_S = 10.0
MODEL_LIMIT_S = 120.0
QUICK_STRIDE = 8
LIGHT_QUICK = ("light_squeezenet", "light_shufflenet")
ZOO_QUICK = ("ppocr-cls", "silero-vad")
ZOO: dict[str, dict[str, Sequence[int]]] = {
    "ppocr-cls": {"x": (1, 3, 48, 192)},
    "ppocr-det": {"x": (1, 3, 320, 320)},
    "ppocr-rec": {"x": (1, 3, 48, 320)},
    "silero-vad": {"input": (1, 576), "state": (2, 1, 128)},
    "moonshine-encoder": {"input_values": (1, 32000), "attention_mask": (1, 32000)},
    "moonshine-decoder": {
        "input_ids": (1, 4),
        "encoder_hidden_states": (1, 82, 288),
        "encoder_attention_mask": (1, 32000),
        "past_key_values": (1, 8, 0, 36),
    },
}
"""Models of the zoo, each with the shapes of its inputs, by the beginning of their names; the rest are scalars."""
SCALARS = {"sr": 16000, "use_cache_branch": 0}
TOLERANCES = {"float16": 2e-3, "bfloat16": 2e-2, "moonshine": 2e-2}
"""Relative to the largest magnitude; 1e-5 elsewhere. Moonshine quantizes at run time: one rounding more is a step."""

TEST_TOLERANCE = 1e-3
"""For the answers that the operator tests themselves give."""


Answers = list[Any]


def write_node_cases(folder: Path, stride: int) -> dict[str, dict[str, Any]]:
    """Every `stride`-th operator test of the onnx package as files; gives the tasks."""
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tests overflow and divide by zero on purpose
        cases = load_model_tests(kind="node")[::stride]
    tasks = {}
    for case in cases:
        path = folder / f"{case.name}.onnx"
        path.write_bytes(case.model.SerializeToString())
        inputs, outputs = case.data_sets[0]
        files = [_write_value(value, folder / f"{case.name}.{at}.pb") for at, value in enumerate(inputs)]
        answers = [_write_value(value, folder / f"{case.name}.out{at}.pb") for at, value in enumerate(outputs)]
        tasks[case.name] = {"path": str(path), "inputs": list(map(str, files)), "outputs": list(map(str, answers))}
    return tasks


def _write_value(value: Any, path: Path) -> Path:
    if isinstance(value, list):
        proto: Any = onnx.numpy_helper.from_list(value)
    elif value is None:
        proto = onnx.OptionalProto()
    elif isinstance(value, onnx.TensorProto):
        proto = value
    else:
        proto = onnx.numpy_helper.from_array(np.asarray(value))
    path.write_bytes(proto.SerializeToString())
    return path


def model_tasks(*, quick: bool) -> dict[str, dict[str, Any]]:
    """The light models, and those of the zoo that can be had."""
    from flagsplit.apps.zoo import pull

    folder = Path(onnx.__file__).parent / "backend/test/data/light"
    paths = sorted(folder.glob("light_*.onnx"))
    tasks: dict[str, dict[str, Any]] = {
        path.stem: {"path": str(path), "shapes": {}} for path in paths if not quick or path.stem in LIGHT_QUICK
    }
    for name in ZOO_QUICK if quick else ZOO:
        try:
            tasks[name] = {"path": str(pull(name)), "shapes": ZOO[name]}
        except FlagsplitError as error:
            print(f"skipped {name}: {error}", file=sys.stderr)
    if not quick:
        path = _minilm()
        if path is not None:
            tasks["minilm"] = {"path": str(path), "shapes": {"ids": (2, 16), "mask": (2, 16)}}
    return tasks


def _minilm() -> Path | None:
    """MiniLM as PyTorch exports it, kept in the cache; None where PyTorch is not installed.

    Exported in a process of its own: what starts from a large process counts its memory as its own peak.
    """
    from flagsplit.runtime.bundle import default_cache

    path = default_cache() / "bench" / "minilm.onnx"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, __file__, "--worker", "minilm", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - ourselves
        if done.returncode:
            print(f"skipped minilm: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
            return None
    return path


def _export_minilm(path: Path) -> None:
    from flagsplit.apps.zoo.minilm import minilm_module
    from flagsplit.flagir.frontends.torch_program import from_module

    module = minilm_module()
    import torch

    ids = torch.ones(2, 16, dtype=torch.int64)
    dims = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    ir.save(from_module(module, (ids, ids), dynamic_shapes={"ids": dims, "mask": dims}), path)


def answer(task: dict[str, Any]) -> dict[str, Any]:
    """What becomes of one case: `{"state": "equal" | "wrong" | "refused" | "imported", "why": ..., ...}`."""
    path = Path(task["path"])
    inputs: dict[str, Any] = {}
    before = _session(path)
    if not isinstance(before, str):
        given = "inputs" in task
        inputs = (
            _read_values(onnx.load(path).graph.input, task["inputs"])
            if given
            else _random_inputs(before, task["shapes"])
        )
    wanted = _run(before, inputs)
    runs = not isinstance(wanted, str)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        try:
            _import(path, Path(folder))
        except ModelError as error:
            return {"state": "refused", "why": str(error), "runs": runs}
        except Exception as error:  # noqa: BLE001 - any error that is not about the model is a finding
            return {"state": "wrong", "why": f"{type(error).__name__}: {error}", "runs": runs}
        import_s = time.perf_counter() - started
        if isinstance(wanted, str):
            return _against_the_test(path, Path(folder) / "model.onnx", task, wanted)
        after = _run(_session(Path(folder) / "model.onnx"), inputs)
    if isinstance(after, str):
        return {"state": "wrong", "why": after, "runs": True}
    tolerance = next((size for part, size in TOLERANCES.items() if part in path.stem), 1e-5)
    why = _difference(wanted, after, tolerance)
    if why and _difference(wanted, _run(_session(path), inputs), 0.0):  # random: only types and shapes are fixed
        why = _difference(wanted, after, None)
    return {"state": "wrong" if why else "equal", "why": why, "runs": True, "import_s": import_s}


def _against_the_test(path: Path, made: Path, task: dict[str, Any], reason: str) -> dict[str, Any]:
    """What ONNX Runtime does not run itself, it may run once it is canonical: then the test's own answers decide."""
    unsure = {"state": "imported", "why": reason, "runs": False}
    session = _session(made)
    if isinstance(session, str) or "outputs" not in task:
        return unsure
    found = _run(session, _read_values(onnx.load(path).graph.input, task["inputs"]))
    if isinstance(found, str):
        return unsure
    wanted = list(_read_values(onnx.load(path).graph.output, task["outputs"]).values())
    if any(isinstance(value, ort.OrtValue) or value is None for value in (*wanted, *found)):
        return unsure
    why = _difference(wanted, found, TEST_TOLERANCE)
    return {"state": "wrong" if why else "as the test", "why": why, "runs": False}


def _import(path: Path, folder: Path) -> None:
    model = flagir.read_model(path)
    flagir.canonicalize(model)
    flagir.check(model)
    flagir.save(model, folder)
    flagir.check(flagir.load(folder))


def _session(path: Path) -> ort.InferenceSession | str:
    """A session without optimizations, which would round differently; or why there is none."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 - ONNX Runtime's errors have no common base
        return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _run(session: ort.InferenceSession | str, inputs: dict[str, Any]) -> Answers | str:
    if isinstance(session, str):
        return session
    try:
        found: Answers = session.run(None, {info.name: inputs[info.name] for info in session.get_inputs()})
    except Exception as error:  # noqa: BLE001 - as above
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return found


def _read_values(infos: Sequence[onnx.ValueInfoProto], files: Sequence[str]) -> dict[str, Any]:
    return {info.name: _value(info.type, Path(file).read_bytes()) for info, file in zip(infos, files, strict=False)}


def _value(kind: onnx.TypeProto, data: bytes) -> Any:
    """The tests store an optional input as what is in it."""
    if kind.HasField("optional_type"):
        return _value(kind.optional_type.elem_type, data) if data else None
    if kind.HasField("sequence_type"):
        return onnx.numpy_helper.to_list(onnx.SequenceProto.FromString(data))
    return _for_ort(onnx.numpy_helper.to_array(onnx.TensorProto.FromString(data)))


def _for_ort(array: Any) -> Any:
    """ONNX Runtime takes element types that NumPy lacks as raw bits and a number for the type; none of under a byte."""
    if array.dtype.kind in "US":
        return array.astype(object)
    if array.dtype.type.__module__ == "numpy":
        return array
    kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    if ir.DataType(kind).bitwidth < 8:
        return None
    bits = array.view(np.uint16 if array.dtype == ml_dtypes.bfloat16 else np.uint8)
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, kind)


def _random_inputs(session: ort.InferenceSession, shapes: dict[str, Sequence[int]]) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    found: dict[str, Any] = {}
    for info in session.get_inputs():
        given = next((shape for name, shape in shapes.items() if info.name.startswith(name)), None)
        shape = given or [dim if isinstance(dim, int) else 1 for dim in info.shape]
        if info.type == "tensor(float)":
            found[info.name] = rng.standard_normal(shape).astype(np.float32)
        else:
            dtype = np.bool_ if info.type == "tensor(bool)" else np.int64
            found[info.name] = np.full(shape, SCALARS.get(info.name, 1), dtype)
    return found


def _difference(wanted: Any, found: Any, tolerance: float | None) -> str:
    """How two answers differ; without a tolerance, in types and shapes only."""
    if isinstance(wanted, list | tuple | dict) and type(wanted) is type(found):
        if len(wanted) != len(found):
            return f"{len(found)} values instead of {len(wanted)}"
        pairs = (
            zip(wanted, found, strict=True)
            if isinstance(wanted, list | tuple)
            else ((wanted[key], found.get(key)) for key in wanted)
        )
        return next((why for one, other in pairs if (why := _difference(one, other, tolerance))), "")
    if wanted is None or found is None:
        return "" if wanted is found else f"{found} instead of {wanted}"
    if isinstance(wanted, ort.OrtValue):
        wanted, found = wanted.numpy(), found.numpy()
    one, other = np.asarray(wanted), np.asarray(found)
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return f"{other.dtype}{other.shape} instead of {one.dtype}{one.shape}"
    if tolerance is None:
        return ""
    if one.dtype.kind not in "fc":
        return "" if np.array_equal(one, other) else "other values"
    if not np.array_equal(np.isfinite(one), np.isfinite(other)):
        return "other values are infinite or NaN"
    finite = np.isfinite(one)
    wide, wide_other = one[finite].astype(np.complex128), other[finite].astype(np.complex128)
    scale = float(np.abs(wide).max(initial=0)) or 1.0
    limit = max(tolerance, TOLERANCES.get(one.dtype.name, 0.0)) if tolerance else 0.0
    worst = float(np.abs(wide - wide_other).max(initial=0)) / scale
    return f"differs by {worst:.2g} of the largest value" if worst > limit else ""


def _large(name: str) -> dict[str, float]:
    """Figures of one of the large graphs."""
    command = [sys.executable, str(Path(__file__).with_name("large_graphs.py")), name]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)  # noqa: S603
    if done.returncode:
        print(f"{name} failed: {done.stderr[-400:]}", file=sys.stderr)
        return {}
    found: dict[str, float] = json.loads(done.stdout)
    return found


def run_corpus(*, stride: int, quick: bool, models: bool) -> dict[str, dict[str, Any]]:
    """The outcome of every case, by name."""
    worker, workers = [sys.executable, __file__, "--worker", "cases", ""], min(4, os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as folder:
        found = run_all(worker, write_node_cases(Path(folder), stride), workers=workers, limit_s=LIMIT_S)
        for each in found.values():
            each["kind"] = "node"
        if models:
            found |= run_all(worker, model_tasks(quick=quick), workers=workers, limit_s=MODEL_LIMIT_S)
    return found


def figures_of(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The counts."""
    runnable = [each for each in found.values() if each.get("kind") == "node" and each.get("runs")]
    states = Counter("crashed" if "crashed" in each else each["state"] for each in found.values())
    refusals = Counter(_reason(each["why"]) for each in found.values() if each.get("state") == "refused")
    return {
        "cases": len(found),
        "equal_ratio": sum(each["state"] == "equal" for each in runnable) / max(1, len(runnable)),
        "equal": states["equal"],
        "as_the_test": states["as the test"],
        "imported_not_run": states["imported"],
        "refused": states["refused"],
        "wrong": states["wrong"],
        "crashed": states["crashed"],
        "refusals": dict(refusals.most_common()),
        "import_moonshine_s": _total(found, "moonshine-encoder", "moonshine-decoder"),
    }


def _total(found: dict[str, dict[str, Any]], *names: str) -> float | None:
    seconds = [found.get(name, {}).get("import_s") for name in names]
    return None if None in seconds else sum(filter(None, seconds))


def _reason(text: str) -> str:
    """The kind of a refusal: its text without what is particular to the case."""
    return re.sub(r"'[^']*'|\d+", "…", text.split(";")[0])[:160]


def main() -> None:
    """Run, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help=f"every {QUICK_STRIDE}th operator test, four models")
    parser.add_argument("--every", type=int, metavar="N", help="every Nth operator test, no models")
    parser.add_argument("--details", type=Path, metavar="FILE", help="write the outcome of every case")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker and options.worker[0] == "minilm":
        _export_minilm(Path(options.worker[1]))
        return
    if options.worker:
        serve(answer)
        return
    stride = options.every or (QUICK_STRIDE if options.quick else 1)
    found = run_corpus(stride=stride, quick=options.quick, models=not options.every)
    figures = figures_of(found)
    if not options.every:
        for name in LARGE:
            figures |= _large(name)
    if options.details:
        options.details.write_text(json.dumps(found, indent=1))
    for name, each in found.items():
        if "crashed" in each or each["state"] == "wrong":
            print(f"{name}: {each.get('crashed') or each['why'][:300]}", file=sys.stderr)
    conditions = {"machine": platform.machine(), "onnx": onnx.__version__, "onnxruntime": ort.__version__}
    conditions |= {"every": stride, "workers": min(4, os.cpu_count() or 1)}
    if options.json:
        print(json.dumps({"figures": figures, "conditions": conditions, "basis": "measured"}))
    else:
        for key, value in figures.items():
            print(f"{key:28} {value}")


if __name__ == "__main__":
    main()
