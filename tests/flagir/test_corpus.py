"""A part of the corpus and of the damaged files, and files that are bombs; the whole is in `bench`."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest

from flagsplit.errors import ModelError
from flagsplit.flagir import canonicalize, read_model
from flagsplit.flagir.limits import MAX_NODES, check_limits

BENCH = Path(__file__).parents[2] / "bench"


def figures(program: str, *words: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(BENCH / program), "--json", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found = json.loads(done.stdout)
    assert found["basis"] == "measured"
    return dict(found["figures"])


@pytest.mark.slow
def test_every_twelfth_operator_test_answers_alike() -> None:
    found = figures("flagir_corpus.py", "--every", "12")
    assert found["cases"] > 150
    assert (found["wrong"], found["crashed"]) == (0, 0)
    assert found["equal_ratio"] >= 0.97


@pytest.mark.slow
def test_damaged_files_are_refused_or_read() -> None:
    found = figures("flagir_fuzz.py", "--quick")
    assert found["cases"] >= 300
    assert (found["foreign"], found["crashed"], found["over_1gb"]) == (0, 0, 0)
    assert found["accepted"] > 0


def field(number: int, body: bytes) -> bytes:
    size, head = len(body), bytearray()
    key = number << 3 | 2
    for value in (key, size):
        rest = value
        while rest > 127:
            head.append(rest & 127 | 128)
            rest >>= 7
        head.append(rest)
    return bytes(head) + body


def model_of(*graph_fields: bytes) -> bytes:
    head = onnx.ModelProto(ir_version=9, opset_import=[onnx.helper.make_opsetid("", 21)]).SerializeToString()
    return bytes(head) + field(7, b"".join(graph_fields))


NODE = field(1, b"")
BOMBS = {
    "nodes": model_of(NODE * (MAX_NODES + 1)),
    "nodes in a branch": model_of(field(1, field(5, field(6, NODE * (MAX_NODES + 1))))),
    "nodes of a function": model_of() + field(25, field(7, b"") * (MAX_NODES + 1)),
    "attributes": model_of(field(1, field(5, b"") * 4_100_000)),
    "dimensions": model_of(field(13, field(2, field(1, field(2, field(1, b"") * 4_100_000))))),
    "names": model_of(field(1, field(1, b"") * 4_100_000)),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", BOMBS)
def test_bombs_are_refused_before_they_are_parsed(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "bomb.onnx"
    path.write_bytes(BOMBS[kind])
    assert path.stat().st_size < 12 << 20
    with pytest.raises(ModelError, match="expected a model of at most"):
        read_model(path)


def test_what_is_not_well_formed_is_left_to_the_parser(tmp_path: Path) -> None:
    path = tmp_path / "odd.onnx"
    for data in (b"\xff" * 500_000, NODE * 2 + b"\x0b" + b"\0" * 500_000, b"\x3a" + b"\x80" * 500_000):
        path.write_bytes(data)
        check_limits(path)
        with pytest.raises(ModelError, match="expected an ONNX model"):
            read_model(path)


def functions(count: int, calls: list[str]) -> onnx.ModelProto:
    """Functions f0 to f(count - 1); each calls the next one twice, the last one what `calls` says."""
    imports = [onnx.helper.make_opsetid("local", 1), onnx.helper.make_opsetid("", 21)]
    made = []
    for at in range(count):
        callees = [f"f{at + 1}"] * 2 if at < count - 1 else calls
        nodes = [
            onnx.helper.make_node(
                callee, ["a"], ["b" if index == 0 else "c"], domain="local" if callee != "Relu" else ""
            )
            for index, callee in enumerate(callees)
        ]
        made.append(onnx.helper.make_function("local", f"f{at}", ["a"], ["b"], nodes, imports))
    info = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2]) for name in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("f0", ["x"], ["y"], domain="local")], "g", info[:1], info[1:])
    return onnx.helper.make_model(graph, functions=made, opset_imports=imports, ir_version=9)


@pytest.mark.parametrize(
    ("count", "calls", "said"),
    [
        (40, ["Relu"], "its functions unfold to 549755813888"),
        (1, ["f0"], "Cyclic dependency detected"),
        (3, ["f1"], "Cyclic dependency detected"),
    ],
)
def test_functions_that_unfold_without_end_are_refused(count: int, calls: list[str], said: str, tmp_path: Path) -> None:
    path = tmp_path / "functions.onnx"
    path.write_bytes(functions(count, calls).SerializeToString())
    with pytest.raises(ModelError, match=said):
        canonicalize(read_model(path))


def test_a_few_functions_in_each_other_are_inlined(tmp_path: Path) -> None:
    path = tmp_path / "functions.onnx"
    path.write_bytes(functions(4, ["Relu"]).SerializeToString())
    model = read_model(path)
    canonicalize(model)
    assert [node.op_type for node in model.graph] == ["Relu"]
