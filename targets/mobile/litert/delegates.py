"""What each of LiteRT's delegates would take of a program: a table, since none of them runs here.

A delegate takes what it knows of a program, and the CPU runs the rest; each change between the two costs time. Which
operators a delegate knows depends on its version and on the phone: the tables hold what is stated of float32 models
and of int8, with source and confidence; int8 was not read off the sources operator by operator, so of int8 models they
are a guess. An app asks the phone itself before it relies on one.
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from flagsplit.targets.tflite.kernels import CODES
from flagsplit.targets.tflite.program import Operator, Program

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
        also: further ones that it takes with one operator.
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
    also: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


_SOURCE = "LiteRT's source of 2026-08"

_COMMON = frozenset(
    "ABS ADD AVERAGE_POOL_2D BATCH_MATMUL CAST CONCATENATION CONV_2D DEPTHWISE_CONV_2D DEQUANTIZE DIV FULLY_CONNECTED "
    "GREATER HARD_SWISH LEAKY_RELU LESS LOGISTIC MAX_POOL_2D MAXIMUM MEAN MINIMUM MUL PAD PADV2 REDUCE_MAX RELU "
    "RESHAPE RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR RSQRT SLICE SOFTMAX SQRT STRIDED_SLICE SUB SUM TANH TRANSPOSE "
    "TRANSPOSE_CONV".split()
)
"""What all of them know."""

_COMPARING = frozenset("EQUAL GREATER GREATER_EQUAL LESS LESS_EQUAL NOT_EQUAL".split())
_MORE = frozenset(
    "COS DEPTH_TO_SPACE ELU EXP FLOOR GATHER LOG LOGICAL_AND NEG POW REDUCE_MIN RELU6 SIN SPACE_TO_DEPTH TILE".split()
)

DELEGATES = (
    Delegate(
        name="gpu",
        title="LiteRT GPU delegate (OpenCL, OpenGL)",
        takes=_COMMON
        | _COMPARING
        | _MORE
        | frozenset("CUMSUM FLOOR_MOD GELU PRELU QUANTIZE REDUCE_PROD SELECT_V2 SIGN".split()),
        most_rank=4,
        dtypes=("float32", "int8"),
        also={
            **dict.fromkeys(_COMPARING, ("bool",)),
            "CAST": ("int32", "bool"),
            "GATHER": ("int32",),
            "LOGICAL_AND": ("bool",),
            "SELECT_V2": ("bool",),
        },
        legacy="",
        source=f"{_SOURCE}, tflite/delegates/gpu/common/model_builder.cc; attributes that it refuses are not in here",
        confidence="medium",
    ),
    Delegate(
        name="nnapi",
        title="NNAPI delegate, feature level 5 and up",
        takes=_COMMON
        | _COMPARING
        | _MORE
        | frozenset(
            "ARG_MAX ARG_MIN LOGICAL_NOT LOGICAL_OR PRELU QUANTIZE REDUCE_ANY REDUCE_PROD REVERSE_V2 SQUEEZE "
            "TOPK_V2".split()
        ),
        most_rank=4,
        dtypes=("float32", "int8", "int32", "bool"),
        legacy="deprecated since Android 15; its successor is LiteRT with the vendors' NPUs",
        source=f"{_SOURCE}, tflite/delegates/nnapi/nnapi_delegate.cc; a driver may take less",
        confidence="medium",
    ),
    Delegate(
        name="qualcomm",
        title="LiteRT NPU, Qualcomm AI Engine Direct",
        takes=CODES - frozenset("ATAN2 BITWISE_XOR REDUCE_PROD REVERSE_SEQUENCE SQUEEZE".split()),
        most_rank=5,
        dtypes=("float32", "int8", "int32", "bool"),
        legacy="",
        source=f"{_SOURCE}, litert/vendors/qualcomm/compiler/qnn_compose_graph.cc; its compiler may refuse some of "
        "these, and runs float models in fp16",
        confidence="medium",
    ),
    Delegate(
        name="mediatek",
        title="LiteRT NPU, MediaTek NeuroPilot",
        takes=_COMMON | frozenset(("GELU", "QUANTIZE")),
        most_rank=4,
        dtypes=("float32", "int8", "int32", "bool"),
        legacy="",
        source=f"{_SOURCE}, litert/vendors/mediatek/compiler/compiler_plugin.cc; its compiler may refuse some of these",
        confidence="medium",
    ),
    Delegate(
        name="google-tensor",
        title="LiteRT NPU, Google Tensor",
        takes=CODES - frozenset({"REDUCE_PROD", "REVERSE_SEQUENCE"}),
        most_rank=4,
        dtypes=("float32", "int8", "int32", "bool"),
        legacy="",
        source=f"{_SOURCE}, litert/vendors/google_tensor/compiler/compiler_plugin.cc, which names what it does not "
        "take; its compiler is not public and may refuse more",
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
        if tensor.dtype not in (*delegate.dtypes, *delegate.also.get(operator.code, ())):
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
