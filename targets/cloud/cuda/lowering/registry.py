"""Which lowering each operator has, and why a node is not taken."""

from functools import cache
from importlib import import_module

import onnx_ir as ir

from flagsplit.targets.cloud.cuda.lowering.site import Kernel, Refused, Site
from flagsplit.targets.written_out import expanded

DOMAIN = "flagsplit.cuda"
"""Domain of the operators that only the passes of this target make."""

_UNARY = (
    "Abs Acos Acosh Asin Asinh Atan Atanh Ceil Cos Cosh Erf Exp Floor Identity Log Neg Not Reciprocal Relu Round "
    "Sigmoid Sign Sin Sinh Sqrt Tan Tanh"
)
_BY_FILE: dict[str, dict[str, str]] = {
    "activations": {
        "Celu": "lower_celu",
        "Clip": "lower_clip",
        "Elu": "lower_elu",
        f"{DOMAIN}.Gate": "lower_gate",
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
    "arithmetic": {
        "Add": "lower_add",
        "BitShift": "lower_shift",
        **dict.fromkeys("BitwiseAnd BitwiseNot BitwiseOr BitwiseXor".split(), "lower_bits"),
        "Div": "lower_div",
        "Max": "lower_max",
        "Mean": "lower_mean",
        "Min": "lower_min",
        "Mod": "lower_mod",
        "Mul": "lower_mul",
        "Pow": "lower_pow",
        "Sub": "lower_sub",
        "Sum": "lower_sum",
    },
    "attention": {
        "Attention": "lower",
        f"{DOMAIN}.Attention": "lower_fused",
        f"{DOMAIN}.CachedAttention": "lower_cached",
        "RotaryEmbedding": "lower_rotary",
    },
    "cast": {"Cast": "lower", "CastLike": "lower"},
    "conv_relu": {f"{DOMAIN}.ConvRelu": "lower"},
    "conv": {"Conv": "lower", "ConvInteger": "lower_integer", "ConvTranspose": "lower_transpose"},
    "gathering": {
        "Gather": "lower_gather",
        "GatherElements": "lower_elements",
        "GatherND": "lower_nd",
        "OneHot": "lower_one_hot",
        "ScatterElements": "lower_scatter_elements",
        "ScatterND": "lower_scatter_nd",
        "TensorScatter": "lower_tensor_scatter",
    },
    "logic": {
        **dict.fromkeys("And Equal Greater GreaterOrEqual Less LessOrEqual Or Xor".split(), "lower"),
        "Where": "lower_where",
    },
    "matmul": {
        "Det": "lower_det",
        "Einsum": "lower_einsum",
        "Gemm": "lower_gemm",
        "MatMul": "lower",
        "MatMulInteger": "lower_integer",
        f"{DOMAIN}.Linear": "lower_linear",
    },
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
    "pool": {
        "AveragePool": "lower_average",
        "GlobalAveragePool": "lower_global_average",
        "GlobalLpPool": "lower_global_lp",
        "GlobalMaxPool": "lower_global_max",
        "LpPool": "lower_lp",
        "MaxPool": "lower_max",
        "MaxUnpool": "lower_unpool",
    },
    "quantization": {
        "DequantizeLinear": "lower_dequantize",
        "QuantizeLinear": "lower_quantize",
    },
    "recurrent": dict.fromkeys("GRU LSTM RNN".split(), "lower"),
    "reduction": {
        **dict.fromkeys("ArgMax ArgMin".split(), "lower_arg"),
        **dict.fromkeys("CumProd CumSum".split(), "lower_running"),
        **dict.fromkeys(
            "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum "
            "ReduceSumSquare".split(),
            "lower",
        ),
        "TopK": "lower_topk",
    },
    "resize": {"AffineGrid": "lower_affine_grid", "GridSample": "lower_grid_sample", "Resize": "lower"},
    "shapes": {
        "CenterCropPad": "lower_center_crop_pad",
        **dict.fromkeys("Compress NonZero Unique".split(), "refuse_dynamic"),
        "Concat": "lower_concat",
        "ConstantOfShape": "lower_constant_of_shape",
        "DepthToSpace": "lower_depth_to_space",
        "Expand": "lower_expand",
        "EyeLike": "lower_eye_like",
        "Pad": "lower_pad",
        "Range": "lower_range",
        **dict.fromkeys("Flatten Reshape Squeeze Unsqueeze".split(), "lower_reshape"),
        "ReverseSequence": "lower_reverse_sequence",
        **dict.fromkeys("Shape Size".split(), "lower_shape"),
        "Slice": "lower_slice",
        "SpaceToDepth": "lower_space_to_depth",
        "Split": "lower_split",
        "Tile": "lower_tile",
        "Transpose": "lower_transpose",
        "Trilu": "lower_trilu",
    },
    "softmax": {"Hardmax": "lower_hard", "LogSoftmax": "lower_log", "Softmax": "lower"},
    "unary": {
        "Dropout": "lower_dropout",
        "IsInf": "lower_isinf",
        "IsNaN": "lower_isnan",
        **dict.fromkeys(_UNARY.split(), "lower"),
    },
}
LOWERINGS = {name: (file, function) for file, names in _BY_FILE.items() for name, function in names.items()}
"""By operator: the file under `ops/` and the function in it."""

_NEVER = {
    "DynamicQuantizeLinear": "its range is taken from activations, where one rounding that falls the other way moves "
    "all that follows; build with --float-products",
}
"""Operators that could be written out by their definition, and why they are not."""


@cache
def _module(file: str) -> object:
    return import_module(f"flagsplit.targets.cloud.cuda.lowering.ops.{file}")


def lower_node(site: Site) -> Kernel:
    """What computes a node.

    Raises:
        Refused: there is no lowering, or none for this node.
    """
    node = site.node
    name = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    if name not in LOWERINGS:
        raise Refused(f"there is no lowering of {name}")
    file, function = LOWERINGS[name]
    for index, value in enumerate(node.inputs):
        if value is not None:
            site.dtype(index)
    for index, value in enumerate(node.outputs):
        if value.name:
            site.out_dtype(index)
    kernel: Kernel = getattr(_module(file), function)(site)
    return kernel


def is_taken(node: ir.Node) -> bool:
    """Whether there is a lowering for a node as it is."""
    return not _refusal(node)


def refusal(node: ir.Node) -> str:
    """Why a node of fixed shapes is not taken, nor what the standard defines it by; "" if it is. Needs no PyTorch."""
    if not node.domain and node.op_type in _NEVER:
        return _NEVER[node.op_type]
    reason = _refusal(node)
    body = expanded(node, is_taken) if reason and not node.domain else None
    if body is None:
        return reason
    refused = ((inner.op_type, _refusal(inner)) for inner in body.graph)
    first = next(((op_type, why) for op_type, why in refused if why), None)
    return f"{reason}; as a function it needs {first[0]}: {first[1]}" if first else ""


def _refusal(node: ir.Node) -> str:
    if node.domain:
        return f"{node.domain}.{node.op_type} is no operator of the ONNX standard"
    try:
        lower_node(Site(node))
    except Refused as reason:
        return str(reason)
    return ""
