"""A small real model and its bundle: a residual that comes home to the first tier, an open batch dimension."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import onnx
from onnx import helper, numpy_helper

import flagsplit
from flagsplit.flagir import canonicalize, read_model
from flagsplit.flagir.specialize import buckets
from flagsplit.splitter.pipeline import PlanningResult, plan_problem
from flagsplit.splitter.problem import Problem
from flagsplit.splitter.sla import SLA
from flagsplit.targets.interface import Array

TIERS = ("phone", "edge", "cloud")
# The head stays at home and reads what the stem made there: a trip over all tiers and back. Then ways to go on.
TRIP = {"stem": "phone", "edge": "edge", "cloud": "cloud", "head*": "phone"}
PLANS: tuple[dict[str, str], ...] = (
    TRIP,
    {"stem": "phone", "edge": "cloud", "cloud": "cloud", "head*": "phone"},
    {"stem": "edge", "edge": "edge", "cloud": "edge", "head*": "phone"},
    dict.fromkeys(("stem", "edge", "cloud", "head*"), "phone"),
)
_WIDTH = 24


def _weights(name: str, *shape: int, seed: int) -> onnx.TensorProto:
    values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32) / 4
    tensor: onnx.TensorProto = numpy_helper.from_array(values, name)
    return tensor


def write_model(path: Path, width: int = _WIDTH) -> Path:
    """Dense layers in a row, with the stem's result added at the end."""
    nodes = [
        helper.make_node("Gemm", ["x", "w0", "b0"], ["a"], name="stem"),
        helper.make_node("MatMul", ["a", "w1"], ["b"], name="edge"),
        helper.make_node("Gemm", ["b", "w2", "b0"], ["c"], name="cloud"),
        helper.make_node("Gemm", ["c", "w1", "b0"], ["e"], name="head/gemm"),
        helper.make_node("Add", ["e", "a"], ["d"], name="head/add"),
        helper.make_node("Softmax", ["d"], ["y"], name="head/softmax", axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", width])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", width])],
        [_weights(f"w{i}", width, width, seed=i) for i in range(3)] + [_weights("b0", width, seed=9)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


@contextmanager
def _pool_of(plans: Sequence[dict[str, str]]) -> Iterator[None]:
    """Builds have the best plan under each of these pins, preferred in this order."""

    def plan_each(problem: Problem) -> PlanningResult:
        results = [plan_problem(problem.with_sla(SLA(pins=pins))) for pins in plans]
        chosen = [replace(result.chosen.plan, name=f"plan{at}") for at, result in enumerate(results)]
        pool = replace(results[0].pool, plans=tuple(chosen), bias=tuple(1e3 * at for at in range(len(chosen))))
        return replace(results[0], pool=pool)

    with mock.patch("flagsplit.apps.assembly.plan_problem", plan_each):
        yield


def build_bundle(folder: Path, plans: Sequence[dict[str, str]] = PLANS) -> Path:
    """A bundle whose pool has the best plan under each of these pins, preferred in this order."""
    path = folder / "tiny.flagsplit"
    with _pool_of(plans):
        flagsplit.build(write_model(folder / "tiny.onnx"), TIERS, path, dims={"batch": 2})
    return path


def build_buckets(folder: Path, sizes: Sequence[int], plans: Sequence[dict[str, str]] = PLANS) -> list[Path]:
    """Bundles of the same model for fixed batches."""
    model = read_model(write_model(folder / "tiny.onnx"))
    canonicalize(model)
    made = buckets(model, "batch", sizes)
    paths = [folder / f"tiny-{size}.flagsplit" for size in made]
    with _pool_of(plans):
        for path, fixed in zip(paths, made.values(), strict=True):
            flagsplit.build(fixed, TIERS, path)
    return paths


def inputs_of(number: int, batch: int = 2) -> dict[str, Array]:
    """Different inputs for each request."""
    return {"x": np.random.default_rng(number).standard_normal((batch, _WIDTH)).astype(np.float32)}
