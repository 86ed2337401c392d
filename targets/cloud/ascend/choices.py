"""What a build for Ascend can choose: the chip, the release of CANN, and the precision that ATC computes in."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from flagsplit.errors import ConfigError
from flagsplit.targets.cloud.ascend.releases import Release, releases
from flagsplit.targets.interface import CompileOptions

PRECISION_MODES: Mapping[str, str] = {"fp16": "force_fp16", "mixed": "allow_fp32_to_fp16"}
"""By choice, ATC's and the provider's own word: all in fp16 that can be, or only products of matrices.

`must_keep_origin_dtype` is left out: with it convolutions and products of matrices take no fp32.
"""


@dataclass(frozen=True)
class Choices:
    """A build's choices.

    Attributes:
        soc: what `--soc_version` gets.
        release: of CANN.
        precision: a key of `PRECISION_MODES`.
    """

    soc: str
    release: Release
    precision: str


def choices() -> dict[str, tuple[str, ...]]:
    """What may be chosen, the defaults first."""
    return {"precision": tuple(PRECISION_MODES), "soc": tuple(_socs()["socs"]), "cann": tuple(releases())}


def read_choices(options: CompileOptions) -> Choices:
    """The choices of a build; the chip is the device's, unless one is chosen.

    Raises:
        ConfigError: one is none that there is, or which chip a device has is not known.
    """
    known, found = choices(), dict(options.choices)
    if "soc" not in found and options.device:
        found["soc"] = _of_device(options.device)
    for name, values in known.items():
        found.setdefault(name, values[0])
        if found[name] not in values:
            raise ConfigError(f"ascend.{name} expects one of {', '.join(values)}; came {found[name]!r}")
    return Choices(found["soc"], releases()[found["cann"]], found["precision"])


def _of_device(device: str) -> str:
    name: str | None = _socs()["devices"].get(device)
    if name is None:
        raise ConfigError(
            f"the ascend target does not know which chip {device!r} has; choose ascend.soc={'|'.join(_socs()['socs'])}"
        )
    return name


@cache
def _socs() -> dict[str, Any]:
    text = resources.files("flagsplit.targets.cloud.ascend").joinpath("socs.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found
