"""From a model and samples to an int8 model: what `flagsplit quantize` does.

Half of the samples give the ranges, the other half are what the outcome is compared on, by the cosine of each output
and, if the user says what the outputs are for, by how often that comes out the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from flagsplit.errors import ConfigError, ModelError
from flagsplit.flagir.quantization import Quantized, QuantizeOptions, Sample, quantize
from flagsplit.targets.interface import Array
from flagsplit.targets.model_runner import run_model

Task = Literal["", "argmax", "mask"]
TASKS: tuple[Task, ...] = ("", "argmax", "mask")
"""What an output is for: nothing said; its largest along the last axis; what of it is over `MASK_OVER`."""

MASK_OVER = 0.3
MIN_TASK = 0.99

_LEAST_TO_HALVE = 4


@dataclass(frozen=True)
class Outcome:
    """An int8 model and what it is worth.

    Attributes:
        quantized: the model, and the report by node.
        task: what agreed in the task, from 0 to 1; None if none was said.
    """

    quantized: Quantized
    task: float | None


def quantize_model(
    model: ir.Model,
    samples: Sequence[Sample],
    options: QuantizeOptions,
    task: Task = "",
    min_task: float = MIN_TASK,
) -> Outcome:
    """Quantize a canonical model.

    Args:
        model: stays as it is.
        samples: of its inputs.
        options: of the quantization.
        task: what the outputs are for.
        min_task: what has to agree in the task, from 0 to 1.

    Raises:
        ConfigError: no samples.
        ModelError: the cosine or the task is worse than wanted.
    """
    halved = len(samples) >= _LEAST_TO_HALVE
    first, second = (samples[::2], samples[1::2]) if halved else (samples, samples)
    made = quantize(model, first, run_model, options, second)
    agreed = _agreement(model, made.model, second, task) if task else None
    if agreed is not None and agreed < min_task:
        raise ModelError(
            f"in int8 {agreed:.2%} of the task ({task}) comes out as in floating point, at least {min_task:.2%} is "
            f"wanted; raise --min-cosine, so that more nodes stay in floating point, or give more samples"
        )
    return Outcome(made, agreed)


def _agreement(model: ir.Model, made: ir.Model, samples: Sequence[Sample], task: Task) -> float:
    """The mean over samples and floating-point outputs."""
    found = []
    for wanted, came in zip(run_model(model, samples), run_model(made, samples), strict=True):
        for name, array in wanted.items():
            if array.dtype.kind == "f" and array.ndim:
                found.append(_same(array, came[name], task))
    if not found:
        raise ConfigError("a task is about floating-point outputs with axes, this model has none; leave --task out")
    return float(np.mean(found))


def _same(wanted: Array, came: Array, task: Task) -> float:
    if task == "argmax":
        return float(np.mean(wanted.argmax(-1) == came.argmax(-1)))
    a, b = (array.astype(np.float32) > MASK_OVER for array in (wanted, came))
    either = int((a | b).sum())
    return float((a & b).sum()) / either if either else 1.0
