"""What a build of Core ML artifacts may choose, and what was chosen."""

from collections.abc import Mapping
from dataclasses import dataclass

from flagsplit.errors import ConfigError
from flagsplit.targets.interface import SHAPES_CHOICE

CHOICES: Mapping[str, tuple[str, ...]] = {
    "precision": ("fp16", "fp32", "mixed"),
    "io": ("fp32", "fp16"),
    "weights": ("full", "int8", "int4", "lut4"),
    "deployment": ("iOS18", "iOS26"),
    SHAPES_CHOICE: ("fixed", "enumerated", "ranged"),
}
"""What may be chosen, the default first; beside it there are `FREE_CHOICES`.

- precision: what is computed in. "fp16" keeps in fp32 only what would go wrong in fp16; "mixed" also what would become
  imprecise.
- io: what float tensors are passed as.
- weights: how weights of matrix products, convolutions and look-ups are stored.
- shapes: which sizes of an open dimension a function takes: the nominal one, those of a list, or those of a range.
- deployment: the oldest system that runs the package. Packages with several functions need iOS 18 or macOS 15.
"""


FREE_CHOICES: Mapping[str, str] = {"states": "auto, or INPUT:OUTPUT,..."}
"""What may be chosen and is no list of values.

- states: inputs that a program may hold from run to run, each with the output that it becomes
  (`flagsplit.targets.mobile.coreml.states`).
"""


@dataclass(frozen=True)
class Choices:
    """One of each of `CHOICES`, and what was said of `FREE_CHOICES`."""

    precision: str = "fp16"
    io: str = "fp32"
    weights: str = "full"
    deployment: str = "iOS18"
    shapes: str = "fixed"
    states: str = ""


def read_choices(chosen: Mapping[str, str]) -> Choices:
    """What was chosen, checked.

    Raises:
        ConfigError: there is no such choice, or none of that kind.
    """
    for name, value in chosen.items():
        if name in FREE_CHOICES:
            continue
        allowed = CHOICES.get(name)
        if allowed is None:
            known = ", ".join((*CHOICES, *FREE_CHOICES))
            raise ConfigError(f"expected a choice of the coreml target ({known}), came {name!r}")
        if value not in allowed:
            raise ConfigError(f"expected {name} of the coreml target to be one of {', '.join(allowed)}, came {value!r}")
    choices = Choices(**chosen)
    if choices.states and choices.shapes != "fixed":
        raise ConfigError("states of Core ML are of fixed shapes; choose coreml.states or coreml.shapes, not both")
    return choices
