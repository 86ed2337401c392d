"""How far an artifact may be from the reference: by the precision that it computes in, or as the user says."""

import math
from collections.abc import Iterable, Mapping

from flagsplit.apps.deviation import EXACT, Tolerance
from flagsplit.errors import ConfigError
from flagsplit.runtime.bundle import REFERENCE_TARGET
from flagsplit.targets.catalogue import TARGETS, get_target
from flagsplit.targets.interface import CHOICE_PREFIX

_FP32 = Tolerance("norm", 1e-4)
BY_PRECISION: Mapping[str, Tolerance] = {
    "fp32": _FP32,
    "fp16": Tolerance("norm", 1e-2),
    "mixed": Tolerance("norm", 1e-2),
    "tf32": Tolerance("norm", 1e-2),
    "bf16": Tolerance("norm", 5e-2),
    "int8": Tolerance("cosine", 0.999),
    "int16": Tolerance("cosine", 0.9999),
    "qdq16": Tolerance("cosine", 0.99),
    "qdq": Tolerance("cosine", 0.98),
    "qdq8": Tolerance("cosine", 0.98),
    "int4": Tolerance("cosine", 0.98),
    "lut4": Tolerance("cosine", 0.98),
}
"""What is allowed by what is computed in, or by how weights are stored, the loosest of what was chosen."""


_COARSENING = ("precision", "weights")


def tolerance_of(target: str, options: Mapping[str, str], given: Mapping[str, Tolerance]) -> Tolerance:
    """What an artifact may differ by.

    Args:
        target: its target.
        options: of the artifact: its numerics, and what was chosen for the target.
        given: the user's own, by target; "" for all that need not be exact.
    """
    if target in given:
        return given[target]
    if target == REFERENCE_TARGET and options.get("numerics") != "fast":
        return EXACT
    if "" in given:
        return given[""]
    known = [BY_PRECISION[value] for value in coarseness(target, options).values() if value in BY_PRECISION]
    return max(known, key=looseness, default=_FP32)


def coarseness(target: str, options: Mapping[str, str]) -> dict[str, str]:
    """What decides how exact an artifact is: its precision, and how it stores weights, as far as that is known.

    Args:
        target: its target; what it takes by default counts where nothing was chosen.
        options: of the artifact; what the target itself says there counts most.
    """
    defaults = get_target(target).describe().choices if target in TARGETS else {}
    found = {name: values[0] for name, values in defaults.items() if name in _COARSENING}
    for name in _COARSENING:
        for key in (CHOICE_PREFIX + name, name):
            if key in options:
                found[name] = options[key]
    return found


def looseness(allowed: Tolerance) -> float:
    """The relative error that a tolerance lets pass, for comparing one with another."""
    if allowed.measure == "cosine":
        return math.sqrt(max(0.0, 2 - 2 * allowed.limit))
    return allowed.limit


def read_tolerances(given: Iterable[str]) -> dict[str, Tolerance]:
    """What the user allows, by target; "" is for all targets that need not be exact.

    Args:
        given: `[TARGET=]NUMBER`, `[TARGET=]cosine:NUMBER` or `[TARGET=]exact`.

    Raises:
        ConfigError: a text is none of these, or a target is named twice.
    """
    found: dict[str, Tolerance] = {}
    for text in given:
        target, equals, value = text.rpartition("=")
        if equals and target not in TARGETS:
            raise ConfigError(f"a tolerance is for a target ({', '.join(sorted(TARGETS))}), came {target!r}")
        if target in found:
            raise ConfigError(f"the tolerance of {target or 'all targets'} is given twice; give it once")
        found[target] = _read(value)
    return found


def _read(text: str) -> Tolerance:
    if text == "exact":
        return EXACT
    measure, colon, number = text.rpartition(":")
    try:
        limit = float(number)
    except ValueError:
        limit = math.nan
    if not colon and limit >= 0 and math.isfinite(limit):
        return Tolerance("norm", limit)
    if measure == "cosine" and 0 <= limit <= 1:
        return Tolerance("cosine", limit)
    raise ConfigError(f"a tolerance is a number such as 1e-3, or cosine:0.999, or exact; came {text!r}")
