"""What smaller weights cost: each part runs on samples with its weights as they were and as they are stored.

The error is reported in the artifact's options. Where the samples are the user's, too large a one ends the build.
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from flagsplit.errors import InternalError, ModelError
from flagsplit.targets.chip_parts import ChipPart
from flagsplit.targets.interface import Array
from flagsplit.targets.segment_table import ChipCall
from flagsplit.targets.tflite.engine import open_signature

MOST_ERROR = {"fp16": 0.02, "int8": 0.15}
"""Largest norm-relative error of an output on real samples, by the kind of weights."""

_MOST_SAMPLES = 4


def largest_error(plain: bytes, small: bytes, parts: Sequence[ChipPart], calls: Mapping[str, ChipCall]) -> float | None:
    """The largest norm-relative difference of an output over the samples of the parts; None without any sample.

    Args:
        plain: the file with weights of float32.
        small: the file with weights as they are stored.
        parts: with samples of their inputs.
        calls: how each is called, in either file.
    """
    if not any(part.samples for part in parts):
        return None
    with tempfile.TemporaryDirectory() as folder:
        made = []
        for name, data in (("plain.tflite", plain), ("small.tflite", small)):
            file = Path(folder) / name
            file.write_bytes(data)
            made.append([_answers(file, part, calls[part.segment]) for part in parts])
    pairs = zip(*made, strict=True)
    return max((_difference(*answers) for pair in pairs for answers in zip(*pair, strict=True)), default=0.0)


def check_error(error: float, kind: str, real: bool) -> None:
    """End the build where smaller weights cost too much on real samples.

    Raises:
        ModelError: they do.
    """
    most = MOST_ERROR[kind]
    if not np.isfinite(error) and not real:
        raise ModelError(f"weights of {kind} make outputs that are no numbers; choose weights of fp32")
    if real and not error <= most:
        raise ModelError(
            f"weights of {kind} change an output by {error:.3f} of its norm on the samples, at most {most} is taken; "
            f"choose weights of {'fp32' if kind == 'fp16' else 'fp16 or fp32'}"
        )


def _answers(file: Path, part: ChipPart, call: ChipCall) -> list[dict[str, Array]]:
    loaded = open_signature(file, call, 1)
    try:
        return [loaded.run(sample) for sample in part.samples[:_MOST_SAMPLES]]
    finally:
        loaded.close()


def _difference(plain: Mapping[str, Array], small: Mapping[str, Array]) -> float:
    if plain.keys() != small.keys():
        raise InternalError("two files of the same parts have other outputs; please report this")
    worst = 0.0
    for name, wanted in plain.items():
        if wanted.dtype.kind == "f":
            off = np.linalg.norm(small[name].astype(np.float64) - wanted.astype(np.float64))
            worst = max(worst, float(off / max(float(np.linalg.norm(wanted.astype(np.float64))), 1e-30)))
    return worst
