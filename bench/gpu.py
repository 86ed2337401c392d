"""The `cuda` target against PyTorch on this host's GPU, in half precision, all timed in turns in one run.

Ours starts from the ONNX graph. The others are the original module: eager, eager recorded as a CUDA graph, and
`torch.compile(mode="reduce-overhead")`, with channels-last layout for convolutional networks. Where there is only an
ONNX file (ppocr-rec), the others run that graph operator by operator, none of our passes applied.

`vs_best_MODEL_bBATCH` is the best of the three over ours, by the median wall time of one run whose tensors are on the
GPU, synchronized (bar 0.98); `event_...` the same by CUDA events. `ms_...`, `eager_ms_...`, `graph_ms_...` and
`compile_ms_...` are those wall times; `host_ms_...` is ours from NumPy arrays to NumPy arrays. `bound_ms_...` is the
roofline: for each fused block the larger of FLOPs over the matrix rate and bytes over the bandwidth, FlagIR's own
counts, both rates measured in this run. `eaf_...` is effective AI FLOPs, the model's FLOPs over our wall time, and
`mfu_...` that over the measured matrix rate. `error_...` is the norm of our difference from float32 over the answer's.
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from gpu_models import MiniLm, ResNet50, WhisperEncoder, randomized

from flagsplit import flagir
from flagsplit.flagir import Skeleton
from flagsplit.flagir.frontends.torch_program import from_module
from flagsplit.flagir.segments import segment_of
from flagsplit.flagir.specialize import specialize
from flagsplit.targets.cloud.cuda.choices import read_choices
from flagsplit.targets.cloud.cuda.compiled import Replay
from flagsplit.targets.cloud.cuda.executable import TorchExecutable, load_part
from flagsplit.targets.cloud.cuda.lowering.program import build_program, to_module
from flagsplit.targets.cloud.cuda.target import CudaTarget
from flagsplit.targets.interface import CompileOptions
from flagsplit.targets.segment_table import TABLE_NAME, read_table

CASES = {"resnet50": (1, 64), "minilm": (1, 64), "whisper-base": (1, 16), "ppocr-rec": (1, 32)}
BAR = 0.98
_LENGTH = 128
_GIB = 1 << 30
Run = Callable[..., Any]


@dataclass
class Contest:
    """A model at one batch: what runs it, and on what.

    Attributes:
        ours: our target.
        others: PyTorch's ways, by name.
        inputs: tensors on the GPU, as all are given them.
        expected: the answer in float32.
        bound_s: seconds by the roofline.
        flops: of one run.
    """

    ours: TorchExecutable
    others: Mapping[str, Run]
    inputs: Sequence[Any]
    expected: Any
    bound_s: float
    flops: float


@dataclass(frozen=True)
class Ceilings:
    """What the GPU does at best, measured: FLOP/s of a half-precision product, bytes per second of a copy."""

    flops_per_s: float
    bytes_per_s: float


def ceilings() -> Ceilings:
    """Measure both on random data."""
    a, b = (torch.randn(8192, 8192, dtype=torch.float16, device="cuda") for _ in range(2))
    source = torch.randn(_GIB, dtype=torch.float32, device="cuda")
    target = torch.empty_like(source)
    product = event_ms(lambda: torch.mm(a, b), 20) / 1e3
    copied = event_ms(lambda: target.copy_(source), 10) / 1e3
    return Ceilings(2 * 8192**3 / product, 8 * _GIB / copied)


def module_of(name: str, batch: int) -> tuple[Any, tuple[Any, ...]]:
    """The original module in float32 on the CPU, and inputs; the module is None where there is only a graph."""
    torch.manual_seed(20)
    if name == "resnet50":
        return randomized(ResNet50()), (torch.randn(batch, 3, 224, 224),)
    if name == "minilm":
        mask = torch.ones(batch, _LENGTH, dtype=torch.int64)
        mask[-1, _LENGTH // 2 :] = 0
        return MiniLm(_LENGTH).eval(), (torch.randint(30522, (batch, _LENGTH)), mask)
    if name == "whisper-base":
        return WhisperEncoder().eval(), (torch.randn(batch, 80, 3000),)
    return None, (torch.randn(batch, 3, 48, 320),)


def graph_of(name: str, module: Any, inputs: Sequence[Any], zoo: Path | None) -> ir.Model:
    """The canonical FlagIR graph, from ONNX."""
    if module is not None:
        model = from_module(module, inputs)
    else:
        from flagsplit.apps.zoo import pull

        model = flagir.read_model(zoo or pull(name))
    flagir.canonicalize(model)
    skeleton = Skeleton(model)
    shapes = {value: tuple(each.shape) for value, each in zip(skeleton.inputs, inputs, strict=True)}
    return specialize(model, flagir.nominal_dims(skeleton, flagir.dims_of_shapes(skeleton, shapes)))


def prepare(name: str, batch: int, limits: Ceilings, folder: Path, options: argparse.Namespace) -> Contest:
    """Compile everything."""
    module, inputs = module_of(name, batch)
    kept = options.keep / f"{name}_b{batch}" if options.keep else None
    if kept is not None and (kept / "done").exists():
        model = flagir.load(kept)
    else:
        model = graph_of(name, module, inputs, options.ppocr_rec)
    bound_s, flops = roofline(model, limits)
    flagir.save(model, folder)
    if kept is not None and not kept.exists():
        shutil.copytree(folder, kept)
        (kept / "done").touch()
    exact = to_module(build_program(model, ""), ["float32"], "cuda")
    given = [each.cuda() for each in inputs]
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        expected = exact(*given)[0]
    del exact
    images = name in ("resnet50", "ppocr-rec")
    given = [each.half() if each.is_floating_point() else each for each in given]
    given = [each.to(memory_format=torch.channels_last) if images else each for each in given]
    original = written_out(model, given) if module is None else module.half().cuda()
    original = original.to(memory_format=torch.channels_last) if images and module is not None else original
    segment = segment_of(model, [node.name or "" for node in model.graph])
    weights = folder / flagir.WEIGHTS_NAME
    choices = {"precision": "fp16", "io": "fp16", "tune": options.tune}
    artifact = CudaTarget().compile(model, [segment], CompileOptions(choices=choices, weights=weights))
    stored = artifact.store(folder / "artifact", weights)
    call = read_table(stored.inside(TABLE_NAME)).segments[segment.id].chip
    assert call is not None, "all of the model is for the GPU"
    ours = load_part(stored.inside(call.file), weights, call, read_choices(choices))
    recorded = Replay(lambda *x: _several(original(*x)), given)
    quick = torch.compile(original, mode="reduce-overhead", dynamic=False)
    others = {"eager": original, "graph": recorded, "compile": quick}
    return Contest(ours, others, given, expected, bound_s, flops)


def written_out(model: ir.Model, inputs: Sequence[Any]) -> Any:
    """A graph as PyTorch, operator by operator, none of our passes applied."""
    plain = to_module(build_program(model, "float16"), ["float16"], "cuda")
    with torch.no_grad():
        return torch.export.export(plain, tuple(inputs), strict=False).module()


def _several(made: Any) -> tuple[Any, ...]:
    return made if isinstance(made, tuple) else (made,)


def roofline(model: ir.Model, limits: Ceilings) -> tuple[float, float]:
    """Seconds that one run takes at least in half precision, block by block, and its FLOPs."""
    graph = flagir.block_graph(model, {})
    total = 0.0
    for block in graph.blocks:
        moved = (block.read_bytes + block.write_bytes + block.touched_weight_bytes) / 2
        total += max(sum(block.flops.values()) / limits.flops_per_s, moved / limits.bytes_per_s)
    return total, sum(sum(block.flops.values()) for block in graph.blocks)


def event_ms(run: Callable[[], Any], many: int) -> float:
    """The median of a run by CUDA events."""
    for _ in range(3):
        run()
    return statistics.median(_one(run)[1] for _ in range(many))


def _one(run: Callable[[], Any]) -> tuple[float, float]:
    """Milliseconds by the host's clock, synchronized, and by events."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    started = time.perf_counter()
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    wall = (time.perf_counter() - started) * 1e3
    return wall, start.elapsed_time(end)


def measure(key: str, contest: Contest, limits: Ceilings, rounds: int) -> dict[str, float]:
    """Time all in turns."""
    replay = contest.ours.on_gpu
    runs: dict[str, Callable[[], Any]] = {"ours": lambda: replay(*contest.inputs)}
    runs |= {name: (lambda run=run: run(*contest.inputs)) for name, run in contest.others.items()}
    wall: dict[str, list[float]] = {name: [] for name in runs}
    events: dict[str, list[float]] = {name: [] for name in runs}
    with torch.no_grad():
        for run in runs.values():
            for _ in range(5):
                run()
        for _ in range(rounds):
            for name, run in runs.items():
                run()
                one, two = _one(run)
                wall[name].append(one)
                events[name].append(two)
        made = replay(*contest.inputs)[0].float()
    error = ((made - contest.expected).norm() / contest.expected.norm()).item()
    pairs = zip(contest.ours.inputs, contest.inputs, strict=True)
    arrays = {spec.name: each.cpu().numpy().astype(spec.dtype) for spec, each in pairs}
    host = [_host_ms(contest.ours, arrays) for _ in range(max(5, rounds // 4))]
    ms = {name: statistics.median(times) for name, times in wall.items()}
    by_event = {name: statistics.median(times) for name, times in events.items()}
    rivals = list(contest.others)
    figures = {
        "vs_best": min(ms[name] for name in rivals) / ms["ours"],
        "event_vs_best": min(by_event[name] for name in rivals) / by_event["ours"],
        "ms": ms["ours"],
        "event_ms": by_event["ours"],
        **{f"{name}_ms": ms[name] for name in rivals},
        **{f"{name}_event_ms": by_event[name] for name in rivals},
        "host_ms": statistics.median(host),
        "bound_ms": contest.bound_s * 1e3,
        "eaf": contest.flops / ms["ours"] * 1e3,
        "mfu": contest.flops / ms["ours"] * 1e3 / limits.flops_per_s,
        "error": error,
        **{f"way_{name}_ms": each for name, each in contest.ours.times_ms.items()},
    }
    return {f"{figure}_{key}": value for figure, value in figures.items()}


def _host_ms(ours: TorchExecutable, arrays: Mapping[str, Any]) -> float:
    started = time.perf_counter()
    ours.run(arrays)
    return (time.perf_counter() - started) * 1e3


def one_case(name: str, batch: int, limits: Ceilings, options: argparse.Namespace) -> dict[str, float]:
    """Compile and time a model at one batch."""
    with tempfile.TemporaryDirectory() as folder:
        contest = prepare(name, batch, limits, Path(folder), options)
        return measure(f"{name}_b{batch}", contest, limits, 15 if options.quick else 60)


def main() -> None:
    """Run, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--only", default="", help="MODEL:BATCH,... of " + ", ".join(CASES))
    parser.add_argument("--ppocr-rec", type=Path, help="its ONNX file; otherwise the zoo's")
    parser.add_argument("--tune", default="some", help="the target's choice: fast, some or most")
    parser.add_argument("--keep", type=Path, help="a folder to keep exported graphs in for the next run")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.backends.cudnn.benchmark = True
    limits = ceilings()
    figures = {"matrix_flops_per_s": limits.flops_per_s, "copy_bytes_per_s": limits.bytes_per_s}
    cases = [(name, batch) for name, batches in CASES.items() for batch in batches]
    if options.only:
        cases = [(name, int(batch)) for name, batch in (each.split(":") for each in options.only.split(","))]
    failed = {}
    for name, batch in cases:
        started = time.perf_counter()
        try:
            found = one_case(name, batch, limits, options)
        except Exception as error:  # noqa: BLE001 the others are worth their figures
            failed[f"{name}_b{batch}"] = f"{type(error).__name__}: {error}"[:500]
            found = {}
        figures |= found
        took = time.perf_counter() - started
        print(f"{name} at batch {batch} took {took:.0f} s: {json.dumps(found)}", file=sys.stderr, flush=True)
        torch.compiler.reset()
        torch.cuda.empty_cache()
    conditions = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "precision": "fp16",
        "rounds": 15 if options.quick else 60,
        "ppocr-rec": "PyTorch runs its ONNX graph operator by operator",
        "tune": options.tune,
        "weights": "random, but those of ppocr-rec",
    }
    below = [name for name, value in figures.items() if name.startswith("vs_best_") and value < BAR]
    if options.json:
        told = {"figures": figures, "conditions": conditions, "basis": "measured", "below_bar": below, "failed": failed}
        print(json.dumps(told))
    else:
        for key, value in figures.items():
            print(f"{key:40} {value:.4g}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
