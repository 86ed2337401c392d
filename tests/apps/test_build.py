"""Building: bundles that are right for every number of tiers, as small as they can be, and the same every time."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from tests.apps import models
from tests.apps.conftest import Serve

import flagsplit
from flagsplit.apps.cli.options import OpenDims, open_dims
from flagsplit.apps.compare import compare
from flagsplit.errors import ConfigError, InputError, ModelError, PolicyError
from flagsplit.runtime.session import Session
from flagsplit.targets.interface import LoadOptions
from flagsplit.transport.security import KeyStore
from flagsplit.transport.zeromq import ZmqChannel

pytestmark = pytest.mark.usefixtures("own_folders")

LINES = {
    "solo": ({"solo": "t4"}, {}),
    "phone,cloud": ({}, models.SPLIT_SLA),
    "phone,edge,cloud": ({}, models.SPLIT_SLA),
    "a,b,c,d": (
        {"a": "generic-phone-cpu", "b": "raspberry-pi-5", "c": "l4", "d": "h100"},
        {"keep_on": {"inputs": "a"}, "pins": {"ArgMax": "d"}},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("numerics", ["exact", "fast"])
@pytest.mark.parametrize("tiers", LINES)
def test_every_plan_of_every_line(serve: Serve, small_model: Path, tmp_path: Path, tiers: str, numerics: str) -> None:
    devices, sla = LINES[tiers]
    image = np.asarray(np.random.default_rng(3).standard_normal((2, 3, 33, 40))).astype(np.float32)
    names: list[str] = []
    for number, policy in enumerate((None, sla)):
        output = tmp_path / f"{number}.flagsplit"
        flagsplit.build(small_model, tiers, output, devices=devices, sla=policy, numerics=numerics)  # type: ignore[arg-type]
        bundle = flagsplit.open(output)
        whole = bundle.load_whole(LoadOptions(threads=1))
        expected = whole.run({"image": image})
        original = models.answers_of(small_model, {"image": image})
        models.assert_near(expected["scores"], original["scores"])
        with flagsplit.connect(bundle, serve(bundle)) as session:
            for plan in bundle.plans.pool.plans:
                answer = session.run({"image": image}, plan=plan.name)
                assert answer.report.plan == plan.name
                for difference in compare(expected, answer).values():
                    assert difference.max_abs == 0 if numerics == "exact" else difference.max_rel <= 1e-5
                names.append(plan.name)
        whole.close()
    assert any("+" in name for name in names) == (tiers != "solo")


def test_same_model_same_bytes(small_model: Path, small_bundle: Path, tmp_path: Path) -> None:
    again = flagsplit.build(small_model, ["phone", "edge", "cloud"], tmp_path / "again.flagsplit")
    assert again.path.read_bytes() == small_bundle.read_bytes()
    other = flagsplit.build(small_model, "phone,edge,cloud", tmp_path / "other.flagsplit", numerics="fast")
    assert other.digest != again.digest


@pytest.mark.slow
def test_size_and_memory_of_a_build(tmp_path: Path) -> None:
    """Weights are stored once and stream from file to file."""
    model = models.save(models.wide(layers=10, width=1024), tmp_path / "wide.onnx")
    file_bytes = model.stat().st_size
    assert file_bytes > 40e6
    program = (
        "import re, sys\n"
        "from flagsplit.apps.cli.main import _run\n"
        "code = _run()\n"
        "try:\n    peak = re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())\n"
        "except OSError:\n    peak = None\n"
        "print(int(peak[1]) * 1024 if peak else 0, file=sys.stderr)\n"
        "sys.exit(code)\n"
    )
    options = ["build", str(model), "--tiers", "phone,edge,cloud", "-o", str(tmp_path / "wide.flagsplit")]
    done = subprocess.run([sys.executable, "-c", program, *options], capture_output=True, text=True, check=True)
    assert (tmp_path / "wide.flagsplit").stat().st_size <= 1.15 * 10 * 4 * 1024**2 + 1e6
    assert 0 <= int(done.stderr) <= 3 * file_bytes + 300e6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["wide.flagsplit", "wide.onnx"]


def test_bundle_of_few_weights_is_small(small_bundle: Path, split_bundle: Path) -> None:
    weights = flagsplit.open(small_bundle).facts.weights_bytes
    for path in (small_bundle, split_bundle):
        assert path.stat().st_size <= 1.15 * weights + 1e6


def test_progress_ends_at_one(small_model: Path, tmp_path: Path) -> None:
    told: list[tuple[str, float]] = []
    result = flagsplit.build(
        small_model, "phone", tmp_path / "x.flagsplit", progress=lambda what, share: told.append((what, share))
    )
    shares = [share for _, share in told]
    assert shares == sorted(shares)
    assert told[0] == ("read", 0.0)
    assert told[-1] == ("done", 1.0)
    assert set(result.seconds) == {"read", "canonicalize", "store weights", "plan", "compile", "write"}


def test_misuse_of_the_function(small_model: Path, tmp_path: Path) -> None:
    output = tmp_path / "x.flagsplit"
    with pytest.raises(PolicyError, match="tier 'phone' stands twice among phone, phone"):
        flagsplit.build(small_model, "phone, phone", output)
    with pytest.raises(PolicyError, match="expected at least one tier"):
        flagsplit.build(small_model, [], output)
    with pytest.raises(PolicyError, match="cannot read the SLA"):
        flagsplit.build(small_model, "phone", output, sla=tmp_path / "none.json")
    with pytest.raises(ConfigError, match="dimension 'W' is 5 by name and 6 by the shapes"):
        flagsplit.build(small_model, "phone", output, dims={"W": 5}, shapes={"image": [1, 3, 6, 6]})
    with pytest.raises(ModelError, match="no such model file"):
        flagsplit.build(tmp_path / "none.onnx", "phone", output)
    assert list(tmp_path.iterdir()) == []


def test_an_operator_without_a_kernel_has_no_tier(tmp_path: Path) -> None:
    text = '<ir_version: 10, opset_import: ["" : 21]> g (float[N] x) => (float[N] y) {'
    text += " a = Cast <to = 16> (x) b = Add (a, a) y = Cast <to = 1> (b) }"
    models.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    with pytest.raises(PolicyError, match="no CPU kernel for Add of opset 23 on bfloat16"):
        flagsplit.build(tmp_path / "m.onnx", "phone", tmp_path / "x.flagsplit")
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_two_bundles_in_one_process(serve: Serve, small_bundle: Path, other_bundle: Path) -> None:
    """Sessions do not share anything: each answers with its own weights."""
    image = np.ones((1, 3, 16, 16), np.float32)
    opened = [flagsplit.open(path) for path in (small_bundle, other_bundle)]
    sessions = [Session(bundle, {}, ZmqChannel(security=KeyStore().security())) for bundle in opened]
    try:
        first, second = (session.run({"image": image})["scores"] for session in sessions)
    finally:
        for session in sessions:
            session.close()
    assert not np.array_equal(first, second)


def test_a_plan_that_zigzags_beyond_what_a_request_can_say_is_refused(tmp_path: Path) -> None:
    nodes = [onnx.helper.make_node("MatMul", [f"v{i}", "w"], [f"v{i + 1}"], name=f"n{i}") for i in range(24)]
    info = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [4, 4]) for name in ("v0", "v24")]
    weight = onnx.numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")
    graph = onnx.helper.make_graph(nodes, "zigzag", info[:1], info[1:], [weight])
    model = tmp_path / "zigzag.onnx"
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, ir_version=9, opset_imports=opset), model)
    pins = {f"n{i}": "cloud" if i % 2 else "phone" for i in range(24)}
    with pytest.raises(PolicyError, match="at most 15 can be sent"):
        flagsplit.build(model, "phone,cloud", tmp_path / "zigzag.flagsplit", sla={"pins": pins})
    assert [path.name for path in tmp_path.iterdir()] == ["zigzag.onnx"]


def test_a_range_is_checked_at_the_build_and_at_each_request(tmp_path: Path) -> None:
    model, bundle = tmp_path / "wide.onnx", tmp_path / "wide.flagsplit"
    text = "g (float[N, 4] x) => (float[N, 4] y) { y = Softmax (x) }"
    onnx.save(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}'), model)
    flagsplit.build(model, "phone,cloud", bundle, ranges={"N": (2, 6)})
    opened = flagsplit.open(bundle)
    assert (opened.facts.nominal_dims, opened.facts.dim_ranges) == ({"N": 6}, {"N": (2, 6)})
    with flagsplit.connect(opened, {}) as session:
        assert session.run({"x": np.zeros((2, 4), np.float32)}, plan="all-phone")["y"].shape == (2, 4)
        for size in (1, 7):
            with pytest.raises(InputError, match=f"expected N from 2 to 6, came {size}"):
                session.submit({"x": np.zeros((size, 4), np.float32)})
    with pytest.raises(ConfigError, match="outside its range"):
        flagsplit.build(model, "phone,cloud", bundle, dims={"N": 9}, ranges={"N": (2, 6)})


def test_a_range_in_words() -> None:
    assert open_dims("--dim", ["N=1..8", "W=3"]) == OpenDims({"N": 8, "W": 3}, {"N": (1, 8)}, {})
    given = ["N=1..8@2", "W=32,8,16", "H=8,16@8"]
    assert open_dims("--dim", given) == OpenDims(
        {"N": 2, "W": 32, "H": 8}, {"N": (1, 8)}, {"W": (8, 16, 32), "H": (8, 16)}
    )
    for words in ("N=8..1", "N=..8", "N=0..8", "N=1...8", "N=3@3", "N=1..8@", "N=1,,2", "N=1,2@x"):
        with pytest.raises(ConfigError, match="--dim"):
            open_dims("--dim", [words])
