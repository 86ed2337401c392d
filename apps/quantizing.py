"""From a model and samples to an int8 model: what `flagsplit quantize` does.

Half of the samples give the ranges, the other half are what the outcome is compared on, by the cosine of each output
and, if the user says what the outputs are for, by how often that comes out the same.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from flagsplit.errors import ConfigError
from flagsplit.flagir.quantization import Quantized, QuantizeOptions, Sample, Task, quantize
from flagsplit.targets.interface import Array
from flagsplit.targets.model_runner import run_model

MASK_OVER = 0.3

_LEAST_TO_HALVE = 4

_Pairs = Sequence[tuple[Mapping[str, Array], Mapping[str, Array]]]


def quantize_model(model: ir.Model, samples: Sequence[Sample], options: QuantizeOptions) -> Quantized:
    """Quantize a canonical model on ONNX Runtime.

    Args:
        model: stays as it is.
        samples: of its inputs; of four or more, every second one gives no ranges but is compared.
        options: of the quantization.

    Raises:
        ConfigError: no samples.
        ModelError: int8 ruins all of it.
    """
    halved = len(samples) >= _LEAST_TO_HALVE
    first, second = (samples[::2], samples[1::2]) if halved else (samples, samples)
    return quantize(model, first, run_model, options, second)


def largest_alike(pairs: _Pairs) -> float:
    """How often the largest along the last axis is the same, in all floating-point outputs: classes, letters, words.

    Raises:
        ConfigError: no output is of floating point and has axes.
    """
    return float(np.mean([np.mean(wanted.argmax(-1) == came.argmax(-1)) for wanted, came in _outputs(pairs)]))


def masks_alike(pairs: _Pairs) -> float:
    """The overlap of what is over `MASK_OVER` in all floating-point outputs, over its union: what a detector finds.

    Raises:
        ConfigError: no output is of floating point and has axes.
    """
    both, either = 0, 0
    for answers in _outputs(pairs):
        a, b = (array.astype(np.float32) > MASK_OVER for array in answers)
        both, either = both + int((a & b).sum()), either + int((a | b).sum())
    return both / either if either else 1.0


TASKS: Mapping[str, Task] = {"argmax": largest_alike, "mask": masks_alike}
"""What outputs can be for, by name."""


def _outputs(pairs: _Pairs) -> list[tuple[Array, Array]]:
    found = [(array, came[name]) for wanted, came in pairs for name, array in wanted.items() if array.dtype.kind == "f"]
    found = [each for each in found if each[0].ndim]
    if not found:
        raise ConfigError("a task is about floating-point outputs with axes, this model has none; leave --task out")
    return found
