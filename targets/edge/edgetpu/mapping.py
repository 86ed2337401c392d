"""What Coral's compiler would make of a program: which operators are mapped, what lies in the SRAM, how long it takes.

The compiler maps operators from the first on; after one that it does not map, all later ones run on the CPU. Parameters
beyond the SRAM stream over the link at each run. Times are modelled: figures of the table, none measured here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from flagsplit.targets.edge.edgetpu.facts import (
    CAUTIONS,
    INVOCATION_S,
    LINK_BYTES_PER_S,
    PEAK_MACS_PER_S,
    SRAM_BYTES,
    Refusal,
    refusal_of,
)
from flagsplit.targets.tflite.program import Operator, Program, Tensor

_EFFICIENCY = {"CONV_2D": 0.3, "FULLY_CONNECTED": 0.1, "DEPTHWISE_CONV_2D": 0.1, "TRANSPOSE_CONV": 0.1}
_ELEMENTS_PER_S = 4e10
"""Of operators without products; 2 % of the peak, as the device catalogue estimates."""

_CPU_OPS_PER_S = 4e9
"""Of what is not mapped, on the board's four Cortex-A53; an estimate."""


_PAIR = ("QUANTIZE", "DEQUANTIZE")


@dataclass(frozen=True)
class Stopped:
    """What ends the mapped operators.

    Attributes:
        at: the position of the first that is not mapped.
        code: which that is, or what computes behind it where it only takes integers back.
        refusal: why.
    """

    at: int
    code: str
    refusal: Refusal


@dataclass(frozen=True)
class Mapping:
    """What becomes of a program.

    Attributes:
        operators: how many it has.
        mapped: how many from the first on run on the Edge TPU.
        stopped: what ends that; None if all do.
        cautions: what may end it sooner, by operator.
        parameter_bytes: of the mapped operators.
        streamed_bytes: of these, what does not fit into the SRAM.
        input_bytes, output_bytes: over the link at each run.
        seconds: modelled, by what takes them: compute, stream, transfer, invoke, cpu.
    """

    operators: int
    mapped: int
    stopped: Stopped | None
    cautions: dict[str, str]
    parameter_bytes: int
    streamed_bytes: int
    input_bytes: int
    output_bytes: int
    seconds: dict[str, float]

    @property
    def total(self) -> float:
        """Modelled seconds of a run."""
        return sum(self.seconds.values())


def mapping_of(program: Program) -> Mapping:
    """What Coral's compiler would make of a program, as far as the table tells."""
    operators = program.operators
    refusals = [refusal_of(each) for each in operators]
    mapped = next((at for at, each in enumerate(refusals) if each is not None), len(operators))
    stopped = None
    if mapped < len(operators):
        said = [(at, each) for at, each in enumerate(refusals) if each is not None]
        at, found = next((pair for pair in said if operators[pair[0]].code not in _PAIR), said[0])
        stopped = Stopped(mapped, operators[at].code, found)
    first, rest = operators[:mapped], operators[mapped:]
    parameters = parameter_bytes(first)
    streamed = max(parameters - SRAM_BYTES, 0)
    incoming, outgoing = crossing(first, rest, program.outputs)
    seconds = {
        "compute": sum(seconds_of(each) for each in first),
        "stream": streamed / LINK_BYTES_PER_S,
        "transfer": (incoming + outgoing) / LINK_BYTES_PER_S,
        "invoke": INVOCATION_S if first else 0.0,
        "cpu": sum(work_of(each) for each in rest) / _CPU_OPS_PER_S,
    }
    cautions = {code: CAUTIONS[code] for code in sorted({each.code for each in first} & CAUTIONS.keys())}
    return Mapping(len(operators), mapped, stopped, cautions, parameters, streamed, incoming, outgoing, seconds)


def parameter_bytes(operators: Sequence[Operator]) -> int:
    """Bytes of the constants of operators, each counted once."""
    found = {each for operator in operators for each in operator.inputs if each is not None and each.data is not None}
    return sum(each.data.nbytes for each in found if each.data is not None)


def crossing(operators: Sequence[Operator], later: Sequence[Operator], outputs: Sequence[Tensor]) -> tuple[int, int]:
    """Bytes that come into some operators from outside, and that go out to later ones or as outputs."""
    made = {each for operator in operators for each in operator.outputs}
    read = {each for operator in operators for each in operator.inputs if each is not None and each.data is None}
    wanted = {each for operator in later for each in operator.inputs if each is not None} | set(outputs)
    return sum(bytes_of(each) for each in read - made), sum(bytes_of(each) for each in made & wanted)


def bytes_of(x: Tensor) -> int:
    """How much a tensor takes."""
    return x.size * {"bool": 1, "int8": 1, "int64": 8}.get(x.dtype, 4)


def work_of(operator: Operator) -> int:
    """Multiply-accumulates of an operator, or elements of one that has none."""
    out, weights = operator.outputs[0].size, operator.inputs[1] if len(operator.inputs) > 1 else None
    if operator.code in ("CONV_2D", "FULLY_CONNECTED") and weights is not None:
        return out * (weights.size // weights.shape[0])
    if operator.code == "DEPTHWISE_CONV_2D" and weights is not None:
        return out * weights.shape[1] * weights.shape[2]
    if operator.code == "TRANSPOSE_CONV" and weights is not None and operator.inputs[2] is not None:
        return operator.inputs[2].size * (weights.size // weights.shape[3])
    return max(out, *(each.size for each in operator.inputs if each is not None))


def seconds_of(operator: Operator) -> float:
    """Modelled time of an operator on the Edge TPU, its parameters there already."""
    share = _EFFICIENCY.get(operator.code)
    if share is None:
        return work_of(operator) / _ELEMENTS_PER_S
    return work_of(operator) / (PEAK_MACS_PER_S * share)
