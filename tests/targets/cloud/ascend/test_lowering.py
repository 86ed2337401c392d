"""Parts for Ascend: which operators they are written in, and that they compute what the graph does."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from tests.targets.cloud.ascend.small import expected, model_of, numbers, ran

from flagsplit.targets.cloud.ascend.lower import lower
from flagsplit.targets.cloud.ascend.releases import releases
from flagsplit.targets.interface import Array


def operators(model: ir.Model, cann: str) -> list[str]:
    return [node.op_type for node in lower(model, releases()[cann]).graph]


def longs(*values: int) -> Array:
    return np.array(values, np.int64)


def floats(*values: float) -> Array:
    return np.array(values, np.float32)


def like(body: str, given: str, made: str, **weights: Array) -> ir.Model:
    return model_of(body, f"float[{given}] x", f"float[{made}] y", weights)


MODELS = {
    "reductions": like(
        "m = ReduceMean (x, a) y = ReduceMax <keepdims: int = 0> (m, b)", "2,3,4", "2,4", a=longs(1), b=longs(1)
    ),
    "all axes": like("y = ReduceL2 (x)", "2,3", "1,1"),
    "equal parts": model_of(
        "y, z = Split <axis: int = 1, num_outputs: int = 2> (x)", "float[2,5] x", "float[2,3] y, float[2,2] z"
    ),
    "some pads": like('y = Pad <mode: string = "reflect"> (x, p, , a)', "1,3,5", "1,3,9", p=longs(1, 3), a=longs(-1)),
    "some scales": like(
        'y = Resize <axes: ints = [2, 3], mode: string = "linear"> (x, , s)', "1,2,4,6", "1,2,8,9", s=floats(2, 1.5)
    ),
    "some sizes": like(
        'y = Resize <axes: ints = [3], mode: string = "linear"> (x, , , s)', "1,2,4,6", "1,2,4,9", s=longs(9)
    ),
    "nearest as PyTorch asks": like(
        'y = Resize <coordinate_transformation_mode: string = "asymmetric", nearest_mode: string = "floor"> (x, , s)',
        "1,2,5,7",
        "1,2,10,28",
        s=floats(1, 1, 2, 4),
    ),
    "nearest by default": like("y = Resize (x, , s)", "1,2,5,7", "1,2,15,14", s=floats(1, 1, 3, 2)),
    "nearest by sizes": like("y = Resize (x, , , s)", "1,1,4,4", "1,1,8,8", s=longs(1, 1, 8, 8)),
    "convolution of one dimension": like(
        "y = Conv <strides: ints = [2], pads: ints = [1, 2], dilations: ints = [2]> (x, w)",
        "2,3,17",
        "2,4,8",
        w=numbers(4, 3, 3),
    ),
    "transposed in one dimension": like(
        "y = ConvTranspose <strides: ints = [2], output_padding: ints = [1]> (x, w)",
        "2,3,5",
        "2,4,12",
        w=numbers(3, 4, 3),
    ),
    "pools of one dimension": like(
        "m = MaxPool <kernel_shape: ints = [3], strides: ints = [2]> (x) "
        "y = AveragePool <kernel_shape: ints = [2], pads: ints = [1, 0]> (m)",
        "2,3,15",
        "2,3,7",
    ),
    "padding that counts": like(
        "y = AveragePool <kernel_shape: ints = [3, 3], pads: ints = [1, 1, 0, 1], count_include_pad: int = 1> (x)",
        "1,2,6,6",
        "1,2,5,6",
    ),
    "padding below": like(
        'y = AveragePool <kernel_shape: ints = [2, 2], auto_pad: string = "SAME_LOWER"> (x)', "1,2,5,6", "1,2,5,6"
    ),
    "padding above": like(
        'y = Conv <auto_pad: string = "SAME_UPPER", strides: ints = [2, 2]> (x, w)',
        "1,2,5,6",
        "1,3,3,3",
        w=numbers(3, 2, 2, 2),
    ),
    "defaults": like("y = Cast <to: int = 1, saturate: int = 1> (x)", "2,3", "2,3"),
    "norms": like(
        "m = LayerNormalization <axis: int = -1> (x, s) y = RMSNormalization (m, s)", "2,5,8", "2,5,8", s=numbers(8)
    ),
    "groups": like(
        "y = GroupNormalization <num_groups: int = 2> (x, s, b)", "2,4,3,3", "2,4,3,3", s=numbers(4), b=numbers(4)
    ),
    "activations": like("m = Gelu (x) n = HardSwish (m) o = Mish (n) y = Celu (o)", "2,9", "2,9"),
    "attention": model_of(
        "y = Attention <q_num_heads: int = 2, kv_num_heads: int = 2> (q, k, v)",
        "float[1,4,8] q, float[1,6,8] k, float[1,6,8] v",
        "float[1,4,8] y",
    ),
    "rotation": model_of(
        "y = RotaryEmbedding (x, c, s)",
        "float[1,2,4,8] x",
        "float[1,2,4,8] y",
        {"c": numbers(1, 4, 4), "s": numbers(1, 4, 4)},
    ),
    "shape": like("y = Reshape <allowzero: int = 1> (x, s)", "2,6", "3,4", s=longs(3, 4)),
}
"""Each is of operators, attributes or inputs that opset 13 or 17 lacks, or the pages of ATC do not describe."""


@pytest.mark.parametrize("cann", ["8.0", "5.0"])
@pytest.mark.parametrize("name", MODELS)
def test_the_same_comes_out(tmp_path: Path, name: str, cann: str) -> None:
    model = MODELS[name]
    release = releases()[cann]
    lowered = lower(model, release)
    assert lowered.graph.opset_imports[""] == release.opset == {"8.0": 17, "5.0": 13}[cann]
    assert {node.op_type for node in lowered.graph} <= release.operators
    inputs = {
        value.name or "": numbers(*value.shape.numpy(), seed=at)
        for at, value in enumerate(model.graph.inputs)
        if value.shape is not None
    }
    want, came = expected(model, inputs, tmp_path), ran(model, inputs, tmp_path, cann)
    assert list(came) == list(want)
    for key, array in want.items():
        np.testing.assert_allclose(came[key], array, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in MODELS if "nearest" in name])
def test_nearest_neighbors_to_the_bit(tmp_path: Path, name: str) -> None:
    model = MODELS[name]
    (given,) = model.graph.inputs
    assert given.shape is not None
    inputs = {"x": numbers(*given.shape.numpy())}
    np.testing.assert_array_equal(ran(model, inputs, tmp_path)["y"], expected(model, inputs, tmp_path)["y"])
    (node,) = lower(model, releases()["8.0"]).graph
    assert node.attributes.get_string("nearest_mode") == "round_prefer_ceil"


def test_what_a_release_lists_stays() -> None:
    model = MODELS["norms"]
    assert "LayerNormalization" in operators(model, "8.0")
    assert "LayerNormalization" not in operators(model, "5.0")
    swish = like("y = HardSwish (x)", "2,2", "2,2")
    assert operators(swish, "8.0") == ["HardSwish"]
    assert operators(swish, "5.0") == ["HardSigmoid", "Mul"]


def test_the_graph_itself_stays() -> None:
    model = MODELS["some pads"]
    before = [(node.op_type, [value.name if value else None for value in node.inputs]) for node in model.graph]
    lower(model, releases()["5.0"])
    assert model.graph.opset_imports[""] == 23
    assert [(node.op_type, [v.name if v else None for v in node.inputs]) for node in model.graph] == before


def test_axes_and_scales_are_of_all_dimensions_again() -> None:
    (reduce, _) = lower(MODELS["reductions"], releases()["8.0"]).graph
    assert (len(reduce.inputs), list(reduce.attributes.get_ints("axes") or ())) == (1, [1])
    (resize,) = lower(MODELS["some scales"], releases()["8.0"]).graph
    scales = resize.inputs[2]
    assert scales is not None
    assert scales.const_value is not None
    assert scales.const_value.numpy().tolist() == [1, 1, 2, 1.5]
