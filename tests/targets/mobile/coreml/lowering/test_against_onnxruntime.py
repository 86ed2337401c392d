"""What ONNX's node tests leave out: constant weights, other attributes, integers, equations. ONNX Runtime is asked."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto
from tests.targets.mobile.coreml.lowering.node_tests import NodeTest
from tests.targets.mobile.coreml.lowering.packages import outcome

from flagsplit.targets.interface import Array

_OPSET = 21
_RANDOM = np.random.default_rng(7)


def _f(*shape: int, dtype: Any = np.float32) -> Array:
    return np.asarray(_RANDOM.standard_normal(shape), dtype)


def _i(*numbers: int, dtype: Any = np.int64) -> Array:
    return np.array(numbers, dtype)


def _ask(
    name: str,
    op: str,
    *operands: Array | None,
    const: Collection[int] = (),
    gives: int = 1,
    of: int | Sequence[int] = TensorProto.FLOAT,
    **attributes: Any,
) -> NodeTest:
    """A test of one node with what ONNX Runtime answers.

    Args:
        name: of the test.
        op: the operator.
        operands: its operands.
        const: which of them are constants.
        gives: how many outputs it has.
        of: their element type, or that of each.
        attributes: of the node.
    """
    inputs = [f"{name}__{at}" if array is not None else "" for at, array in enumerate(operands)]
    outputs = [f"{name}__y{at}" for at in range(gives)]
    node = onnx.helper.make_node(op, inputs, outputs, name=name, **attributes)
    types = [of] * gives if isinstance(of, int) else of
    arrays = {called: array for called, array in zip(inputs, operands, strict=True) if array is not None}
    constants = {inputs[at]: arrays[inputs[at]] for at in const}
    free = {called: array for called, array in arrays.items() if called not in constants}
    kinds = {called: onnx.helper.np_dtype_to_tensor_dtype(array.dtype) for called, array in arrays.items()}
    graph = onnx.helper.make_graph(
        [node],
        "test",
        [onnx.helper.make_tensor_value_info(called, kinds[called], array.shape) for called, array in free.items()],
        [onnx.helper.make_tensor_value_info(called, kind, None) for called, kind in zip(outputs, types, strict=True)],
        [onnx.numpy_helper.from_array(array, called) for called, array in constants.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", _OPSET)], ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    answers = dict(zip(outputs, session.run(None, free), strict=True))
    return NodeTest(name, _OPSET, node, free, constants, answers)


def _einsums() -> list[NodeTest]:
    sizes = {"b": 2, "h": 3, "i": 4, "j": 5, "k": 6, "l": 2, "n": 3}
    equations = "bij,bjk->bik ij,jk,kl->il bhik,bhjk->bhij ij->ji ij-> i,i-> ij,kl->ijkl bi,ij,bj->b ij,j ib,jb->bij"
    found = []
    for at, equation in enumerate(equations.split()):
        terms = equation.split("->")[0].split(",")
        operands = [_f(*(sizes[label] for label in term)) for term in terms]
        found.append(_ask(f"einsum_{at}", "Einsum", *operands, equation=equation))
    found.append(_ask("einsum_dots", "Einsum", _f(2, 3, 4, 5), _f(1, 3, 5, 6), equation="...ij,...jk->...ik"))
    found.append(_ask("einsum_diagonal", "Einsum", _f(2, 4, 4), equation="...ii->...i"))
    found.append(_ask("einsum_trace", "Einsum", _f(4, 4), equation="ii->"))
    return found


def _recurrences() -> list[NodeTest]:
    found = []
    for direction, count in (("forward", 1), ("reverse", 1), ("bidirectional", 2)):
        for op, gates in (("LSTM", 4), ("GRU", 3), ("RNN", 1)):
            weights = (_f(count, gates * 4, 3), _f(count, gates * 4, 4), _f(count, 2 * gates * 4))
            states = [_f(count, 2, 4) for _ in range(2 if op == "LSTM" else 1)]
            more: dict[str, Any] = {"linear_before_reset": 1} if op == "GRU" else {}
            found.append(
                _ask(
                    f"{op}_{direction}",
                    op,
                    _f(5, 2, 3),
                    *weights,
                    None,
                    *states,
                    const=(1, 2, 3),
                    gives=3 if op == "LSTM" else 2,
                    hidden_size=4,
                    direction=direction,
                    **more,
                )
            )
        lengths = _i(5, 3, dtype=np.int32)
        found.append(
            _ask(
                f"LSTM_lengths_{direction}",
                "LSTM",
                _f(5, 2, 3),
                _f(count, 16, 3),
                _f(count, 16, 4),
                None,
                lengths,
                gives=3,
                hidden_size=4,
                direction=direction,
            )
        )
    return found


def _convolutions() -> list[NodeTest]:
    x = _f(1, 4, 7, 8)
    up: dict[str, Any] = {"strides": [2, 2]}
    return [
        _ask("conv_bias", "Conv", x, _f(6, 4, 3, 3), _f(6), const=(1, 2), pads=[1, 0, 2, 1], **up),
        _ask("conv_groups", "Conv", x, _f(8, 2, 3, 3), _f(8), const=(1,), group=2, dilations=[2, 1]),
        _ask("conv_lower", "Conv", x, _f(6, 4, 2, 3), const=(1,), auto_pad="SAME_LOWER", **up),
        _ask("conv_upper", "Conv", x, _f(6, 4, 2, 3), const=(1,), auto_pad="SAME_UPPER", **up),
        _ask("conv_1d", "Conv", _f(1, 4, 9), _f(6, 4, 3), _f(6), const=(1, 2), dilations=[2]),
        _ask("conv_3d", "Conv", _f(1, 2, 4, 5, 6), _f(3, 2, 2, 2, 2), const=(1,)),
        _ask("transpose_bias", "ConvTranspose", x, _f(4, 3, 3, 3), _f(3), const=(1, 2), pads=[1, 0, 0, 1], **up),
        _ask("transpose_more", "ConvTranspose", x, _f(4, 3, 2, 2), _f(3), const=(1, 2), output_padding=[1, 1], **up),
        _ask("transpose_upper", "ConvTranspose", x, _f(4, 3, 3, 3), const=(1,), auto_pad="SAME_UPPER", **up),
        _ask("transpose_shape", "ConvTranspose", x, _f(4, 3, 3, 3), const=(1,), output_shape=[14, 17], **up),
        _ask("transpose_groups", "ConvTranspose", x, _f(4, 3, 3, 3), const=(1,), group=2, dilations=[2, 2]),
        _ask("transpose_1d", "ConvTranspose", _f(1, 4, 9), _f(4, 3, 3), const=(1,), strides=[3]),
    ]


def _pools() -> list[NodeTest]:
    x = _f(1, 2, 7, 8)
    ceil: dict[str, Any] = {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}
    return [
        _ask("max_ceil", "MaxPool", x, pads=[1, 1, 1, 0], **ceil),
        _ask("max_places", "MaxPool", x, kernel_shape=[2, 3], strides=[2, 1]),
        _ask("average_ceil", "AveragePool", x, pads=[1, 1, 1, 1], count_include_pad=1, **ceil),
        _ask("average_apart", "AveragePool", x, pads=[0, 1, 1, 0], **ceil),
        _ask("average_dilated", "AveragePool", x, kernel_shape=[2, 2], dilations=[2, 3]),
        _ask("max_1d", "MaxPool", _f(1, 2, 9), kernel_shape=[3], strides=[2]),
        _ask("average_3d", "AveragePool", _f(1, 2, 4, 5, 6), kernel_shape=[2, 2, 2], pads=[1, 0, 0, 0, 0, 1]),
        _ask("global_lp", "GlobalLpPool", x, p=3),
    ]


def _normalizations() -> list[NodeTest]:
    x, scale, bias, mean, variance = _f(2, 4, 5, 6), _f(4), _f(4), _f(4), np.abs(_f(4))
    deep = _f(2, 3, 4, 5, 6)
    return [
        _ask("batch", "BatchNormalization", x, scale, bias, mean, variance, const=(1, 2, 3, 4)),
        _ask("batch_flat", "BatchNormalization", _f(3, 4), scale, bias, mean, variance, const=(1, 2, 3, 4)),
        _ask("instance", "InstanceNormalization", x, scale, bias, const=(1, 2)),
        _ask("instance_deep", "InstanceNormalization", deep, _f(3), _f(3), const=(1, 2)),
        _ask("layer", "LayerNormalization", x, _f(5, 6), _f(5, 6), const=(1, 2), axis=2),
        _ask("layer_plain", "LayerNormalization", x, _f(6), const=(1,), epsilon=1e-3),
        _ask("lrn", "LRN", x, size=3, alpha=0.5, bias=2.0),
        _ask("lp", "LpNormalization", x, axis=1, p=1),
    ]


def _shapes() -> list[NodeTest]:
    whole, either = _i(*range(24), dtype=np.int32).reshape(2, 3, 4), np.greater(_f(2, 3, 4), 0)
    low = np.array(0, np.int32)
    return [
        _ask("pad_whole", "Pad", whole, _i(1, 0, -1, 0, 2, 1), low + 7, const=(1, 2), of=TensorProto.INT32),
        _ask("pad_reflect", "Pad", _f(1, 2, 4, 5), _i(0, 0, 2, 1, 0, 0, 1, 3), const=(1,), mode="reflect"),
        _ask("pad_edge", "Pad", whole, _i(1, 0, 2, 1, 1, 0), const=(1,), of=TensorProto.INT32, mode="edge"),
        _ask("pad_wrap", "Pad", _f(3, 4), _i(1, 2, 2, 1), const=(1,), mode="wrap"),
        _ask("slice_back", "Slice", _f(5, 6), _i(-1, 4), _i(-100, 0), _i(0, 1), _i(-2, -1), const=(1, 2, 3, 4)),
        _ask("slice_end", "Slice", _f(5, 6), _i(1), _i(np.iinfo(np.int64).max), _i(1), const=(1, 2, 3)),
        _ask("gather_bool", "Gather", either, _i(-1, 0), axis=2, of=TensorProto.BOOL),
        _ask("where_wide", "Where", either, _f(1, 1, 4), _f(1)),
        _ask("not", "Not", either, of=TensorProto.BOOL),
        _ask("one_hot", "OneHot", _i(-1, 3, 7), _i(5), _f(2), const=(1,), axis=0),
    ]


def _arithmetic() -> list[NodeTest]:
    a, b = _i(-7, 7, -7, 7, 6, 0, dtype=np.int32), _i(2, -2, -2, 2, 3, 5, dtype=np.int32)
    x, weight = _f(3, 4), _f(4, 5)
    cells = _f(2, 3, 4, 5)
    return [
        _ask("div", "Div", a, b, of=TensorProto.INT32),
        _ask("mod", "Mod", a, b, of=TensorProto.INT32),
        _ask("fmod", "Mod", a, b, of=TensorProto.INT32, fmod=1),
        _ask("gemm", "Gemm", x, weight, _f(5), const=(1, 2), alpha=0.5, beta=2.0),
        _ask("gemm_turned", "Gemm", _f(4, 3), _f(5, 4), _f(3, 5), const=(1, 2), transA=1, transB=1),
        _ask("matmul_vector", "MatMul", _f(4), _f(2, 4, 5)),
        _ask("prelu", "PRelu", _f(1, 3, 4, 5), _f(3, 1, 1), const=(1,)),
        _ask("log_sum_exp", "ReduceLogSumExp", 100 * x, _i(1), const=(1,), keepdims=0),
        _ask("relu_whole", "Relu", a, of=TensorProto.INT32),
        _ask("half", "Softmax", _f(3, 8, dtype=np.float16), of=TensorProto.FLOAT16, axis=1),
        _ask("trilu", "Trilu", cells, _i(-1), const=(1,), upper=0),
        _ask("quotient", "Div", x, np.add(np.abs(_f(3, 1)), 3, dtype=np.float32)),
        _ask("power", "Pow", np.abs(x), _f(1, 4)),
        _ask("bounded", "Clip", x, np.array(1, np.float32), np.array(-1, np.float32), const=(1, 2)),
    ]


def _quantized() -> list[NodeTest]:
    x, byte, signed = 3 * _f(3, 4), np.uint8, np.int8
    left, right = _i(*range(12), dtype=byte).reshape(3, 4), _i(*range(-10, 10), dtype=signed).reshape(4, 5)
    scale, scales = np.array(0.05, np.float32), np.array([0.1, 0.02, 0.5, 0.03], np.float32)
    point, points = np.array(7, byte), _i(3, -2, 0, 9, dtype=signed)
    whole = TensorProto.INT32
    columns = _i(1, -2, 3, 0, 4, dtype=signed)
    return [
        _ask("quantize", "QuantizeLinear", x, scale, point, const=(1, 2), of=TensorProto.UINT8),
        _ask("quantize_axis", "QuantizeLinear", x, scales, points, const=(1, 2), of=TensorProto.INT8, axis=1),
        _ask("dequantize", "DequantizeLinear", right.T.copy(), scales, points, const=(1, 2), axis=1),
        _ask("product", "MatMulInteger", left, right, point, const=(1,), of=whole),
        _ask("product_columns", "MatMulInteger", left, right, point, columns, const=(1, 2, 3), of=whole),
        _ask("product_computed", "MatMulInteger", left, right, of=whole),
    ]


def _resizes() -> list[NodeTest]:
    x, found = _f(1, 2, 5, 6), []
    empty = np.zeros(0, np.float32)
    for mode in ("nearest", "linear", "cubic"):
        for how in ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"):
            for sizes in (_i(1, 2, 10, 12), _i(1, 2, 3, 4)):
                name = f"resize_{mode}_{how}_{sizes[2]}"
                keys: dict[str, Any] = {"mode": mode, "coordinate_transformation_mode": how}
                found.append(_ask(name, "Resize", x, empty, empty, sizes, const=(1, 2, 3), **keys))
    aligned: dict[str, Any] = {"coordinate_transformation_mode": "align_corners", "const": (1, 2)}
    for mode, by in (("nearest", (1.25, 1.7)), ("linear", (1.2, 0.5)), ("cubic", (0.2, 1.5)), ("linear", (0.3, 1.5))):
        # sizes that are whole but for rounding, or of which ONNX Runtime and the standard make the same
        scales = np.array([1, 1, *by], np.float32)
        found.append(_ask(f"resize_{mode}_scales_{by[0]}", "Resize", x, empty, scales, mode=mode, **aligned))
    return found


_GROUPS = (
    _einsums,
    _recurrences,
    _convolutions,
    _pools,
    _normalizations,
    _shapes,
    _arithmetic,
    _quantized,
    _resizes,
)


@pytest.mark.slow
def test_saved_programs_answer_as_onnxruntime_does(tmp_path: Path) -> None:
    tests = [test for group in _GROUPS for test in group()]
    passed, wrong, refused = outcome(tests, tmp_path)
    assert (wrong, refused) == ({}, {})
    assert len(passed) == len(tests)
