"""Chips that take several sizes: whether a build says which, and what to tell whoever builds.

What each target takes follows from its choice `shapes`; which sizes requests have is said with `--dim`.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING

from flagsplit.apps.deployment import Deployment
from flagsplit.errors import ConfigError
from flagsplit.targets.catalogue import get_target
from flagsplit.targets.interface import SHAPES_CHOICE, Shapes

if TYPE_CHECKING:
    from flagsplit.apps.groundwork import BuildOptions, Groundwork

_HOW = {"ranged": "LOW..HIGH", "enumerated": "SIZE,SIZE"}


def check_shapes(names: Collection[str], options: "BuildOptions", symbols: Collection[str]) -> None:
    """Whether the sizes that targets are to take are given, in the form that they take.

    Args:
        names: the targets of a tier.
        options: of the build.
        symbols: the open dimensions of the model.

    Raises:
        ConfigError: they are not.
    """
    for name in names:
        shapes = _shapes(name, options)
        if shapes not in _HOW:
            continue
        wanted, other = (
            _several(options, shapes),
            _several(options, "ranged" if shapes == "enumerated" else "enumerated"),
        )
        what = f"--choice {name}.{SHAPES_CHOICE}={shapes}"
        have = ", ".join(symbols) or "none"
        if other:
            raise ConfigError(
                f"{what} takes --dim {other[0]}={_HOW[shapes]}, came {_told(options, other[0])}; "
                f"say it so, or choose {name}.{SHAPES_CHOICE}={'ranged' if shapes == 'enumerated' else 'enumerated'}"
            )
        if not wanted:
            raise ConfigError(
                f"{what} needs to know the sizes: give --dim SYMBOL={_HOW[shapes]} for an open dimension ({have})"
            )


def shape_notes(deployment: Deployment, ground: "Groundwork", options: "BuildOptions") -> Iterator[str]:
    """What to know of the sizes of a bundle that has chips."""
    pinned = {name: low for name, (low, _) in ground.ranges.items() if name not in options.spans}
    if pinned:
        sizes = ", ".join(f"{name}={size}" for name, size in pinned.items())
        yield f"requests are of one size, {sizes}: a target takes fixed shapes; docs/shapes.md tells of other sizes"
    for tier, chosen in zip(deployment.tiers, deployment.targets, strict=True):
        for name in chosen.names:
            shapes = _shapes(name, options)
            if shapes not in _HOW:
                continue
            told = " and ".join(f"{each} {_told(options, each)}" for each in _several(options, shapes))
            yield f"{name} takes {told} on tier {tier.name}"
            off = get_target(name).describe().off_accelerator(options.choices.get(name, {}))
            if off is not None:
                yield (
                    f"plans count {name} on tier {tier.name} as beside the accelerator: {off.reason.rstrip('.')} "
                    f"({off.source}, confidence {off.confidence})"
                )


def _shapes(name: str, options: "BuildOptions") -> Shapes:
    return get_target(name).describe().shapes(options.choices.get(name, {}))


def _several(options: "BuildOptions", shapes: Shapes) -> list[str]:
    """The symbols with a range, or with a list, of more than one size."""
    given: Mapping[str, tuple[int, ...]] = options.ranges if shapes == "ranged" else options.listed
    return [name for name, sizes in given.items() if len(set(sizes)) > 1]


def _told(options: "BuildOptions", name: str) -> str:
    if name in options.listed:
        return ",".join(map(str, options.listed[name]))
    return "{}..{}".format(*options.ranges[name])
