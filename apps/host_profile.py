"""A device description of this host, measured: what ONNX Runtime reaches here for each class of work.

The figures feed the same roofline as the catalogue's, so that a prediction for this host can stand beside a measurement
on it. Small models with the shapes of real layers run for a fraction of a second each; the best of several runs counts,
because interruptions only ever make a run slower.
"""

import datetime as dt
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import onnx
from onnx import TensorProto, helper

from flagsplit.apps.deployment import THIS_HOST
from flagsplit.flagir.opset import IR_VERSION, OPSET
from flagsplit.splitter.devices import Device, Figure
from flagsplit.targets.interface import Array

_RUN_S = 0.06
_ATTEMPTS = 3
_FLOAT = TensorProto.FLOAT


@dataclass(frozen=True)
class _Probe:
    """A model of one class of work and its FLOPs, counted as `flagsplit.flagir.work` counts them."""

    op_class: str
    nodes: Sequence[onnx.NodeProto]
    shape: Sequence[int]
    weights: dict[str, Array]
    flops: float


@cache
def measure_host(threads: int = 1) -> Device:
    """Measure this host with that many threads; takes about two seconds, once per process."""
    rates = _rates(threads)
    rates["control"] = rates["elementwise"]
    peak = max(rates.values())
    source = f"measured on {platform.machine()} with ONNX Runtime, {threads} thread(s)"

    def figure(value: float, unit: str, confidence: str = "high", why: str = source) -> Figure:
        today = dt.datetime.now(dt.UTC).date().isoformat()
        return Figure.model_validate(
            {"value": value, "unit": unit, "source": why, "date": today, "confidence": confidence}
        )

    guess = "flagsplit estimate"
    return Device(
        name=THIS_HOST,
        title=f"this host, {threads} thread(s)",
        vendor=platform.machine(),
        kind="edge",
        peak_flops={"fp32": figure(peak, "FLOP/s")},
        efficiency={name: figure(rate / peak, "1") for name, rate in sorted(rates.items())},
        memory_bandwidth=figure(_bandwidth(), "B/s"),
        memory=figure(float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")), "B"),
        dispatch=figure(_dispatch_s(threads), "s"),
        invocation=figure(1e-3, "s", "low", guess),
        active_power=figure(30.0, "W", "low", guess),
        idle_power=figure(10.0, "W", "low", guess),
        price=figure(0.0, "USD/h", "low", guess),
    )


def _probes() -> tuple[_Probe, ...]:
    def weights(*shape: int) -> Array:
        return np.random.default_rng(0).standard_normal(shape).astype(np.float32) * 0.05

    conv = [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])]
    point = [helper.make_node("Conv", ["x", "w"], ["y"])]
    depthwise = [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1], group=128)]
    matmul = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    chain = [
        helper.make_node("Mul", ["x", "w"], ["a"]),
        helper.make_node("Add", ["a", "w"], ["b"]),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("Mul", ["c", "w"], ["y"]),
    ]
    pool = [helper.make_node("AveragePool", ["x"], ["y"], kernel_shape=[3, 3], pads=[1, 1, 1, 1])]
    softmax = [helper.make_node("Softmax", ["x"], ["y"], axis=-1)]
    move = [
        helper.make_node("Transpose", ["x"], ["a"], perm=[0, 2, 3, 1]),
        helper.make_node("Relu", ["a"], ["y"]),
    ]
    lstm = [helper.make_node("LSTM", ["x", "w", "r"], ["y"], hidden_size=128)]
    pixels = 24 * 80
    return (
        _Probe("conv", conv, (1, 64, 24, 80), {"w": weights(64, 64, 3, 3)}, 2.0 * pixels * 64 * 64 * 9),
        _Probe("conv", point, (1, 128, 24, 80), {"w": weights(128, 128, 1, 1)}, 2.0 * pixels * 128 * 128),
        _Probe("depthwise", depthwise, (1, 128, 24, 80), {"w": weights(128, 1, 3, 3)}, 2.0 * pixels * 128 * 9),
        _Probe("matmul", matmul, (1, 64, 256), {"w": weights(256, 512)}, 2.0 * 64 * 256 * 512),
        _Probe("elementwise", chain, (1, 128, 24, 80), {"w": weights(1, 128, 1, 1)}, 4.0 * pixels * 128),
        _Probe("reduce", pool, (1, 64, 24, 80), {}, 9.0 * pixels * 64),
        _Probe("reduce", softmax, (1, 40, 6000), {}, 10.0 * 40 * 6000),
        _Probe("movement", move, (1, 128, 24, 80), {}, 1.0 * pixels * 128),
        _Probe(
            "recurrent", lstm, (32, 1, 128), {"w": weights(1, 512, 128), "r": weights(1, 512, 128)}, 2.0 * 32 * 131072
        ),
    )


def _rates(threads: int) -> dict[str, float]:
    """FLOP/s by class; where a class has several probes, of all of them together."""
    flops: dict[str, float] = {}
    seconds: dict[str, float] = {}
    for probe in _probes():
        took_s = _best_s(_runner(probe.nodes, probe.shape, probe.weights, threads))
        flops[probe.op_class] = flops.get(probe.op_class, 0.0) + probe.flops
        seconds[probe.op_class] = seconds.get(probe.op_class, 0.0) + took_s
    return {name: flops[name] / seconds[name] for name in flops}


def _dispatch_s(threads: int) -> float:
    """Seconds per node when there is nothing to compute."""
    count = 64
    nodes = [helper.make_node("Sin", [f"v{i}"], [f"v{i + 1}"]) for i in range(count)]
    nodes[0].input[0], nodes[-1].output[0] = "x", "y"
    return _best_s(_runner(nodes, (1, 4), {}, threads)) / count


def _bandwidth() -> float:
    """Bytes per second of copying what fits no cache, both ways counted."""
    source, target = np.ones(1 << 23, np.float32), np.empty(1 << 23, np.float32)
    return 2 * source.nbytes / _best_s(lambda: np.copyto(target, source))


def _runner(
    nodes: Sequence[onnx.NodeProto], shape: Sequence[int], weights: dict[str, Array], threads: int
) -> Callable[[], object]:
    import onnxruntime as ort

    graph = helper.make_graph(
        list(nodes),
        "probe",
        [helper.make_tensor_value_info("x", _FLOAT, shape)],
        [helper.make_tensor_value_info("y", _FLOAT, None)],
        [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, ir_version=IR_VERSION, opset_imports=[helper.make_opsetid("", OPSET)])
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    session = ort.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    feeds = {"x": np.random.default_rng(1).standard_normal(shape).astype(np.float32)}
    return lambda: session.run(None, feeds)


def _best_s(run: Callable[[], object]) -> float:
    run()
    best = float("inf")
    for _ in range(_ATTEMPTS):
        count, started = 0, time.perf_counter()
        while time.perf_counter() - started < _RUN_S:
            run()
            count += 1
        best = min(best, (time.perf_counter() - started) / max(count, 1))
    return best
