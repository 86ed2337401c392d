"""What is known of the Edge TPU and its compiler: a table of rules, each with source and confidence.

The compiler is closed and may refuse more, "due to some unspecified limitation" in its own words: its log decides.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from flagsplit.targets.tflite.program import Operator, Tensor

AXIS = "Axis, ARTPEC-7, supported ops"
CORAL = "Coral, TensorFlow models on the Edge TPU"
LOGS = "logs of edgetpu_compiler 14 to 16"

SRAM_BYTES = int(7.6 * (1 << 20))
"""What of the 8 MB of SRAM holds parameters: 7.6 to 7.9 MiB in logs; activations and code take the rest."""

LINK_BYTES_PER_S = 300e6
"""Over USB 3 or PCIe x1, effective: what streams, comes in or goes out."""

ON_CHIP_BYTES_PER_S = 30.72e9
"""Of the SRAM, as the device catalogue has it: 64 bytes a cycle at 480 MHz."""

INVOCATION_S = 0.28e-3
"""A dense layer whose parameters are cached, over USB."""

PEAK_MACS_PER_S = 2e12
"""4 TOPS are 2e12 multiply-accumulates a second."""

MOST_SOFTMAX = 16_000
_MEAN_MULTIPLE = 4
_INNER = 3

Confidence = Literal["high", "medium", "low"]


@dataclass(frozen=True)
class Rule:
    """What an operator must be to be mapped.

    Attributes:
        name: for short.
        says: the rule.
        broken: whether an operator breaks it.
        source, confidence: where it is known from.
        codes: operators that it is about; empty for all.
    """

    name: str
    says: str
    broken: Callable[[Operator], bool]
    source: str
    confidence: Confidence
    codes: frozenset[str] = frozenset()

    def applies(self, operator: Operator) -> bool:
        """Whether it is about an operator."""
        return not self.codes or operator.code in self.codes


@dataclass(frozen=True)
class Refusal:
    """Why an operator is not mapped."""

    reason: str
    source: str
    confidence: Confidence


_MAPPED_BY_AXIS = frozenset(
    "ADD AVERAGE_POOL_2D CONCATENATION CONV_2D DEPTHWISE_CONV_2D EXPAND_DIMS FULLY_CONNECTED L2_NORMALIZATION LOGISTIC "
    "MAXIMUM MAX_POOL_2D MEAN MINIMUM MUL PACK PAD PRELU QUANTIZE REDUCE_MAX REDUCE_MIN RELU RELU6 RELU_N1_TO_1 "
    "RESHAPE".split()
)
_MAPPED_BY_CORAL = frozenset(
    "RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR SLICE SOFTMAX SPACE_TO_DEPTH SPLIT SQUEEZE STRIDED_SLICE SUB TANH".split()
)
_MAPPED_BY_LOGS = frozenset(("TRANSPOSE", "TRANSPOSE_CONV"))
MAPPED: dict[str, tuple[str, Confidence]] = {
    **dict.fromkeys(_MAPPED_BY_AXIS, (AXIS, "high")),
    **dict.fromkeys(_MAPPED_BY_CORAL, (CORAL, "medium")),
    **dict.fromkeys(_MAPPED_BY_LOGS, (LOGS, "low")),
}
"""Operators that are mapped if they keep the rules, by where that is known from."""

REPORTED: dict[str, str] = dict.fromkeys(("GATHER", "LEAKY_RELU"), LOGS)
"""Operators that were reported not to be."""


def _activations(operator: Operator) -> list[Tensor]:
    return [each for each in (*operator.inputs, *operator.outputs) if each is not None and each.data is None]


def _axes(operator: Operator) -> list[int]:
    """The axes that a reduction or a permutation names."""
    second = operator.inputs[1]
    assert second is not None
    assert second.data is not None
    return [int(each) for each in second.data.reshape(-1)]


def _rank(operator: Operator) -> int:
    first = operator.inputs[0]
    assert first is not None
    return first.rank


def _not_int8(operator: Operator) -> bool:
    return any(each.dtype != "int8" for each in _activations(operator))


def _outer_sizes(operator: Operator) -> bool:
    return any(max(each.shape[:-_INNER], default=1) > 1 for each in _activations(operator))


def _computed_parameters(operator: Operator) -> bool:
    return any(each is not None and each.data is None for each in operator.inputs[1:3])


def _dilations_differ(operator: Operator) -> bool:
    return bool(operator.options.get("dilationHFactor", 1) != operator.options.get("dilationWFactor", 1))


def _is_row(shape: tuple[int, ...]) -> bool:
    return max(shape[:-1], default=1) == 1


def _is_activated(operator: Operator) -> bool:
    return bool(operator.options.get("fusedActivationFunction"))


def _joins_constants(operator: Operator) -> bool:
    fixed = [each for each in operator.inputs if each is not None and each.data is not None]
    zeros = all(bool((each.data == each.zero).all()) for each in fixed if each.data is not None)
    return bool(fixed) and not (zeros and len(operator.inputs) == 2)


def _over_batch(operator: Operator) -> bool:
    return _rank(operator) > 1 and any(axis % _rank(operator) == 0 for axis in _axes(operator))


def _odd_channels(operator: Operator) -> bool:
    first = operator.inputs[0]
    assert first is not None
    over = any(axis % first.rank == first.rank - 1 for axis in _axes(operator))
    return first.rank > 1 and over and first.shape[-1] % _MEAN_MULTIPLE != 0


def _pads_batch(operator: Operator) -> bool:
    second = operator.inputs[1]
    assert second is not None
    assert second.data is not None
    return second.data.shape[0] > 1 and bool(second.data[0].any())


def _slopes(operator: Operator) -> bool:
    slope = operator.inputs[1]
    return slope is None or not _is_row(slope.shape)


def _long_softmax(operator: Operator) -> bool:
    shape = operator.outputs[0].shape
    return not _is_row(shape) or shape[-1] > MOST_SOFTMAX


def _squeezes_inside(operator: Operator) -> bool:
    before, after = _activations(operator)
    return before.shape[before.rank - after.rank :] != after.shape


def _strided(operator: Operator) -> bool:
    steps = operator.inputs[3]
    return steps is None or steps.data is None or bool((steps.data != 1).any())


def _moves_batch(operator: Operator) -> bool:
    return _axes(operator)[0] != 0


RULES: tuple[Rule, ...] = (
    Rule("int8", "tensors are of 8 bits", _not_int8, CORAL, "high"),
    Rule("inner", "only the three innermost dimensions may be larger than 1", _outer_sizes, CORAL, "high"),
    Rule(
        "parameters",
        "weights and bias are constants",
        _computed_parameters,
        CORAL,
        "high",
        frozenset(("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")),
    ),
    Rule(
        "dilation",
        "dilations in x and y are equal",
        _dilations_differ,
        AXIS,
        "high",
        frozenset(("CONV_2D", "DEPTHWISE_CONV_2D")),
    ),
    Rule(
        "row",
        "the output has one dimension",
        lambda operator: not _is_row(operator.outputs[0].shape),
        AXIS,
        "high",
        frozenset(("FULLY_CONNECTED",)),
    ),
    Rule(
        "activation",
        "no activation is fused",
        _is_activated,
        AXIS,
        "high",
        frozenset(("AVERAGE_POOL_2D", "CONCATENATION", "MAX_POOL_2D")),
    ),
    Rule(
        "zeros",
        "a constant is joined only as zeros, to one other tensor",
        _joins_constants,
        AXIS,
        "high",
        frozenset(("CONCATENATION",)),
    ),
    Rule(
        "reduced batch",
        "the batch is not reduced",
        _over_batch,
        AXIS,
        "high",
        frozenset(("MEAN", "REDUCE_MAX", "REDUCE_MIN")),
    ),
    Rule(
        "mean of channels",
        "a mean over channels is over a multiple of 4",
        _odd_channels,
        AXIS,
        "high",
        frozenset(("MEAN",)),
    ),
    Rule("padded batch", "the batch is not padded", _pads_batch, AXIS, "high", frozenset(("PAD",))),
    Rule("slope", "the slope has one dimension", _slopes, AXIS, "high", frozenset(("PRELU",))),
    Rule(
        "softmax",
        f"it is over one dimension of at most {MOST_SOFTMAX:,} elements",
        _long_softmax,
        CORAL,
        "medium",
        frozenset(("SOFTMAX",)),
    ),
    Rule(
        "squeeze",
        "only leading ones are dropped",
        _squeezes_inside,
        CORAL,
        "medium",
        frozenset(("SQUEEZE",)),
    ),
    Rule("stride", "all strides are 1", _strided, CORAL, "medium", frozenset(("STRIDED_SLICE",))),
    Rule(
        "split batch",
        "the batch is not split",
        lambda operator: _rank(operator) > 1 and operator.options.get("axis", -1) % _rank(operator) == 0,
        CORAL,
        "medium",
        frozenset(("SPLIT",)),
    ),
    Rule("turned batch", "the batch stays in front", _moves_batch, LOGS, "low", frozenset(("TRANSPOSE",))),
)

CAUTIONS: dict[str, str] = {
    "RESHAPE": "large ones may not be mapped",
    "RESIZE_BILINEAR": "by its sizes it may not be mapped",
    "RESIZE_NEAREST_NEIGHBOR": "by its sizes it may not be mapped",
    "TRANSPOSE": "some are mapped, some not",
    "TRANSPOSE_CONV": "only newer compilers map it",
}
"""What may keep an operator from being mapped though it keeps the rules."""


def refusal_of(operator: Operator) -> Refusal | None:
    """Why an operator is not mapped to the Edge TPU, or None."""
    if _not_int8(operator):
        return Refusal(f"{operator.code} computes in floating point, the Edge TPU in 8 bits", CORAL, "high")
    if operator.code not in MAPPED:
        source = REPORTED.get(operator.code)
        if source is not None:
            return Refusal(f"{operator.code} was reported not to be mapped", source, "medium")
        return Refusal(f"the Edge TPU has no {operator.code}", f"{AXIS}; {CORAL}", "medium")
    for rule in RULES[1:]:
        if rule.applies(operator) and rule.broken(operator):
            return Refusal(f"{operator.code}: {rule.says}", rule.source, rule.confidence)
    return None
