"""What LiteRT's CPU kernels take: element types of the first input, and ranks.

Each row was tried in ai-edge-litert 2.3.0 by programs of one operator. Where a kernel answers for more dimensions than
are stated here, its answers were not checked there.
"""

from flagsplit.targets.tflite.program import Operator

_FLOAT = ("float32",)
_NUMBERS = ("float32", "int32", "int64")
_ANY = ("float32", "int32", "int64", "bool")

_TAKEN: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        "ATAN2 AVERAGE_POOL_2D BATCH_MATMUL CEIL CONV_2D CONV_3D COS DEPTHWISE_CONV_2D ELU EXP FLOOR FULLY_CONNECTED "
        "GELU HARD_SWISH LEAKY_RELU LOG LOGISTIC MAX_POOL_2D MEAN RELU RELU6 RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR "
        "ROUND RSQRT SIN SOFTMAX SQRT TANH".split(),
        _FLOAT,
    ),
    **dict.fromkeys("ABS ARG_MAX ARG_MIN DIV POW SIGN".split(), ("float32", "int32")),
    **dict.fromkeys(
        "ADD CUMSUM DEPTH_TO_SPACE FLOOR_MOD GREATER GREATER_EQUAL LESS LESS_EQUAL MAXIMUM MINIMUM MUL NEG REDUCE_MAX "
        "REDUCE_MIN REDUCE_PROD REVERSE_SEQUENCE SPACE_TO_DEPTH SUB SUM TOPK_V2".split(),
        _NUMBERS,
    ),
    **dict.fromkeys(
        "BROADCAST_TO CAST CONCATENATION EQUAL GATHER GATHER_ND NOT_EQUAL PAD PADV2 RESHAPE REVERSE_V2 SELECT_V2 SLICE "
        "SQUEEZE STRIDED_SLICE TILE TRANSPOSE".split(),
        _ANY,
    ),
    **dict.fromkeys("LOGICAL_AND LOGICAL_NOT LOGICAL_OR REDUCE_ALL REDUCE_ANY".split(), ("bool",)),
    "BITWISE_XOR": ("int32",),
    "DEQUANTIZE": ("int8",),
    "PRELU": _FLOAT,
    "QUANTIZE": _FLOAT,
    "SCATTER_ND": ("int32",),
    "TRANSPOSE_CONV": ("int32",),
}
"""`SCATTER_ND` and `TRANSPOSE_CONV` take positions and sizes first."""

_MOVES = frozenset(("RESHAPE", "SQUEEZE", "TRANSPOSE"))
"""Operators that lowerings write of int8 too; all others of int8 are made by `int8`."""

CODES = frozenset(_TAKEN)
"""All operators that programs are made of."""

_RANKS = {
    "CONCATENATION": 6,
    "PAD": 5,
    "PADV2": 5,
    "STRIDED_SLICE": 5,
    "SLICE": 5,
    "TRANSPOSE": 6,
    **dict.fromkeys("MEAN REDUCE_ALL REDUCE_ANY REDUCE_MAX REDUCE_MIN REDUCE_PROD SOFTMAX SUM".split(), 6),
}
_MOST_RANK = 8


def refusal_of(operator: Operator) -> str:
    """Why no kernel takes an operator; "" if one does."""
    taken = _TAKEN.get(operator.code)
    first = operator.inputs[0]
    if taken is None or first is None:
        return f"TFLite's {operator.code} was not tried"
    moved = first.dtype == "int8" and operator.code in _MOVES
    if first.dtype not in taken and not moved:
        return f"TFLite has no {operator.code} of {first.dtype}"
    most = _RANKS.get(operator.code, _MOST_RANK)
    rank = max(each.rank for each in (first, *operator.outputs))
    return f"TFLite's {operator.code} takes up to {most} dimensions, came {rank}" if rank > most else ""
