"""Which compiler back ends a tier is built for, from what the user lists or what its device has.

A list that the user gives is for each of them: every segment of the tier is compiled by all. A device's own are tried
in their order: a segment is compiled by the first that takes it, and the last must take whatever the tier runs. ONNX
Runtime comes with all of them, as the reference and for hosts without the chip.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flagsplit.errors import PolicyError
from flagsplit.runtime.bundle import REFERENCE_TARGET
from flagsplit.splitter.devices import Device
from flagsplit.targets.catalogue import TARGETS, get_target, missing_sdk


@dataclass(frozen=True)
class TierTargets:
    """The compiler back ends of a tier.

    Attributes:
        names: in order of preference, without `REFERENCE_TARGET` unless it is the only one.
        each: whether every one of them has to take all segments; else the last one alone.
        left_out: of the device's own, why some are not among them.
    """

    names: tuple[str, ...] = (REFERENCE_TARGET,)
    each: bool = True
    left_out: tuple[str, ...] = ()

    @property
    def required(self) -> tuple[str, ...]:
        """Those that have to take all segments."""
        return self.names if self.each else self.names[-1:]

    @property
    def are_chips(self) -> bool:
        """Whether there is any but the reference."""
        return self.names != (REFERENCE_TARGET,)


def choose_targets(tier: str, device: Device, asked: Sequence[str] | None) -> TierTargets:
    """The targets of one tier.

    Args:
        tier: its name, for messages.
        device: what stands there.
        asked: the user's list, or None for the device's own.

    Raises:
        PolicyError: a target is unknown or stands twice.
    """
    if asked is not None:
        return TierTargets(_listed(tier, asked))
    names, left_out = [], []
    for name in device.chip_targets:
        why = missing_sdk(name) if name in TARGETS else f"this flagsplit has no target {name}"
        if why:
            left_out.append(f"tier {tier} is built without {name}, which {device.name} has: {why}")
        else:
            names.append(name)
    if not names:
        return TierTargets((device.target if device.target in TARGETS else REFERENCE_TARGET,), left_out=tuple(left_out))
    return TierTargets(tuple(names), each=False, left_out=tuple(left_out))


def check_choices(choices: Mapping[str, Mapping[str, str]]) -> None:
    """Refuse what no target lets choose.

    Args:
        choices: by target.

    Raises:
        PolicyError: a target, a choice or a value is unknown. A target that no tier has is not: nothing comes of it.
    """
    for target, given in choices.items():
        if target not in TARGETS:
            raise PolicyError(f"--choice {target}: expected a target ({', '.join(sorted(TARGETS))}), came {target!r}")
        description = get_target(target).describe()
        known, free = description.choices, description.free_choices
        for name, value in given.items():
            if name not in known and name not in free:
                raise PolicyError(
                    f"--choice {target}.{name}: {target} lets choose {', '.join((*known, *free)) or 'nothing'}"
                )
            if name in known and value not in known[name]:
                raise PolicyError(f"--choice {target}.{name}: expected {', '.join(known[name])}, came {value!r}")


def _listed(tier: str, asked: Sequence[str]) -> tuple[str, ...]:
    unknown = [name for name in asked if name not in TARGETS]
    if unknown or not asked:
        came = repr(unknown[0]) if unknown else "none"
        raise PolicyError(f"--target {tier}: expected a target ({', '.join(sorted(TARGETS))}), came {came}")
    if len(set(asked)) < len(asked):
        raise PolicyError(f"--target {tier}: {', '.join(asked)} names one twice; name each once")
    return tuple(name for name in asked if name != REFERENCE_TARGET) or (REFERENCE_TARGET,)
