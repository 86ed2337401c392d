"""Which lowering each ONNX operator has."""

from collections.abc import Callable
from importlib import import_module

import onnx_ir as ir

from flagsplit.targets.tflite.builder import Builder
from flagsplit.targets.tflite.functions import has_body, lower_body
from flagsplit.targets.tflite.program import Refused

Lowering = Callable[[Builder, ir.Node], None]

_BY_FILE: dict[str, dict[str, str]] = {
    "activations": {
        "Celu": "lower_celu",
        "Clip": "lower_clip",
        "Elu": "lower_elu",
        "Erf": "lower_erf",
        "Gelu": "lower_gelu",
        "HardSigmoid": "lower_hard_sigmoid",
        "HardSwish": "lower_hard_swish",
        "LeakyRelu": "lower_leaky_relu",
        "Mish": "lower_mish",
        "PRelu": "lower_prelu",
        "Selu": "lower_selu",
        "Shrink": "lower_shrink",
        "Softplus": "lower_softplus",
        "Softsign": "lower_softsign",
        "Swish": "lower_swish",
        "ThresholdedRelu": "lower_thresholded_relu",
    },
    "affine_grid": {"AffineGrid": "lower"},
    "arithmetic": {
        "Add": "lower",
        "Div": "lower_div",
        "Mod": "lower_mod",
        "Mul": "lower",
        "Pow": "lower_pow",
        "Sub": "lower",
    },
    "bitwise": {"BitwiseNot": "lower_not", "BitwiseXor": "lower_xor"},
    "cast": {"Cast": "lower", "CastLike": "lower"},
    "col2im": {"Col2Im": "lower"},
    "conv": {"Conv": "lower"},
    "conv_transpose": {"ConvTranspose": "lower"},
    "dft": {"DFT": "lower"},
    "einsum": {"Einsum": "lower"},
    "gather": {
        "Gather": "lower",
        "GatherElements": "lower_elements",
        "GatherND": "lower_nd",
        "OneHot": "lower_one_hot",
    },
    "grid_sample": {"GridSample": "lower"},
    "logic": {
        "And": "lower",
        "Equal": "lower",
        "Greater": "lower",
        "GreaterOrEqual": "lower",
        "IsInf": "lower_isinf",
        "IsNaN": "lower_isnan",
        "Less": "lower",
        "LessOrEqual": "lower",
        "Or": "lower",
        "Where": "lower_where",
        "Xor": "lower",
    },
    "matmul": {"Gemm": "lower_gemm", "MatMul": "lower"},
    "normalization": {
        "BatchNormalization": "lower_batch",
        "GroupNormalization": "lower_group",
        "InstanceNormalization": "lower_instance",
        "LRN": "lower_local_response",
        "LayerNormalization": "lower_layer",
        "LpNormalization": "lower_lp",
        "MeanVarianceNormalization": "lower_mean_variance",
        "RMSNormalization": "lower_rms",
    },
    "pad": {"Pad": "lower"},
    "pool": {
        "AveragePool": "lower_average",
        "GlobalAveragePool": "lower_global_average",
        "GlobalLpPool": "lower_global_lp",
        "GlobalMaxPool": "lower_global_max",
        "LpPool": "lower_lp",
        "MaxPool": "lower_max",
    },
    "quantized": {
        "DequantizeLinear": "lower_dequantize",
        "MatMulInteger": "lower_matmul",
        "QuantizeLinear": "lower_quantize",
    },
    "recurrent": {"GRU": "lower", "LSTM": "lower", "RNN": "lower"},
    "reduction": {
        "ArgMax": "lower_arg",
        "ArgMin": "lower_arg",
        "CumSum": "lower_cumsum",
        "ReduceL1": "lower",
        "ReduceL2": "lower",
        "ReduceLogSum": "lower",
        "ReduceLogSumExp": "lower",
        "ReduceMax": "lower",
        "ReduceMean": "lower",
        "ReduceMin": "lower",
        "ReduceProd": "lower",
        "ReduceSum": "lower",
        "ReduceSumSquare": "lower",
        "TopK": "lower_topk",
    },
    "resize": {"Resize": "lower"},
    "rotary_embedding": {"RotaryEmbedding": "lower"},
    "scatter": {"ScatterElements": "lower_elements", "ScatterND": "lower_nd"},
    "shapes": {
        "Concat": "lower_concat",
        "Constant": "lower_constant",
        "ConstantOfShape": "lower_constant_of_shape",
        "DepthToSpace": "lower_depth_to_space",
        "Dropout": "lower_same",
        "Expand": "lower_expand",
        "EyeLike": "lower_eye_like",
        "Flatten": "lower_reshape",
        "Identity": "lower_same",
        "Range": "lower_range",
        "Reshape": "lower_reshape",
        "ReverseSequence": "lower_reverse_sequence",
        "Shape": "lower_known",
        "Size": "lower_known",
        "SpaceToDepth": "lower_space_to_depth",
        "Split": "lower_split",
        "Squeeze": "lower_reshape",
        "Tile": "lower_tile",
        "Transpose": "lower_transpose",
        "Trilu": "lower_trilu",
        "Unsqueeze": "lower_reshape",
    },
    "sign": {"Abs": "lower_abs", "Neg": "lower_neg", "Reciprocal": "lower_reciprocal", "Sign": "lower_sign"},
    "slice": {"Slice": "lower"},
    "softmax": {"Hardmax": "lower_hard", "LogSoftmax": "lower_log", "Softmax": "lower"},
    "stft": {"STFT": "lower"},
    "trigonometry": {
        "Acos": "lower_acos",
        "Acosh": "lower_acosh",
        "Asin": "lower_asin",
        "Asinh": "lower_asinh",
        "Atan": "lower_atan",
        "Atanh": "lower_atanh",
        "Cosh": "lower_cosh",
        "Sinh": "lower_sinh",
        "Tan": "lower_tan",
    },
    "unary": dict.fromkeys(
        "Ceil Cos Exp Floor Log Not Relu Round Sigmoid Sin Sqrt Tanh".split(),
        "lower",
    ),
    "variadic": dict.fromkeys("Max Mean Min Sum".split(), "lower"),
}

LOWERED = {op: (file, function) for file, ops in _BY_FILE.items() for op, function in ops.items()}
"""File of `ops` and function of each operator that has a lowering of its own."""

TAKES_SMALL = frozenset(
    "Concat DequantizeLinear Expand Flatten Gather Identity MatMulInteger QuantizeLinear Reshape "
    "Slice Split Squeeze Transpose Unsqueeze".split()
)
"""Operators that take and give integers of 8 bits: they move them, or have their own meaning for them."""

_REFUSED = {
    "DynamicQuantizeLinear": "where ranges are taken from activations, one rounding that falls the other way moves "
    "all that follows: answers would differ from the model's by per cents; build with --float-products",
}
"""Operators that could be lowered through their definition, and why they are not."""


def lowering_of(node: ir.Node) -> Lowering:
    """How a node is lowered.

    Raises:
        Refused: it is not.
    """
    if node.domain:
        raise Refused(f"takes operators of the ONNX standard, came {node.domain}.{node.op_type}")
    if node.op_type in _REFUSED:
        raise Refused(_REFUSED[node.op_type])
    if node.op_type in LOWERED:
        file, function = LOWERED[node.op_type]
        found: Lowering = getattr(import_module(f"flagsplit.targets.tflite.ops.{file}"), function)
        return found
    if has_body(node.op_type):
        return lower_body
    raise Refused(f"TFLite has no {node.op_type}")
