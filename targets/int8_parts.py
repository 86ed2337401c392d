"""Chip parts quantized to int8 by themselves, for a tier that computes in int8 beside others that do not.

Each part is calibrated on what the samples of the build are at its inputs, and passes the gate at its own outputs and,
with all else in floating point, at the model's; what int8 ruins stays in floating point
(`flagsplit.flagir.quantization`). A part that is quantized already is left as it is.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from flagsplit.errors import ConfigError, FlagsplitError, ModelError
from flagsplit.flagir.quantization import Quantized, QuantizeOptions, quantize
from flagsplit.flagir.quantization.gated import cosines_of
from flagsplit.targets.chip_parts import ChipPart
from flagsplit.targets.model_runner import run_model

_TIGHTENED = 6
"""How often a part is quantized at most, nearer each time."""


@dataclass(frozen=True)
class Int8Parts:
    """Parts in int8, and what that cost.

    Attributes:
        parts: with the same segments, inputs and outputs as they had.
        told: for an artifact's options: the least cosine of an output of a part or of the model, and the nodes in
            floating point with the reason, as JSON.
    """

    parts: tuple[ChipPart, ...]
    told: dict[str, str]


def int8_parts(parts: Sequence[ChipPart], *, real_samples: bool, min_cosine: float, target: str) -> Int8Parts:
    """Quantize parts.

    Args:
        parts: with samples.
        real_samples: whether they are the user's: ranges are not taken from made-up ones.
        min_cosine: of each output of the part, and of the model, to that of the part in floating point.
        target: whose parts they are, for messages.

    Raises:
        ConfigError: there are no real samples.
        ModelError: int8 ruins all of a part; the message names the segment.
    """
    made: dict[str, ChipPart] = {}
    cosines: list[float] = []
    floating: dict[str, str] = {}
    for part in sorted(parts, key=lambda each: -len(each.model.graph)):
        if any(node.op_type == "DequantizeLinear" for node in part.model.graph):
            made[part.segment] = part
            continue
        if not real_samples or not part.samples:
            raise ConfigError(
                f"int8 of the {target} target is calibrated on real inputs of the model, came none; "
                f"give some with --samples, or quantize the model first with flagsplit quantize"
            )
        found, cosine = _quantized(part, min_cosine, floating)
        cosines.append(cosine)
        floating.update({each.node: each.reason for each in found.nodes if not each.int8})
        made[part.segment] = replace(part, model=found.model)
    told = {"int8_cosine": f"{min(cosines):.6f}", "in_float": json.dumps(floating, sort_keys=True)} if cosines else {}
    return Int8Parts(tuple(made[part.segment] for part in parts), told)


def _quantized(part: ChipPart, min_cosine: float, floating: Mapping[str, str]) -> tuple[Quantized, float]:
    """The part in int8 and the least cosine at its outputs and at the model's.

    What stayed in floating point in a larger part does here too: equal nodes then have equal weights. Where the model
    makes much of a small difference, the part has to come nearer.
    """
    least = min_cosine
    try:
        for _ in range(_TIGHTENED):
            found = quantize(part.model, part.samples, run_model, QuantizeOptions(min_cosine=least, kept=floating))
            far = _at_the_end(part, found)
            if far >= min_cosine:
                return found, min(found.cosine, far)
            least = 1 - (1 - max(least, found.cosine)) / 4
    except ModelError as error:
        raise ModelError(f"segment {part.segment} cannot be int8: {error}") from error
    except FlagsplitError as error:
        raise ModelError(f"segment {part.segment} cannot be run on its samples: {error}") from error
    raise ModelError(
        f"segment {part.segment} cannot be int8: cosine {found.cosine:.6f} at its outputs leaves {far:.4f} at the "
        f"model's, and at least {min_cosine} is wanted; leave it in floating point, or ask for less by min_cosine"
    )


def _at_the_end(part: ChipPart, made: Quantized) -> float:
    """The least cosine of an output of the model."""
    rest = part.rest
    if rest is None:
        return 1.0
    outputs = run_model(made.model, part.samples)
    inputs = [{**others, **found} for others, found in zip(rest.samples, outputs, strict=True)]
    return min(cosines_of(list(zip(rest.expected, run_model(rest.model, inputs), strict=True))).values(), default=1.0)
