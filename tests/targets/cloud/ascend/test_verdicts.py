"""What the ascend target says of nodes, and that compiling agrees with it."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from tests.targets.cloud.ascend.small import model_of, numbers, only_node

from flagsplit.errors import ConfigError, ModelError
from flagsplit.targets.catalogue import get_target, missing_sdk
from flagsplit.targets.chip_parts import ChipPart
from flagsplit.targets.cloud.ascend.releases import releases, table
from flagsplit.targets.cloud.ascend.rules import RESTRICTED
from flagsplit.targets.cloud.ascend.target import AscendTarget
from flagsplit.targets.interface import Array, CompileOptions


def one(body: str, given: str, made: str, **weights: Array) -> ir.Model:
    return model_of(body, given, made, weights)


def pool(kind: str, attributes: str, given: str, made: str) -> ir.Model:
    return one(f"y = {kind} <{attributes}> (x)", f"float[{given}] x", f"float[{made}] y")


def resize(attributes: str, given: str, made: str, *scales: float) -> ir.Model:
    given, made = f"float[{given}] x", f"float[{made}] y"
    return one(f"y = Resize <{attributes}> (x, , s)", given, made, s=np.array(scales, np.float32))


def conv(attributes: str, given: str, made: str, *kernel: int) -> ir.Model:
    return one(f"y = Conv <{attributes}> (x, w)", f"float[{given}] x", f"float[{made}] y", w=numbers(*kernel))


def compiled(model: ir.Model, **choices: str) -> None:
    AscendTarget().compile_parts([ChipPart("part", model)], CompileOptions(choices=choices))


TAKEN = {
    "widest": conv("pads: ints = [0, 255, 0, 255]", "1,1,1,4096", "1,1,1,4352", 1, 1, 1, 255),
    "three dimensions": conv("strides: ints = [63, 1, 1]", "1,1,64,3,3", "1,1,2,3,3", 1, 1, 1, 1, 1),
    "average": pool("AveragePool", "kernel_shape: ints = [16, 16]", "1,1,16,16", "1,1,1,1"),
    "linear in 5 dimensions": resize(
        'mode: string = "linear", coordinate_transformation_mode: string = "align_corners"',
        "1,1,2,2,2",
        "1,1,4,4,4",
        1,
        1,
        2,
        2,
        2,
    ),
    "product": one("y = MatMul (x, x)", "float16[1,1,1,1,2,2] x", "float16[1,1,1,1,2,2] y"),
    "vendor's spelling": one("y = CumSum (x, a)", "float[3] x", "float[3] y", a=np.array(0, np.int64)),
    "by its parts": one("y = Mish (x)", "float[3] x", "float[3] y"),
}
REFUSED = {
    "4097 wide; 4096 are taken": conv("pads: ints = [0, 0, 0, 0]", "1,1,1,4097", "1,1,1,4097", 1, 1, 1, 1),
    "strides are beyond 63": conv("strides: ints = [64, 1, 1]", "1,1,65,3,3", "1,1,2,3,3", 1, 1, 1, 1, 1),
    "dilations are beyond 255": conv("dilations: ints = [1, 256]", "1,1,1,300", "1,1,1,44", 1, 1, 1, 2),
    "kernel is beyond 255": conv("pads: ints = [0, 0, 0, 0]", "1,1,1,300", "1,1,1,45", 1, 1, 1, 256),
    "pads are beyond 255": conv("pads: ints = [0, 256, 0, 0]", "1,1,1,3", "1,1,1,259", 1, 1, 1, 1),
    "pools have no dilations": pool(
        "MaxPool", "kernel_shape: ints = [2, 2], dilations: ints = [2, 2]", "1,1,5,5", "1,1,3,3"
    ),
    "attribute dilations of AveragePool": pool(
        "AveragePool", "kernel_shape: ints = [2, 2], dilations: ints = [2, 2]", "1,1,5,5", "1,1,3,3"
    ),
    "pools are over one or two dimensions": pool("MaxPool", "kernel_shape: ints = [2, 2, 2]", "1,1,2,2,2", "1,1,1,1,1"),
    "storage_order": pool("MaxPool", "kernel_shape: ints = [2, 2], storage_order: int = 1", "1,1,2,2", "1,1,1,1"),
    "count padding that no Pad makes": pool(
        "AveragePool",
        "kernel_shape: ints = [2, 2], strides: ints = [2, 2], ceil_mode: int = 1, count_include_pad: int = 1",
        "1,1,3,3",
        "1,1,2,2",
    ),
    "mode cubic is not taken": resize('mode: string = "cubic"', "1,1,4,4", "1,1,8,8", 1, 1, 2, 2),
    "4 or 5 dimensions, not 3": resize('mode: string = "linear"', "1,1,4", "1,1,8", 1, 1, 2),
    "5 dimensions are taken with mode linear and": resize(
        'mode: string = "linear"', "1,1,2,2,2", "1,1,4,4,4", 1, 1, 2, 2, 2
    ),
    "no way to place its samples": resize('nearest_mode: string = "ceil"', "1,1,4,4", "1,1,6,6", 1, 1, 1.5, 1.5),
    "antialias": resize('mode: string = "linear", antialias: int = 1', "1,1,4,4", "1,1,2,2", 1, 1, 0.5, 0.5),
    "half_pixel_symmetric is of opset 19": resize(
        'mode: string = "linear", coordinate_transformation_mode: string = "half_pixel_symmetric"',
        "1,1,4,4",
        "1,1,6,6",
        1,
        1,
        1.5,
        1.5,
    ),
    "takes float16 and float32, not int32": one("y = MatMul (x, x)", "int32[2,2] x", "int32[2,2] y"),
    "is float64": one("y = Relu (x)", "double[2] x", "double[2] y"),
    "has 9 dimensions": one("y = Relu (x)", "float[1,1,1,1,1,1,1,1,2] x", "float[1,1,1,1,1,1,1,1,2] y"),
    "newer than opset 17": one("y = BitwiseNot (x)", "int32[2] x", "int32[2] y"),
    "Unique is not among the operators that ATC of CANN 8.0.0 lists": one("y = Unique (x)", "float[3] x", "float[n] y"),
    "mode wrap is of opset 19": one(
        'y = Pad <mode: string = "wrap"> (x, p)', "float[3] x", "float[5] y", p=np.array([1, 1])
    ),
    "layout": one(
        "y, h = GRU <hidden_size: int = 2, layout: int = 1> (x, w, r)",
        "float[1,3,2] x",
        "float[1,3,1,2] y, float[1,1,2] h",
        w=numbers(1, 6, 2),
        r=numbers(1, 6, 2),
    ),
}


@pytest.mark.parametrize("name", TAKEN)
def test_a_yes(name: str) -> None:
    verdict = get_target("ascend").supports(only_node(TAKEN[name]))
    assert verdict.supported, verdict.reason
    assert verdict.unit == "accelerator"
    assert verdict.source.startswith("CANN 8.0.0: https://www.hiascend.com/")
    assert verdict.confidence == "medium"
    compiled(TAKEN[name])


@pytest.mark.parametrize("reason", REFUSED)
def test_a_no_has_its_reason(reason: str) -> None:
    node = only_node(REFUSED[reason])
    verdict = get_target("ascend").supports(node)
    assert not verdict.supported
    assert reason in verdict.reason, verdict.reason
    assert verdict.source.startswith("CANN 8.0.0: https://www.hiascend.com/")


@pytest.mark.parametrize("reason", ["4097 wide; 4096 are taken", "mode cubic is not taken", "newer than opset 17"])
def test_compiling_says_the_same(reason: str) -> None:
    with pytest.raises(ModelError, match=rf"segment part: '.+' \(\w+\) is not for Ascend: .*{reason}"):
        compiled(REFUSED[reason])


def test_an_older_release_takes_less() -> None:
    model = one("y = Tan (x)", "float[2] x", "float[2] y")
    compiled(model)
    with pytest.raises(ModelError, match=r"Tan is not among the operators that ATC of CANN 5\.0\.4\.6 lists"):
        compiled(model, cann="5.0")
    same = one(
        'y = ConvTranspose <auto_pad: string = "SAME_UPPER"> (x, w)',
        "float[1,1,3,3] x",
        "float[1,1,3,3] y",
        w=numbers(1, 1, 2, 2),
    )
    compiled(same)
    with pytest.raises(ModelError, match="transposed convolutions have no auto_pad"):
        compiled(same, cann="5.0")


def test_large_windows_run_beside() -> None:
    model = pool("MaxPool", "kernel_shape: ints = [16, 17]", "1,1,16,17", "1,1,1,1")
    verdict = AscendTarget().supports(only_node(model))
    assert (verdict.supported, verdict.unit) == (True, "cpu")
    assert "16x17 is beyond 255 a side or 256 in all" in verdict.reason


def test_control_flow_and_vendors_operators() -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 23, "com.acme" : 1]> g (bool c, float[2] x) => (float[2] y, float[2] z) '
        "{ y = If (c) <then_branch = a () => (float[2] t) { t = Relu (x) }, else_branch = b () => (float[2] e) "
        "{ e = Neg (x) }> z = com.acme.Foo (x) }"
    )
    branch, foreign = ir.serde.deserialize_model(proto).graph
    assert "If has a graph inside" in AscendTarget().supports(branch).reason
    assert "com.acme.Foo is not an operator of the standard" in AscendTarget().supports(foreign).reason


def test_unknown_shapes() -> None:
    node = ir.node("Relu", [ir.Value(name="x")])
    assert "the type or shape of 'x' is not known" in AscendTarget().supports(node).reason


def test_the_record() -> None:
    names = {schema.name for schema in onnx.defs.get_all_schemas_with_history() if not schema.domain}
    for release in releases().values():
        assert release.operators <= names
        assert release.source.startswith("https://www.hiascend.com/")
        assert 13 <= release.opset <= 18
    assert len(releases()["8.0"].operators) == 149
    assert {"LayerNormalization", "GRU", "Tan"} <= releases()["8.0"].operators - releases()["5.0"].operators
    restrictions = table()["restrictions"]
    assert set(restrictions) <= RESTRICTED
    assert all(row["source"].startswith("https://") and row["says"] for row in restrictions.values())


def test_what_it_says_of_itself() -> None:
    about = get_target("ascend").describe()
    assert missing_sdk("ascend") == ""
    assert about.static_shapes
    assert about.choices["soc"][0] == "Ascend310P3"
    assert about.choices["precision"] == ("fp16", "mixed")
    assert about.confidence == "low"


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        ({"soc": "Ascend1"}, r"ascend\.soc expects one of Ascend310P3, .*; came 'Ascend1'"),
        ({"precision": "fp32"}, r"ascend\.precision expects one of fp16, mixed; came 'fp32'"),
        ({"cann": "1"}, r"ascend\.cann expects one of 8\.0, 5\.0; came '1'"),
    ],
)
def test_no_such_choice(choices: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        compiled(TAKEN["product"], **choices)
