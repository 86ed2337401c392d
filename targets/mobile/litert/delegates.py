"""What each of LiteRT's delegates would take of a program: a table, since none of them runs here.

A delegate takes what it knows of a program, and the CPU runs the rest; each change between the two costs time. Which
operators a delegate knows depends on its version and on the phone: the tables hold what is stated of float32 models,
with source and confidence. An app asks the phone itself before it relies on one.
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from flagsplit.targets.mobile.litert.program import Operator, Program

DELEGATES_NAME = "delegates.json"


@dataclass(frozen=True)
class Delegate:
    """A delegate as data.

    Attributes:
        name: for short.
        title: what it is called.
        takes: TFLite operators that it knows.
        most_rank: highest rank of a tensor that it takes.
        dtypes: NumPy names of the element types that it takes.
        legacy: why it should not be chosen for new apps; "" if it may.
        source: where this is known from.
        confidence: "high", "medium" or "low".
    """

    name: str
    title: str
    takes: frozenset[str]
    most_rank: int
    dtypes: tuple[str, ...]
    legacy: str
    source: str
    confidence: Literal["high", "medium", "low"]


_IMAGE = frozenset(
    "ADD AVERAGE_POOL_2D CONCATENATION CONV_2D DEPTHWISE_CONV_2D FULLY_CONNECTED LOGISTIC MAX_POOL_2D MAXIMUM "
    "MINIMUM MUL PAD RELU RELU6 RESHAPE RESIZE_BILINEAR SOFTMAX STRIDED_SLICE SUB TRANSPOSE_CONV".split()
)
_COMMON = _IMAGE | frozenset(
    "DEPTH_TO_SPACE DEQUANTIZE DIV ELU EXP HARD_SWISH MEAN NEG POW REDUCE_MAX REDUCE_MIN RESIZE_NEAREST_NEIGHBOR "
    "RSQRT SLICE SPACE_TO_DEPTH SQRT SQUARE SUM TANH TRANSPOSE".split()
)
_COMPARING = frozenset("EQUAL GREATER GREATER_EQUAL LESS LESS_EQUAL NOT_EQUAL".split())

DELEGATES = (
    Delegate(
        name="gpu",
        title="LiteRT GPU delegate (OpenCL, OpenGL)",
        takes=_COMMON
        | _COMPARING
        | frozenset(
            "ABS BATCH_MATMUL CAST COS FLOOR FLOOR_MOD GATHER GELU LEAKY_RELU LOG LOGICAL_AND REDUCE_PROD SELECT_V2 "
            "SIGN SIN SQUEEZE TILE".split()
        ),
        most_rank=4,
        dtypes=("float32", "int32", "bool"),
        legacy="",
        source="its documentation for the image operators; the rest from its parsers in TensorFlow's source",
        confidence="medium",
    ),
    Delegate(
        name="nnapi",
        title="NNAPI delegate, feature level 5 and up",
        takes=_COMMON
        | _COMPARING
        | frozenset(
            "ABS ARG_MAX ARG_MIN BATCH_MATMUL CAST FLOOR GATHER LOG LOGICAL_AND LOGICAL_NOT LOGICAL_OR PADV2 "
            "REDUCE_ALL REDUCE_ANY REDUCE_PROD SELECT_V2 SIN SQUEEZE TILE TOPK_V2".split()
        ),
        most_rank=4,
        dtypes=("float32", "int32", "bool"),
        legacy="deprecated since Android 15; its successor is LiteRT with the vendors' NPUs",
        source="the mapping of operators in TensorFlow's NNAPI delegate; a driver may take less",
        confidence="medium",
    ),
    Delegate(
        name="qualcomm",
        title="LiteRT NPU, Qualcomm AI Engine Direct",
        takes=_COMMON
        | _COMPARING
        | frozenset(
            "ABS BATCH_MATMUL BROADCAST_TO CAST COS CUMSUM GATHER GATHER_ND GELU LEAKY_RELU LOG LOGICAL_AND "
            "LOGICAL_NOT LOGICAL_OR PADV2 SELECT_V2 SIGN SIN TILE TOPK_V2".split()
        ),
        most_rank=5,
        dtypes=("float32", "int32", "bool"),
        legacy="",
        source="operators of the QNN HTP back end under TFLite's names; float models run in fp16",
        confidence="low",
    ),
    Delegate(
        name="mediatek",
        title="LiteRT NPU, MediaTek NeuroPilot",
        takes=_COMMON | frozenset("ABS BATCH_MATMUL CAST GATHER GELU PADV2 SELECT_V2 TILE".split()),
        most_rank=4,
        dtypes=("float32", "int32", "bool"),
        legacy="",
        source="operators that NeuroPilot's documentation shares with NNAPI",
        confidence="low",
    ),
    Delegate(
        name="google-tensor",
        title="LiteRT NPU, Google Tensor",
        takes=_IMAGE | frozenset("BATCH_MATMUL DIV HARD_SWISH MEAN RSQRT SLICE TANH TRANSPOSE".split()),
        most_rank=4,
        dtypes=("float32", "int32"),
        legacy="",
        source="no list is published; operators common to published models for it",
        confidence="low",
    ),
)


def refusal_by(delegate: Delegate, operator: Operator) -> str:
    """Why a delegate leaves an operator to the CPU; "" if it takes it."""
    if operator.code not in delegate.takes:
        return f"knows no {operator.code}"
    for tensor in (*operator.inputs, *operator.outputs):
        if tensor is None or tensor.data is not None:
            continue
        if tensor.dtype not in delegate.dtypes:
            return f"takes no {tensor.dtype}"
        if tensor.rank > delegate.most_rank:
            return f"takes up to {delegate.most_rank} dimensions"
    return ""


def to_json(programs: Mapping[str, Program]) -> bytes:
    """The bytes of `delegates.json`: for each delegate and segment how many operators it would take, in how many runs,
    and why it leaves the rest."""
    found = [
        {
            "name": delegate.name,
            "title": delegate.title,
            "basis": "modelled",
            "legacy": delegate.legacy,
            "source": delegate.source,
            "confidence": delegate.confidence,
            "segments": {name: _taken(delegate, program) for name, program in programs.items()},
        }
        for delegate in DELEGATES
    ]
    return json.dumps({"delegates": found}, indent=1).encode() + b"\n"


def _taken(delegate: Delegate, program: Program) -> dict[str, object]:
    reasons = [refusal_by(delegate, operator) for operator in program.operators]
    runs = sum(not reason and (at == 0 or bool(reasons[at - 1])) for at, reason in enumerate(reasons))
    left = Counter(reason for reason in reasons if reason)
    return {
        "operators": len(reasons),
        "taken": sum(not reason for reason in reasons),
        "runs": runs,
        "left": dict(sorted(left.items())),
    }
