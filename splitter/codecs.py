"""What the activation codecs cost and how faithful they are: the splitter's view of `flagsplit.flagir.codecs`.

A codec's work is given as bytes moved per byte of float32 input, so that it scales with a device's memory bandwidth.
Derived from the FlagIR functions run by ONNX Runtime on one x86 thread at 25 GB/s of memory bandwidth: fp16 16.7 GB/s,
u8 per tensor 10.4, u8 per channel 2.1 to encode and 4.9 to decode; u4 per channel is estimated from u8. The
signal-to-noise ratios were measured on activations of pretrained networks; they are typical, not guaranteed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from flagsplit.errors import PolicyError
from flagsplit.flagir.blockgraph import BlockValue
from flagsplit.splitter.sla import Accuracy, Fidelity

NONE = "none"


@dataclass(frozen=True)
class CodecCost:
    """One codec.

    Attributes:
        snr_db: typical signal-to-noise ratio, decibels.
        encode_passes, decode_passes: bytes moved per byte of float32 input.
    """

    snr_db: float
    encode_passes: float
    decode_passes: float


CODEC_COSTS: Mapping[str, CodecCost] = {
    "fp16": CodecCost(73.0, 1.5, 1.5),
    "u8_per_channel": CodecCost(47.0, 11.9, 5.1),
    "u8": CodecCost(40.0, 2.4, 2.4),
    "u4_per_channel": CodecCost(23.0, 14.0, 8.0),
}
"""By name, most faithful first."""


def allowed_codecs(accuracy: Accuracy, values: Sequence[BlockValue]) -> list[frozenset[str]]:
    """For each value, the lossy codecs that the SLA lets its cuts use and that exist for its type.

    Raises:
        PolicyError: the SLA names a codec that does not exist, or a pattern matches no value.
    """
    fidelities = {"accuracy.every_cut": accuracy.every_cut} | {
        f"accuracy.cuts.{pattern}": fidelity for pattern, fidelity in accuracy.cuts.items()
    }
    names = {where: _names(where, fidelity) for where, fidelity in fidelities.items()}
    for pattern in accuracy.cuts:
        if not any(fnmatchcase(value.name, pattern) for value in values):
            raise PolicyError(f"accuracy.cuts: {pattern!r} matches no value that passes between blocks")
    found = []
    for value in values:
        where = next((f"accuracy.cuts.{p}" for p in accuracy.cuts if fnmatchcase(value.name, p)), "accuracy.every_cut")
        found.append(names[where] & frozenset(value.codec_bytes))
    return found


def codecs_for(accuracy: Accuracy, value: str) -> frozenset[str]:
    """The lossy codecs that the SLA lets cuts of a value use, whatever its type.

    Raises:
        PolicyError: the SLA names a codec that does not exist.
    """
    for pattern, fidelity in accuracy.cuts.items():
        if fnmatchcase(value, pattern):
            return _names(f"accuracy.cuts.{pattern}", fidelity)
    return _names("accuracy.every_cut", accuracy.every_cut)


def _names(where: str, fidelity: Fidelity | None) -> frozenset[str]:
    if fidelity is None:
        return frozenset()
    for name in fidelity.codecs or ():
        if name not in CODEC_COSTS and name != NONE:
            raise PolicyError(f"{where}.codecs: expected {', '.join((NONE, *CODEC_COSTS))}, got {name!r}")
    floor = fidelity.min_snr_db
    return frozenset(
        name
        for name, cost in CODEC_COSTS.items()
        if (fidelity.codecs is None or name in fidelity.codecs) and (floor is None or cost.snr_db >= floor)
    )
