"""Which systems on a chip can be compiled for, and which phone has which: the rows of `socs.json`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from flagsplit.errors import ConfigError
from flagsplit.targets.interface import CompileOptions


@dataclass(frozen=True)
class Soc:
    """A system on a chip.

    Attributes:
        name: Qualcomm's part number.
        title: what it is sold as.
        model: its number in the SDK.
        architecture: version of its Hexagon NPU.
    """

    name: str
    title: str
    model: int
    architecture: int


@cache
def socs() -> Mapping[str, Soc]:
    """All, by name; the first is compiled for where no device is known."""
    rows = _table()["socs"].items()
    return {name: Soc(name, row["title"], row["soc_model"], row["htp_arch"]) for name, row in rows}


def soc_of(options: CompileOptions) -> Soc:
    """The system on a chip that a build is for: the one chosen, else the device's, else the first of the table.

    Raises:
        ConfigError: the one chosen is not in the table, or the device is not known to have one of them.
    """
    chosen = options.choices.get("soc") or (_of_device(options.device) if options.device else next(iter(socs())))
    found = socs().get(chosen)
    if found is None:
        raise ConfigError(f"expected a Snapdragon as soc ({', '.join(socs())}), came {chosen!r}")
    return found


def _of_device(device: str) -> str:
    name: str | None = _table()["devices"].get(device)
    if name is None:
        raise ConfigError(
            f"the qnn target does not know which Snapdragon {device!r} has; choose soc={'|'.join(socs())}, "
            "or another target if it has none"
        )
    return name


@cache
def _table() -> dict[str, Any]:
    text = resources.files("flagsplit.targets.mobile.qnn").joinpath("socs.json").read_text(encoding="utf-8")
    table: dict[str, Any] = json.loads(text)
    return table
