"""Graphs that the operator tests of onnx have no case for, beside ONNX Runtime; and how many transposes remain."""

import re
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from tests.targets.mobile.litert.parts import codes, graph, norm_relative, ran, reference, seeded

from flagsplit import flagir
from flagsplit.targets.chip_parts import ChipPart
from flagsplit.targets.interface import Array
from flagsplit.targets.mobile.litert.target import LitertTarget


def weights(name: str, *shape: int) -> str:
    """A constant of seeded numbers in ONNX's text format."""
    numbers = ", ".join(f"{each:.4f}" for each in seeded(shape, sum(map(ord, name))).reshape(-1))
    return f"float[{','.join(map(str, shape))}] {name} = {{{numbers}}}"


def ints(name: str, *numbers: int) -> str:
    return f"int64[{len(numbers)}] {name} = {{{', '.join(map(str, numbers))}}}"


CASES: dict[str, tuple[str, str, str, str]] = {
    "pixels by places, linear, none outside": (
        "y = GridSample <align_corners = 1> (x, g)",
        "float[2,3,5,4] x, float[2,6,7,2] g",
        "float[2,3,6,7] y",
        "",
    ),
    "pixels by places, cubic, reflected": (
        'y = GridSample <mode = "cubic", padding_mode = "reflection"> (x, g)',
        "float[1,2,5,4] x, float[1,6,7,2] g",
        "float[1,2,6,7] y",
        "",
    ),
    "a picture turned and moved": (
        "g = AffineGrid(t, s) y = GridSample(x, g)",
        "float[2,3,5,4] x, float[2,2,3] t",
        "float[2,3,6,7] y",
        ints("s", 2, 3, 6, 7),
    ),
    "pixels of a volume by places, the nearest, from the border": (
        'y = GridSample <mode = "nearest", padding_mode = "border"> (x, g)',
        "float[2,2,3,5,4] x, float[2,2,3,4,3] g",
        "float[2,2,2,3,4] y",
        "",
    ),
    "a row replaced twice, where positions are computed": (
        "p = ArgMax <axis = 1> (x) y = ScatterND(d, p, u)",
        "float[9,4] x, float[5,3] d, float[9,3] u",
        "float[5,3] y",
        "",
    ),
    "a row replaced twice at constant positions, and all rows": (
        "a = ScatterND(d, p, u) y = ScatterND(a, q, v)",
        "float[3,4] d, float[3,4] u, float[4,4] v",
        "float[3,4] y",
        "int64[3,1] p = {2, 0, 2}, int64[4,1] q = {1, 2, 1, 0}",
    ),
    "elements replaced twice, where positions are computed": (
        "p = ArgMax <axis = 2, keepdims = 0> (x) y = ScatterElements <axis = 1> (d, p, u)",
        "float[3,6,4] x, float[3,5] d, float[3,6] u",
        "float[3,5] y",
        "",
    ),
    "heads turned by computed positions, in part": (
        "p = ArgMax <axis = 2, keepdims = 0> (x) "
        "y = RotaryEmbedding <num_heads = 2, rotary_embedding_dim = 4> (d, c, s, p)",
        "float[2,3,7] x, float[2,3,12] d",
        "float[2,3,12] y",
        f"{weights('c', 7, 2)}, {weights('s', 7, 2)}",
    ),
    "a longer transform of complex numbers, and back from one side": (
        "a = DFT(x, n, k) b = DFT <onesided = 1> (v, n, k) c = DFT <inverse = 1, onesided = 1> (b, n, k) y = Mul(a, c)",
        "float[2,6,3,2] x, float[2,6,3,1] v",
        "float[2,8,3,2] y",
        "int64 n = {8}, int64 k = {1}",
    ),
    "what the standard defines by others, from a constant": (
        "y = CenterCropPad <axes = [1, 2]> (x, s)",
        "float[2,7,4] x",
        "float[2,4,9] y",
        ints("s", 4, 9),
    ),
    "times and frequencies, under a window": (
        "y = STFT(x, s, w)",
        "float[2,40,1] x",
        "float[2,5,5,2] y",
        f"int64 s = {{8}}, {weights('w', 8)}",
    ),
    "blocks that overlap": (
        "y = Col2Im <strides = [2, 1], pads = [1, 0, 0, 2], dilations = [1, 2]> (x, s, b)",
        "float[2,12,18] x",
        "float[2,3,5,6] y",
        f"{ints('s', 5, 6)}, {ints('b', 2, 2)}",
    ),
    "grouped convolution": (
        "y = Conv <group = 2, pads = [1, 1, 1, 1]> (x, w)",
        "float[2,4,7,6] x",
        "float[2,6,7,6] y",
        weights("w", 6, 2, 3, 3),
    ),
    "dilated depthwise convolution, two outputs a channel": (
        "y = Conv <group = 3, dilations = [2, 1], strides = [1, 2], pads = [2, 1, 2, 0]> (x, w)",
        "float[1,3,9,8] x",
        "float[1,6,9,4] y",
        weights("w", 6, 1, 3, 3),
    ),
    "convolutions along a line": (
        "a = Conv <pads = [2, 0]> (x, v) b = Relu(a) y = Conv <strides = [2]> (b, w)",
        "float[2,3,11] x",
        "float[2,4,5] y",
        f"{weights('v', 5, 3, 3)}, {weights('w', 4, 5, 3)}",
    ),
    "grouped convolution of a volume": (
        "y = Conv <group = 2, pads = [0, 1, 0, 0, 1, 1]> (x, w)",
        "float[1,4,5,6,4] x",
        "float[1,4,4,6,3] y",
        weights("w", 4, 2, 2, 3, 3),
    ),
    "transposed convolution with groups, dilation and output padding": (
        "y = ConvTranspose <group = 2, dilations = [2, 1], strides = [2, 3], pads = [1, 0, 2, 1], "
        "output_padding = [1, 2]> (x, w, b)",
        "float[1,4,5,6] x",
        "float[1,6,11,19] y",
        f"{weights('w', 4, 3, 3, 3)}, {weights('b', 6)}",
    ),
    "pools with odd pads, rounded up": (
        "a = MaxPool <kernel_shape = [3, 2], strides = [2, 2], pads = [1, 0, 0, 1], ceil_mode = 1> (x) "
        "y = AveragePool <kernel_shape = [2, 3], strides = [2, 1], pads = [1, 1, 0, 1], ceil_mode = 1> (a)",
        "float[1,3,8,9] x",
        "float[1,3,3,5] y",
        "",
    ),
    "pool of a volume": (
        "y = AveragePool <kernel_shape = [2, 3, 2], strides = [1, 2, 2], pads = [1, 1, 0, 0, 1, 1]> (x)",
        "float[1,2,4,6,5] x",
        "float[1,2,4,3,3] y",
        "",
    ),
    "dilated pool": (
        "y = MaxPool <kernel_shape = [2, 2], dilations = [2, 3], pads = [1, 1, 1, 1]> (x)",
        "float[1,2,6,7] x",
        "float[1,2,6,6] y",
        "",
    ),
    "reflected and repeated borders": (
        'a = Pad <mode = "reflect"> (x, p) b = Pad <mode = "edge"> (a, p) y = Pad <mode = "wrap"> (b, p)',
        "float[1,2,5,6] x",
        "float[1,2,14,9] y",
        ints("p", 0, 0, 2, 1, 0, 0, 1, 0),
    ),
    "six dimensions moved": (
        "y = Transpose <perm = [5, 0, 3, 1, 4, 2]> (x)",
        "float[2,3,2,4,1,3] x",
        "float[3,2,4,3,1,2] y",
        "",
    ),
    "five dimensions cut and joined": (
        "a = Slice(x, s, e, a0, t) b = Slice(x, s, e, a0, t) y = Concat <axis = 3> (a, b)",
        "float[2,3,4,5,6] x",
        "float[2,3,2,10,3] y",
        f"{ints('s', 1, 5)}, {ints('e', 3, 0)}, {ints('a0', 2, 4)}, {ints('t', 1, -2)}",
    ),
    "six dimensions reduced": (
        "y = ReduceMean <keepdims = 0> (x, a)",
        "float[2,3,2,4,2,3] x",
        "float[2,2,4,3] y",
        ints("a", 1, 4),
    ),
    "broadcast over five dimensions": (
        "a = Add(x, z) y = Mul(a, w)",
        "float[2,3,1,5,6] x, float[4,1,1] z",
        "float[2,3,4,5,6] y",
        weights("w", 3, 4, 5, 6),
    ),
    "chosen over five dimensions": (
        "c = Greater(x, z) y = Where(c, x, z)",
        "float[2,1,4,5,6] x, float[3,1,5,6] z",
        "float[2,3,4,5,6] y",
        "",
    ),
    "expanded to five dimensions": (
        "y = Expand(x, s)",
        "float[3,1,5] x",
        "float[2,2,3,4,5] y",
        ints("s", 2, 2, 3, 4, 5),
    ),
    "softmax over channels between convolutions": (
        "a = Conv(x, w) b = Softmax <axis = 1> (a) y = Conv(b, w)",
        "float[1,4,5,6] x",
        "float[1,4,5,6] y",
        weights("w", 4, 4, 1, 1),
    ),
    "squeeze and excite": (
        "a = Conv(x, w) m = GlobalAveragePool(a) c = Conv(m, w) s = HardSigmoid(c) p = Mul(a, s) y = Add(p, x)",
        "float[1,4,5,6] x",
        "float[1,4,5,6] y",
        weights("w", 4, 4, 1, 1),
    ),
    "channels shuffled": (
        "a = Conv(x, w) r = Reshape(a, g) t = Transpose <perm = [0, 2, 1, 3, 4]> (r) s = Reshape(t, f) y = Conv(s, w)",
        "float[1,4,5,6] x",
        "float[1,4,5,6] y",
        f"{weights('w', 4, 4, 1, 1)}, {ints('g', 1, 2, 2, 5, 6)}, {ints('f', 1, 4, 5, 6)}",
    ),
    "split, joined and padded between convolutions": (
        "a = Conv(x, w) u, v = Split <axis = 1, num_outputs = 2> (a) n = Neg(v) j = Concat <axis = 1> (n, u) "
        "p = Pad(j, q) y = Conv(p, w)",
        "float[1,4,5,6] x",
        "float[1,4,7,7] y",
        f"{weights('w', 4, 4, 1, 1)}, {ints('q', 0, 0, 1, 0, 0, 0, 1, 1)}",
    ),
    "picture to sequence": (
        "a = Conv <strides = [3, 1]> (x, w) s = Squeeze(a, h) t = Transpose <perm = [0, 2, 1]> (s) y = MatMul(t, m)",
        "float[1,4,3,6] x",
        "float[1,6,5] y",
        f"{weights('w', 4, 4, 3, 1)}, {ints('h', 2)}, {weights('m', 4, 5)}",
    ),
    "an output that is read on": (
        "a = Conv(x, w) r = Relu(a) y = Conv(r, w) z = Identity(r)",
        "float[1,4,5,6] x",
        "float[1,4,5,6] y, float[1,4,5,6] r, float[1,4,5,6] a",
        weights("w", 4, 4, 1, 1),
    ),
    "both ways through time": (
        'y, h, c = LSTM <hidden_size = 3, direction = "bidirectional"> (x, w, r, b)',
        "float[5,2,4] x",
        "float[5,2,2,3] y, float[2,2,3] h, float[2,2,3] c",
        f"{weights('w', 2, 12, 4)}, {weights('r', 2, 12, 3)}, {weights('b', 2, 24)}",
    ),
    "gates before the matrix and after": (
        'y, h = GRU <hidden_size = 3, direction = "reverse", linear_before_reset = 1> (x, w, r, b) z, k = GRU '
        "<hidden_size = 3> (x, w, r, b)",
        "float[5,2,4] x",
        "float[5,1,2,3] y, float[1,2,3] h, float[5,1,2,3] z",
        f"{weights('w', 1, 9, 4)}, {weights('r', 1, 9, 3)}, {weights('b', 1, 18)}",
    ),
    "matrices of five dimensions": (
        "y = MatMul(x, z)",
        "float[2,1,3,4,5] x, float[2,1,5,6] z",
        "float[2,2,3,4,6] y",
        "",
    ),
    "sums of products": (
        'y = Einsum <equation = "bhid,bjhd->bhij"> (x, z)',
        "float[2,3,4,5] x, float[2,6,3,5] z",
        "float[2,3,4,6] y",
        "",
    ),
    "error function, far and near": (
        "b = Mul(x, m) e = Erf(b) s = Mul(x, n) f = Erf(s) y = Concat <axis = 0> (e, f)",
        "float[40,5] x",
        "float[80,5] y",
        "float m = {4}, float n = {0.001}",
    ),
    "product of integers": (
        "q = QuantizeLinear(x, s, z) m = MatMulInteger(q, w, z, v) f = Cast <to = 1> (m) y = Mul(f, s)",
        "float[3,4] x",
        "float[3,3] y",
        "int8[4,3] w = {1, -2, 3, 4, 5, -128, 7, 8, 9, 10, 127, 12}, int8[3] v = {0, 0, 0}, float s = {0.02}, "
        "uint8 z = {120}",
    ),
    "product of integers, weights with a zero": (
        "q = QuantizeLinear(x, s, z) m = MatMulInteger(q, w, z, v) f = Cast <to = 1> (m) y = Mul(f, s)",
        "float[3,4] x",
        "float[3,3] y",
        "uint8[4,3] w = {1, 2, 3, 4, 5, 128, 7, 8, 9, 10, 255, 12}, uint8 v = {3}, float s = {0.02}, uint8 z = {120}",
    ),
    "quantized and back": (
        "q = QuantizeLinear <axis = 1> (x, s, z) t = Transpose(q) u = Transpose(t) "
        "y = DequantizeLinear <axis = 1> (u, s, z)",
        "float[5,2] x",
        "float[5,2] y",
        "float[2] s = {0.01, 0.02}, uint8[2] z = {128, 100}",
    ),
    "enlarged in every way": (
        'a = Resize <mode = "linear"> (x, none, s) b = Resize <mode = "cubic"> (a, none, s) '
        'c = Resize <coordinate_transformation_mode = "asymmetric", nearest_mode = "ceil"> (b, none, s) '
        'y = Resize <mode = "linear", coordinate_transformation_mode = "align_corners"> (c, none, none, z)',
        "float[1,2,3,4] x",
        "float[1,2,20,30] y",
        f"float[4] s = {{1, 1, 1.5, 2}}, {ints('z', 1, 2, 20, 30)}",
    ),
    "resized by scales with aligned corners": (
        'a = Resize <mode = "linear", coordinate_transformation_mode = "align_corners"> (x, none, s) '
        'b = Resize <mode = "nearest", coordinate_transformation_mode = "align_corners"> (x, none, t) '
        'c = Resize <mode = "cubic", coordinate_transformation_mode = "align_corners"> (b, none, u) y = Neg(c)',
        "float[1,2,5,6] x",
        "float[1,2,6,3] a, float[1,2,6,10] b, float[1,2,1,11] y",
        "float[4] s = {1, 1, 1.2, 0.5}, float[4] t = {1, 1, 1.25, 1.7}, float[4] u = {1, 1, 0.2, 1.1}",
    ),
    "a region cut out and resized": (
        'y = Resize <mode = "linear", coordinate_transformation_mode = "tf_crop_and_resize", axes = [3, 2], '
        "extrapolation_value = 7.0> (x, r, none, z)",
        "float[1,2,5,6] x",
        "float[1,2,8,7] y",
        f"float[4] r = {{0.1, -0.3, 1.2, 0.9}}, {ints('z', 7, 8)}",
    ),
}
TRANSPOSES = {
    "softmax over channels between convolutions": 2,
    "squeeze and excite": 2,
    "channels shuffled": 2,
    "split, joined and padded between convolutions": 2,
    "convolutions along a line": 2,
    "picture to sequence": 1,
}
"""One where a program begins, one where it ends."""


def _inputs(text: str) -> dict[str, Array]:
    found = re.findall(r"float\[([\d,]+)\] (\w+)", text)
    return {name: seeded([int(each) for each in shape.split(",")], at) for at, (shape, name) in enumerate(found)}


@pytest.mark.parametrize("name", CASES)
def test_as_onnx_runtime(name: str, tmp_path: Path) -> None:
    body, inputs, outputs, constants = CASES[name]
    part = graph(body.replace("none", '""') if "Resize" in body else body, inputs, outputs, constants)
    target = LitertTarget()
    assert [target.supports(node).reason for node in part.model.graph if not target.supports(node).supported] == []
    given = _inputs(inputs)
    came, wanted = ran(part, tmp_path, given), reference(part, given)
    assert came.keys() == wanted.keys()
    for each, array in wanted.items():
        assert came[each].shape == array.shape
        assert norm_relative(came[each], array) < 2e-5, each
    if name in TRANSPOSES:
        assert codes(part)["TRANSPOSE"] <= TRANSPOSES[name]


def test_what_the_standard_defines_by_others_with_a_constant_in_a_file(tmp_path: Path) -> None:
    labels = ", ".join(str(at % 5) for at in range(48))
    part = graph(
        'y = NegativeLogLikelihoodLoss <reduction = "none"> (x, t)',
        "float[2,5,4,6] x",
        "float[2,4,6] y",
        f"int64[2,4,6] t = {{{labels}}}",
    )
    given = {"x": seeded((2, 5, 4, 6))}
    wanted = reference(part, given)["y"]
    flagir.save(part.model, tmp_path)
    loaded = ChipPart("part", flagir.load(tmp_path))
    assert isinstance(loaded.model.graph.initializers["t"].const_value, ir.ExternalTensor)
    assert norm_relative(ran(loaded, tmp_path, given)["y"], wanted) < 2e-5


@pytest.mark.parametrize("mode", ["linear", "nearest", "cubic"])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
def test_places_that_are_no_numbers_read_no_pixel_out_of_bounds(mode: str, padding: str, tmp_path: Path) -> None:
    """The kernel would refuse to run, also for the places that are numbers."""
    part = graph(
        f'y = GridSample <mode = "{mode}", padding_mode = "{padding}"> (x, g)',
        "float[1,2,5,4] x, float[1,2,3,2] g",
        "float[1,2,2,3] y",
    )
    grid = seeded((1, 2, 3, 2))
    given = {"x": seeded((1, 2, 5, 4), 1), "g": grid}
    wanted = reference(part, given)["y"].astype(np.float32)
    grid[0, 0] = np.array([[np.nan, 0], [0, np.inf], [-np.inf, 1e10]])
    came = ran(part, tmp_path, given)["y"].astype(np.float32)
    np.testing.assert_allclose(came[:, :, 1], wanted[:, :, 1], atol=1e-5)


def test_layer_of_an_encoder(tmp_path: Path) -> None:
    """Ids, one of them from the end, looked up; heads that attend under a mask; dense layers with their biases in."""
    body = """e = Gather(table, ids) n = LayerNormalization <epsilon = 1e-12> (e, g, b)
    q0 = MatMul(n, wq) q1 = Add(b, q0) q2 = Reshape(q1, heads) q = Transpose <perm = [0, 2, 1, 3]> (q2)
    k0 = MatMul(n, wk) k2 = Reshape(k0, heads) k = Transpose <perm = [0, 2, 3, 1]> (k2)
    v0 = MatMul(n, wv) v2 = Reshape(v0, heads) v = Transpose <perm = [0, 2, 1, 3]> (v2)
    s0 = MatMul(q, k) s1 = Div(s0, root) f = Cast <to = 1> (mask) i = Sub(one, f) u = Mul(i, much) h = Unsqueeze(u, at)
    s2 = Add(s1, h) p = Softmax(s2) o = MatMul(p, v) t = Transpose <perm = [0, 2, 1, 3]> (o) r = Reshape(t, back)
    d = Add(r, n) w = MatMul(d, wq) x = Gelu(w) y = ReduceL2 <keepdims = 0> (x, last)"""
    constants = ", ".join(
        (
            weights("table", 12, 8),
            *(weights(name, 8, 8) for name in ("wq", "wk", "wv")),
            *(weights(name, 8) for name in ("g", "b")),
            ints("heads", 2, 5, 2, 4),
            ints("back", 2, 5, 8),
            ints("at", 1, 2),
            ints("last", -1),
            "float root = {2}, float one = {1}, float much = {-10000}",
        )
    )
    part = graph(body, "int64[2,5] ids, int64[2,5] mask", "float[2,5] y, float[2,5,8] d", constants)
    given: dict[str, Array] = {
        "ids": np.array([[1, 2, 3, 4, 5], [0, 11, -1, 7, 3]]),
        "mask": np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
    }
    came, wanted = ran(part, tmp_path, given), reference(part, given)
    for name, array in wanted.items():
        assert norm_relative(came[name], array) < 1e-5, name
    assert codes(part)["FULLY_CONNECTED"] == 4
