"""What a build for GPUs may choose, and what was chosen."""

from collections.abc import Mapping
from dataclasses import dataclass

from flagsplit.errors import ConfigError

CHOICES: Mapping[str, tuple[str, ...]] = {
    "precision": ("fp16", "bf16", "fp32"),
    "io": ("fp32", "fp16"),
    "engine": ("inductor", "ort"),
    "device": ("gpu", "cpu"),
    "tune": ("fast", "some", "most"),
    "shapes": ("fixed", "enumerated"),
}
"""What may be chosen, the default first.

- precision: what is computed in.
- io: what float tensors are passed as; "fp16" halves what is copied to the GPU and back.
- engine: PyTorch's compiler with a CUDA graph, or ONNX Runtime's TensorRT and CUDA providers.
- device: "cpu" runs the same program on the host's CPU, uncompiled: to test, and no measure of speed.
- tune: how much is tried at the first load: one way of compiling; several that are timed, which takes a minute; also
  matrix products tried in many forms, which takes minutes.
- shapes: one size of each open dimension, or those that the build lists, each compiled by itself.
"""


@dataclass(frozen=True)
class Choices:
    """One of each of `CHOICES`."""

    precision: str = "fp16"
    io: str = "fp32"
    engine: str = "inductor"
    device: str = "gpu"
    tune: str = "fast"
    shapes: str = "fixed"


def read_choices(chosen: Mapping[str, str]) -> Choices:
    """What was chosen, checked.

    Raises:
        ConfigError: there is no such choice, or none of that kind.
    """
    for name, value in chosen.items():
        allowed = CHOICES.get(name)
        if allowed is None:
            raise ConfigError(f"expected a choice of the cuda target ({', '.join(CHOICES)}), came {name!r}")
        if value not in allowed:
            raise ConfigError(f"expected {name} of the cuda target to be one of {', '.join(allowed)}, came {value!r}")
    return Choices(**chosen)
