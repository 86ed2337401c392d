"""Operators of int8: what the program holds, and that it answers what ONNX Runtime answers, within steps."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from tests.flagir.quantization.engine import run
from tests.targets.mobile.litert.parts import graph, norm_relative, ran
from tests.targets.tflite.int8_parts import (
    canonical,
    codes,
    floating,
    int8_part,
    off_by,
    quantized,
    samples_of,
)

from flagsplit.targets.tflite import flatfile
from flagsplit.targets.tflite.passes import program_of
from flagsplit.targets.tflite.program import Operator, Program, Tensor


def _numbers(count: int, seed: int = 0) -> str:
    return ", ".join(f"{each:.3f}" for each in np.random.default_rng(seed).standard_normal(count))


W = f"float[8,4,3,3] w = {{{_numbers(288)}}}, float[8] b = {{{_numbers(8)}}}"
DEPTH = f"float[8,1,3,3] w = {{{_numbers(72)}}}, float[8] b = {{{_numbers(8, 1)}}}"
UP = f"float[4,6,2,2] w = {{{_numbers(96)}}}, float[6] b = {{{_numbers(6)}}}"
LINE = f"float[6,4,3] w = {{{_numbers(72)}}}"
DENSE = f"float[12,5] w = {{{_numbers(60)}}}, float[5] b = {{{_numbers(5)}}}"
FOUR, PAIR = "float[1,4,6,6] x", "float[1,4,6,6] x, float[1,4,6,6] z"
OUT = "float[1,4,6,6] y"

CASES: dict[str, tuple[str, str, str, str, str]] = {
    "convolution": ("y = Conv<pads=[1,1,1,1]>(x, w, b)", FOUR, "float[1,8,6,6] y", W, "CONV_2D"),
    "without bias": ("y = Conv(x, w)", FOUR, "float[1,8,4,4] y", W, "CONV_2D"),
    "with relu": ("c = Conv(x, w, b) y = Relu(c)", FOUR, "float[1,8,4,4] y", W, "CONV_2D"),
    "with clip": (
        "c = Conv(x, w, b) y = Clip(c, low, high)",
        FOUR,
        "float[1,8,4,4] y",
        f"{W}, float low = {{-0.5}}, float high = {{1}}",
        "CONV_2D",
    ),
    "odd pads": ("y = Conv<pads=[2,0,1,1]>(x, w, b)", FOUR, "float[1,8,7,6] y", W, "PAD CONV_2D"),
    "strided": ("y = Conv<strides=[2,2],pads=[1,1,1,1]>(x, w, b)", FOUR, "float[1,8,3,3] y", W, "PAD CONV_2D"),
    "depthwise": (
        "y = Conv<group=8,pads=[1,1,1,1]>(x, w, b)",
        "float[1,8,6,6] x",
        "float[1,8,6,6] y",
        DEPTH,
        "DEPTHWISE_CONV_2D",
    ),
    "along a line": ("y = Conv<pads=[1,1]>(x, w)", "float[1,4,9] x", "float[1,6,9] y", LINE, "CONV_2D"),
    "transposed": ("y = ConvTranspose<strides=[2,2]>(x, w, b)", FOUR, "float[1,6,12,12] y", UP, "TRANSPOSE_CONV"),
    "transposed and cut": (
        "y = ConvTranspose<strides=[2,2],pads=[1,1,1,1]>(x, w, b)",
        FOUR,
        "float[1,6,10,10] y",
        UP,
        "TRANSPOSE_CONV",
    ),
    "dense": ("y = Gemm(x, w, b)", "float[3,12] x", "float[3,5] y", DENSE, "FULLY_CONNECTED"),
    "matrix product": ("y = MatMul(x, w)", "float[2,3,12] x", "float[2,3,5] y", DENSE, "FULLY_CONNECTED"),
    "with bias": ("m = MatMul(x, w) y = Add(m, b)", "float[2,3,12] x", "float[2,3,5] y", DENSE, "FULLY_CONNECTED"),
    "of activations": (
        "y = MatMul(x, z)",
        "float[2,3,4] x, float[2,4,5] z",
        "float[2,3,5] y",
        "",
        "BATCH_MATMUL",
    ),
    "sum": ("y = Add(x, z)", PAIR, OUT, "", "ADD"),
    "sum with relu": ("s = Add(x, z) y = Relu(s)", PAIR, OUT, "", "ADD"),
    "difference": ("y = Sub(x, z)", PAIR, OUT, "", "SUB"),
    "product": ("y = Mul(x, z)", PAIR, OUT, "", "MUL"),
    "by channel": ("y = Mul(x, s)", FOUR, OUT, "float[1,4,1,1] s = {1, -2, 3, 0.5}", "MUL"),
    "gate": ("y = Mul(x, z)", "float[1,4,6,6] x, float[1,4,1,1] z", OUT, "", "MUL"),
    "largest": (
        "r = Relu(x) y = MaxPool<kernel_shape=[3,3],pads=[1,1,1,1],strides=[2,2]>(r)",
        FOUR,
        "float[1,4,3,3] y",
        "",
        "MAX_POOL_2D",
    ),
    "largest of negative": (
        "n = Add(x, x) m = MaxPool<kernel_shape=[2,2],pads=[1,0,0,1]>(n) y = Add(m, m)",
        FOUR,
        OUT,
        "",
        "PADV2 MAX_POOL_2D",
    ),
    "average": (
        "r = Relu(x) y = AveragePool<kernel_shape=[3,3],pads=[1,1,1,1]>(r)",
        FOUR,
        OUT,
        "",
        "AVERAGE_POOL_2D",
    ),
    "average of what is there": (
        "r = Relu(x) y = AveragePool<kernel_shape=[3,3],strides=[2,2],pads=[1,1,0,0]>(r)",
        FOUR,
        "float[1,4,3,3] y",
        "",
        "AVERAGE_POOL_2D MUL",
    ),
    "mean": ("y = GlobalAveragePool(x)", FOUR, "float[1,4,1,1] y", "", "MEAN"),
    "total": (
        "y = ReduceSum<keepdims=0>(x, a)",
        "float[2,3,5] x",
        "float[2,5] y",
        "int64[1] a = {1}",
        "SUM",
    ),
    "joined": ("r = Relu(z) y = Concat<axis=1>(x, r)", PAIR, "float[1,8,6,6] y", "", "CONCATENATION"),
    "reshaped": ("r = Relu(x) y = Reshape(r, s)", FOUR, "float[1,144] y", "int64[2] s = {1, -1}", "RESHAPE"),
    "transposition": ("r = Relu(x) y = Transpose<perm=[0,3,1,2]>(r)", FOUR, "float[1,6,4,6] y", "", "TRANSPOSE"),
    "parts": (
        "r = Add(x, x) p, q = Split<axis=1,num_outputs=2>(r) y = Sub(p, q)",
        FOUR,
        "float[1,2,6,6] y",
        "",
        "ADD SLICE SUB",
    ),
    "strides": (
        "r = Add(x, x) y = Slice(r, a, e, d, t)",
        FOUR,
        "float[1,4,3,6] y",
        "int64[1] a = {0}, int64[1] e = {6}, int64[1] d = {2}, int64[1] t = {2}",
        "STRIDED_SLICE",
    ),
    "padded": (
        "r = Add(x, x) y = Pad(r, p)",
        FOUR,
        "float[1,4,8,7] y",
        "int64[8] p = {0, 0, 1, 0, 0, 0, 1, 1}",
        "PAD",
    ),
    "picked": ("r = Add(x, x) y = Gather<axis=1>(r, i)", FOUR, "float[1,2,6,6] y", "int64[2] i = {3, 1}", "GATHER"),
    "near": (
        'r = Add(x, x) y = Resize<mode="nearest",coordinate_transformation_mode="asymmetric",nearest_mode="floor">'
        "(r,,s)",
        FOUR,
        "float[1,4,12,12] y",
        "float[4] s = {1, 1, 2, 2}",
        "RESIZE_NEAREST_NEIGHBOR",
    ),
    "between": (
        'r = Add(x, x) y = Resize<mode="linear">(r,,s)',
        FOUR,
        "float[1,4,12,12] y",
        "float[4] s = {1, 1, 2, 2}",
        "RESIZE_BILINEAR",
    ),
    "softmax": ("y = Softmax<axis=-1>(x)", "float[3,7] x", "float[3,7] y", "", "SOFTMAX"),
    "sigmoid": ("y = Sigmoid(x)", FOUR, OUT, "", "LOGISTIC"),
    "tanh": ("y = Tanh(x)", FOUR, OUT, "", "TANH"),
    "hard swish": ("y = HardSwish(x)", FOUR, OUT, "", "HARD_SWISH"),
    "hard sigmoid": ("y = HardSigmoid<alpha=0.2,beta=0.5>(x)", FOUR, OUT, "", "MUL ADD"),
    "leaky": ("y = LeakyRelu<alpha=0.1>(x)", FOUR, OUT, "", "LEAKY_RELU"),
    "sloped": ("y = PRelu(x, s)", FOUR, OUT, "float[4,1,1] s = {0.1, 0.2, -0.3, 0.4}", "PRELU"),
    "rectified": ("y = Relu(x)", FOUR, OUT, "", "QUANTIZE"),
    "bounded": ("y = Clip(x, low, high)", FOUR, OUT, "float low = {0}, float high = {6}", "QUANTIZE"),
    "greater": ("r = Relu(z) y = Max(x, r)", PAIR, OUT, "", "MAXIMUM"),
    "lesser": ("r = Relu(z) y = Min(x, r)", PAIR, OUT, "", "MINIMUM"),
    "depth to space": (
        "r = Add(x, x) y = DepthToSpace<blocksize=2>(r)",
        FOUR,
        "float[1,1,12,12] y",
        "",
        "DEPTH_TO_SPACE",
    ),
    "stretched": (
        "r = Relu(x) y = Expand(r, s)",
        "float[1,4,1,1] x",
        "float[1,4,5,3] y",
        "int64[4] s = {1, 4, 5, 3}",
        "BROADCAST_TO",
    ),
    "tiled": ("r = Relu(x) y = Tile(r, s)", FOUR, "float[1,8,6,6] y", "int64[4] s = {1, 2, 1, 1}", "TILE"),
}


@pytest.mark.parametrize("name", CASES)
def test_an_operator_computes_in_int8(name: str, tmp_path: Path) -> None:
    body, inputs, outputs, constants, wanted = CASES[name]
    part = int8_part(body, inputs, outputs, constants)
    assert floating(program_of(part)) == []
    assert set(wanted.split()) <= set(codes(part))
    assert off_by(part, tmp_path) <= 1.01


SCALES = "float s = {0.02}, int8 z = {5}, float t = {0.03}, int8 v = {-7}"


def test_a_scale_that_changes_is_one_quantize(tmp_path: Path) -> None:
    part = graph(
        "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) p = QuantizeLinear(d, t, v) "
        "y = DequantizeLinear(p, t, v)",
        "float[3,5] x",
        "float[3,5] y",
        SCALES,
    )
    assert [each.code for each in program_of(part).operators] == ["QUANTIZE", "QUANTIZE", "DEQUANTIZE"]
    assert off_by(part, tmp_path) <= 1.01


def test_equal_pairs_in_a_row_are_one(tmp_path: Path) -> None:
    part = graph(
        "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) r = Reshape(d, n) p = QuantizeLinear(r, s, z) "
        "y = DequantizeLinear(p, s, z)",
        "float[3,5] x",
        "float[15] y",
        f"{SCALES}, int64[1] n = {{-1}}",
    )
    assert [each.code for each in program_of(part).operators] == ["QUANTIZE", "RESHAPE", "DEQUANTIZE"]
    assert off_by(part, tmp_path) <= 0.01


def test_what_has_no_form_of_int8_stays_between_two_that_have(tmp_path: Path) -> None:
    part = int8_part("a = Add(x, x) e = Erf(a) y = Add(e, e)", "float[3,5] x", "float[3,5] y")
    found = [each.code for each in program_of(part).operators]
    assert found[:3] == ["QUANTIZE", "ADD", "DEQUANTIZE"]
    assert found[-3:] == ["QUANTIZE", "ADD", "DEQUANTIZE"]
    assert set(floating(program_of(part))) == {"MAXIMUM", "MINIMUM", "MUL", "ADD", "DIV"}
    assert off_by(part, tmp_path) <= 1.01


def test_a_value_that_is_read_as_it_was_too_stays_in_float32(tmp_path: Path) -> None:
    part = graph(
        "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) a = Mul(d, d) p = QuantizeLinear(a, t, v) "
        "e = DequantizeLinear(p, t, v) b = Add(e, e) y = Add(a, b)",
        "float[3,5] x",
        "float[3,5] y",
        SCALES,
    )
    assert floating(program_of(part)) == ["MUL", "ADD", "ADD"]
    assert off_by(part, tmp_path) <= 0.03


def test_uint8_is_int8_with_another_zero_point(tmp_path: Path) -> None:
    weights = ", ".join(str(each) for each in np.random.default_rng(3).integers(0, 256, 20))
    part = graph(
        "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) f = DequantizeLinear(w, t, v) m = MatMul(d, f) "
        "p = QuantizeLinear(m, o, z) y = DequantizeLinear(p, o, z)",
        "float[3,5] x",
        "float[3,4] y",
        f"float s = {{0.03}}, uint8 z = {{117}}, uint8[5,4] w = {{{weights}}}, float t = {{0.01}}, uint8 v = {{128}}, "
        "float o = {0.02}",
    )
    assert [each.code for each in program_of(part).operators] == ["QUANTIZE", "FULLY_CONNECTED", "DEQUANTIZE"]
    assert off_by(part, tmp_path) <= 1.01


def test_weights_that_are_not_symmetric_are_multiplied_in_float32(tmp_path: Path) -> None:
    part = graph(
        "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) f = DequantizeLinear(w, t, z) m = MatMul(d, f) "
        "p = QuantizeLinear(m, s, z) y = DequantizeLinear(p, s, z)",
        "float[3,2] x",
        "float[3,2] y",
        f"{SCALES}, int8[2,2] w = {{1, -2, 30, 40}}",
    )
    assert floating(program_of(part)) == ["FULLY_CONNECTED"]
    assert off_by(part, tmp_path) <= 1.01


def test_int8_may_come_in_and_go_out(tmp_path: Path) -> None:
    part = graph(
        "d = DequantizeLinear(x, s, z) a = Add(d, d) y = QuantizeLinear(a, t, v)", "int8[3,5] x", "int8[3,5] y", SCALES
    )
    program = program_of(part)
    assert [each.code for each in program.operators] == ["ADD"]
    assert [each.dtype for each in (*program.inputs, *program.outputs)] == ["int8", "int8"]
    given = {"x": np.random.default_rng(1).integers(-128, 128, (3, 5)).astype(np.int8)}
    assert off_by(part, tmp_path, given) <= 1


def test_a_lone_rounding_is_half_to_even(tmp_path: Path) -> None:
    part = graph("y = QuantizeLinear(x, s, z)", "float[4] x", "int8[4] y", "float s = {2}, int8 z = {0}")
    assert ran(part, tmp_path, {"x": np.array([1, 3, 5, -1], np.float32)})["y"].tolist() == [0, 2, 2, 0]


def test_two_readers_of_one_int8_are_two_outputs(tmp_path: Path) -> None:
    part = graph(
        "d = DequantizeLinear(x, s, z) y = QuantizeLinear(d, s, z) r = Reshape(d, n) w = QuantizeLinear(r, s, z)",
        "int8[3,5] x",
        "int8[3,5] y, int8[15] w",
        f"{SCALES}, int64[1] n = {{15}}",
    )
    assert off_by(part, tmp_path, {"x": np.arange(15, dtype=np.int8).reshape(3, 5)}) == 0


def test_a_shuffle_of_channels_is_one_gather(tmp_path: Path) -> None:
    part = int8_part(
        "a = Add(x, x) r = Reshape(a, p) t = Transpose<perm=[0,2,1,3,4]>(r) u = Reshape(t, n) y = Conv(u, w)",
        "float[1,4,6,6] x",
        "float[1,8,4,4] y",
        f"{W}, int64[5] p = {{1,2,2,6,6}}, int64[4] n = {{1,4,6,6}}",
    )
    assert codes(part)["GATHER"] == 1
    assert codes(part)["RESHAPE"] == 0
    assert off_by(part, tmp_path) <= 1.01


def test_channels_stay_last_from_convolution_to_convolution() -> None:
    part = int8_part(
        "c = Conv(x, w) r = Relu(c) p = MaxPool<kernel_shape=[2,2]>(r) y = Conv(p, v)",
        "float[1,4,6,6] x",
        "float[1,2,3,3] y",
        f"float[8,4,3,3] w = {{{_numbers(288)}}}, float[2,8,1,1] v = {{{_numbers(16)}}}",
    )
    found = [each.code for each in program_of(part).operators]
    assert found == ["QUANTIZE", "TRANSPOSE", "CONV_2D", "MAX_POOL_2D", "CONV_2D", "TRANSPOSE", "DEQUANTIZE"]


def test_equal_numbers_of_other_scales_are_two_constants() -> None:
    rows = [Tensor((4,), "int8", np.arange(4, dtype=np.int8), np.array([scale], np.float32)) for scale in (1, 2)]
    made = [Tensor((4,), "float32") for _ in rows]
    program = Program((), made, [Operator("DEQUANTIZE", (x,), (y,)) for x, y in zip(rows, made, strict=True)])
    read = flatfile.schema().ModelT.InitFromPackedBuf(flatfile.to_bytes({"p": program}), 0)
    assert sorted(float(each.quantization.scale[0]) for each in read.subgraphs[0].tensors if each.buffer) == [1, 2]


def test_weights_of_an_operator_in_float32_are_int8_in_the_file(tmp_path: Path) -> None:
    numbers = ", ".join(str(each) for each in np.random.default_rng(3).integers(-127, 128, 40 * 30))
    part = graph(
        "f = DequantizeLinear<axis=1>(w, s) y = MatMul(x, f)",
        "float[3,40] x",
        "float[3,30] y",
        f"int8[40,30] w = {{{numbers}}}, float[30] s = {{{', '.join(str(0.01 * (1 + at)) for at in range(30))}}}",
    )
    assert [each.code for each in program_of(part).operators] == ["DEQUANTIZE", "FULLY_CONNECTED"]
    given = samples_of(part.model, 1)[0]
    wanted = next(iter(run(part.model, [given])))["y"]
    assert norm_relative(ran(part, tmp_path, given)["y"], wanted) < 1e-6


@pytest.mark.slow
def test_random_networks_in_int8_are_within_steps(tmp_path: Path) -> None:
    for seed in range(40):
        part = quantized(_random_network(seed))
        assert floating(program_of(part)) == [], seed
        assert off_by(part, tmp_path) <= 2.01, seed


def _random_network(seed: int) -> ir.Model:
    """A few operators one after another, now and then with a value of before."""
    rng = np.random.default_rng(seed)
    lines, constants, last, seen = list[str](), list[str](), "x", ["x"]
    for at in range(int(rng.integers(2, 6))):
        name, other = f"v{at}", seen[int(rng.integers(len(seen)))]
        kind = rng.choice(["conv", "depth", "add", "mul", "relu", "pool", "swish", "sigmoid", "join", "turn"])
        if kind == "conv":
            constants.append(f"float[4,4,1,3] w{at} = {{{_numbers(48, seed)}}}")
            lines.append(f"{name} = Conv<pads=[0,{rng.integers(3)},0,0]>({last}, w{at})")
            lines[-1] = lines[-1] if "pads=[0,2" in lines[-1] else f"{name} = Conv<pads=[0,1,0,1]>({last}, w{at})"
        elif kind == "depth":
            constants.append(f"float[4,1,3,3] w{at} = {{{_numbers(36, seed)}}}")
            lines.append(f"{name} = Conv<group=4,pads=[1,1,1,1]>({last}, w{at})")
        elif kind in ("add", "mul"):
            lines.append(f"{name} = {kind.capitalize()}({last}, {other})")
        elif kind == "pool":
            lines.append(f"{name} = MaxPool<kernel_shape=[2,2],pads=[0,1,1,0]>({last})")
        elif kind == "join":
            lines.append(f"j{at} = Concat<axis=1>({last}, {other})")
            lines.append(f"{name}, u{at} = Split<axis=1,num_outputs=2>(j{at})")
        elif kind == "turn":
            lines.append(f"{name} = Transpose<perm=[0,1,3,2]>({last})")
        else:
            lines.append(f"{name} = { {'relu': 'Relu', 'swish': 'HardSwish', 'sigmoid': 'Sigmoid'}[kind] }({last})")
        last = name
        seen.append(name)
    lines.append(f"y = Add({last}, x)")
    return canonical(" ".join(lines), FOUR, OUT, ", ".join(constants))
