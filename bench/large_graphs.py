"""Large graphs through FlagIR: 2.5 GB of weights, and 20,000 nodes. Part of `flagir_corpus.py`.

`python bench/large_graphs.py NAME` prints the figures of one, from a process of its own for the sake of its peak.
"""

import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx

from flagsplit import flagir

BIG_TENSORS, BIG_SIDE = 10, 7906
"""Ten matrices of float32, 250 MB each."""
CUT_NODES = 20_000


def big_import(folder: Path) -> dict[str, float]:
    """Import 2.5 GB of weights: a sparse file, in which each matrix has one element that tells it from the others."""
    nodes, weights, last = [], [], "x"
    for at in range(BIG_TENSORS):
        nodes.append(onnx.helper.make_node("MatMul", [last, f"w{at}"], [last := f"y{at}"], name=f"n{at}"))
        tensor = onnx.TensorProto(name=f"w{at}", data_type=onnx.TensorProto.FLOAT, dims=[BIG_SIDE, BIG_SIDE])
        tensor.data_location = onnx.TensorProto.EXTERNAL
        size = BIG_SIDE * BIG_SIDE * 4
        for key, value in (("location", "weights"), ("offset", str(at * size)), ("length", str(size))):
            tensor.external_data.add(key=key, value=value)
        weights.append(tensor)
    with (folder / "weights").open("wb") as file:
        file.truncate(BIG_TENSORS * size)
        for at in range(BIG_TENSORS):
            file.seek(at * size)
            file.write(np.float32(at + 1).tobytes())
    path = _write_model(folder, nodes, weights, ["N", BIG_SIDE], last)
    before_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    (folder / "made").mkdir()
    started = time.perf_counter()
    model = flagir.read_model(path)
    flagir.canonicalize(model)
    flagir.check(model)
    flagir.save(model, folder / "made")
    flagir.check(flagir.load(folder / "made"))
    took_s = time.perf_counter() - started
    unit = 1e6 if sys.platform == "darwin" else 1e3
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    return {"import_2500mb_s": took_s, "import_2500mb_peak_mb": peak_mb, "import_2500mb_libraries_mb": before_mb}


def cut_20k(folder: Path) -> dict[str, float]:
    """Import, check and cut a graph of 20,000 nodes in three."""
    nodes, last = [], "x"
    for at in range(0, CUT_NODES, 4):
        nodes.append(onnx.helper.make_node("MatMul", [last, f"w{at % 64}"], [f"m{at}"]))
        nodes.append(onnx.helper.make_node("Relu", [f"m{at}"], [f"r{at}"]))
        nodes.append(onnx.helper.make_node("Sigmoid", [f"m{at}"], [f"s{at}"]))
        nodes.append(onnx.helper.make_node("Add", [f"r{at}", f"s{at}"], [last := f"a{at}"]))
    weights = [onnx.numpy_helper.from_array(np.full((8, 8), at, np.float32), f"w{at}") for at in range(0, 64, 4)]
    path = _write_model(folder, nodes, weights, ["N", 8], last)
    started = time.perf_counter()
    model = flagir.read_model(path)
    flagir.canonicalize(model)
    flagir.check(model)
    canonical_s = time.perf_counter() - started
    names = [node.name or "" for node in model.graph]
    steps = flagir.cut_into_steps(model, {name: at * 3 // len(names) for at, name in enumerate(names)}, 3)
    for step in steps:
        flagir.extract(model, step.segment)
    assert len(names) == CUT_NODES
    assert len(steps) == 3
    return {"cut_20k_s": time.perf_counter() - started, "cut_20k_canonicalize_s": canonical_s}


def _write_model(
    folder: Path, nodes: list[onnx.NodeProto], weights: list[onnx.TensorProto], shape: list[str | int], output: str
) -> Path:
    infos = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in ("x", output)]
    graph = onnx.helper.make_graph(nodes, "made", infos[:1], infos[1:], weights)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    path = folder / "made.onnx"
    path.write_bytes(model.SerializeToString())
    return path


LARGE = {"big_import": big_import, "cut_20k": cut_20k}

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        print(json.dumps(LARGE[sys.argv[1]](Path(scratch))))
