"""The catalogue of devices and links: figures as data, each with its source, date and confidence.

The shipped figures are in `data/*.json`; user files in the same form override single figures or add devices
(`docs/devices.md`). What the figures mean in seconds and joules is in `flagsplit.splitter.costs`.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from flagsplit.errors import PolicyError
from flagsplit.flagir.blockgraph import OP_CLASSES
from flagsplit.splitter.links import Link
from flagsplit.splitter.sla import first_problem

FORMAT_VERSION = 1
WORLD = "WORLD"
"""The region that counts where none is named."""

_KINDS = ("devices", "links", "regions")
_HOURS = 24
_DATA = Path(__file__).parent / "data"
_NO_FIGURE_FILE_IS_LARGER = 4_000_000


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Figure(_Frozen):
    """One number with where it comes from."""

    value: float = Field(ge=0)
    unit: str
    source: str = "unstated"
    date: str = ""
    confidence: Literal["high", "medium", "low"] = "low"


def _estimate(value: float, unit: str) -> Figure:
    return Figure(value=value, unit=unit, source="flagsplit estimate", date="2025-01", confidence="low")


class Radio(_Frozen):
    """Energy of a phone's radio.

    Attributes:
        up, down: marginal energy of sending and receiving, nJ/bit.
        tail_power: W above idle while the radio stays awake after its last message.
        tail: s that it stays awake; a shorter gap between requests cuts it short.
    """

    up: Figure
    down: Figure
    tail_power: Figure | None = None
    tail: Figure | None = None


class Region(_Frozen):
    """A part of the electricity grid.

    Attributes:
        title: for people.
        intensity: mean emissions, gCO2/kWh.
        hourly: by hour of the day (local), factor on the mean; empty: the same at all hours.
    """

    title: str
    intensity: Figure
    hourly: tuple[float, ...] = ()

    @model_validator(mode="after")
    def _figures_make_sense(self) -> Self:
        if self.intensity.unit != "gCO2/kWh":
            raise ValueError(f"intensity: expected the unit 'gCO2/kWh', got {self.intensity.unit!r}")
        if self.hourly and (len(self.hourly) != _HOURS or min(self.hourly) < 0):
            raise ValueError(f"hourly: expected {_HOURS} factors of 0 or more, got {len(self.hourly)}")
        return self

    def grams_per_kwh(self, hour: int | None) -> float:
        """At an hour of the day, 0 to 23, or on average; raises PolicyError for another hour."""
        if hour is not None and not 0 <= hour < _HOURS:
            raise PolicyError(f"region {self.title!r}: expected an hour from 0 to {_HOURS - 1}, got {hour}")
        return self.intensity.value * (self.hourly[hour] if hour is not None and self.hourly else 1.0)


class Device(_Frozen):
    """What one device can do.

    Attributes:
        name: catalogue name.
        title, vendor: for people.
        kind: where such a device usually stands.
        target: name of the compiler back end of its CPU or GPU, used unless it has chips or the user picks another.
        precision: which entry of `peak_flops` that computes in.
        chip_targets: compiler back ends of its accelerators, the preferred first, and the entry of `peak_flops` that
            each computes in. What an accelerator leaves to the CPU is computed in `precision`.
        peak_flops: by precision, FLOP/s.
        efficiency: by class of work, the reachable share of the peak, above 0 and at most 1.
        memory_bandwidth: B/s.
        memory: B; the cap on resident bytes unless the SLA sets one.
        dispatch: s for each block.
        invocation: s for each message that the device has to act on: start a segment, relay, or deliver the answer.
        active_power, idle_power: W; the energy of a request is counted above idle.
        price: USD/h of busy time.
        radio: by medium; empty for wired devices.
        load_bandwidth: B/s at which weights get ready to run, from storage, packing included.
        load_latency: s that a cold start takes beside that.
    """

    name: str
    title: str
    vendor: str
    kind: Literal["phone", "edge", "cloud"]
    target: str = "ort"
    precision: str = "fp32"
    chip_targets: dict[str, str] = {}
    peak_flops: dict[str, Figure]
    efficiency: dict[str, Figure]
    memory_bandwidth: Figure
    memory: Figure
    dispatch: Figure
    invocation: Figure
    active_power: Figure
    idle_power: Figure
    price: Figure
    radio: dict[str, Radio] = {}
    load_bandwidth: Figure = _estimate(4e8, "B/s")
    load_latency: Figure = _estimate(0.05, "s")

    @model_validator(mode="after")
    def _figures_make_sense(self) -> Self:
        for where, figure, unit, positive in self._figures():
            if figure.unit != unit:
                raise ValueError(f"{where}: expected the unit {unit!r}, got {figure.unit!r}")
            if positive and figure.value == 0:
                raise ValueError(f"{where}: must be above 0, got 0")
        if set(self.efficiency) != set(OP_CLASSES):
            odd = ", ".join(sorted(set(self.efficiency) ^ set(OP_CLASSES)))
            raise ValueError(f"efficiency: expected exactly {', '.join(OP_CLASSES)}; missing or unknown: {odd}")
        for name, figure in self.efficiency.items():
            if figure.value > 1:
                raise ValueError(f"efficiency.{name}: a share of the peak is at most 1, got {figure.value}")
        if self.precision not in self.peak_flops:
            raise ValueError(f"precision: {self.precision!r} is not among peak_flops ({', '.join(self.peak_flops)})")
        for name, precision in self.chip_targets.items():
            if precision not in self.peak_flops:
                known = ", ".join(self.peak_flops)
                raise ValueError(f"chip_targets.{name}: {precision!r} is not among peak_flops ({known})")
        if self.active_power.value < self.idle_power.value:
            raise ValueError(f"active_power: {self.active_power.value} W is below idle_power")
        return self

    def _figures(self) -> Iterator[tuple[str, Figure, str, bool]]:
        yield from ((f"peak_flops.{key}", figure, "FLOP/s", True) for key, figure in self.peak_flops.items())
        yield from ((f"efficiency.{key}", figure, "1", True) for key, figure in self.efficiency.items())
        yield "memory_bandwidth", self.memory_bandwidth, "B/s", True
        yield "memory", self.memory, "B", True
        yield "dispatch", self.dispatch, "s", False
        yield "invocation", self.invocation, "s", False
        yield "active_power", self.active_power, "W", False
        yield "idle_power", self.idle_power, "W", False
        yield "price", self.price, "USD/h", False
        for medium, radio in self.radio.items():
            yield f"radio.{medium}.up", radio.up, "nJ/bit", False
            yield f"radio.{medium}.down", radio.down, "nJ/bit", False
            if radio.tail_power is not None:
                yield f"radio.{medium}.tail_power", radio.tail_power, "W", False
            if radio.tail is not None:
                yield f"radio.{medium}.tail", radio.tail, "s", False
        yield "load_bandwidth", self.load_bandwidth, "B/s", True
        yield "load_latency", self.load_latency, "s", False


class _LinkEntry(_Frozen):
    title: str
    up: Figure
    down: Figure
    rtt: Figure
    medium: str = "wired"
    up_loss: float = Field(default=0.0, ge=0, lt=1)
    down_loss: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _figures_make_sense(self) -> Self:
        for where, figure, unit in (("up", self.up, "bit/s"), ("down", self.down, "bit/s"), ("rtt", self.rtt, "s")):
            if figure.unit != unit:
                raise ValueError(f"{where}: expected the unit {unit!r}, got {figure.unit!r}")
            if unit == "bit/s" and figure.value == 0:
                raise ValueError(f"{where}: bandwidth must be above 0, got 0")
        return self

    def link(self, name: str) -> Link:
        up, down = self.up.value / 8, self.down.value / 8
        return Link(name, up, down, self.rtt.value, self.medium, self.up.source, self.up_loss, self.down_loss)


@dataclass(frozen=True)
class Catalogue:
    """Devices, links and regions by name."""

    devices: Mapping[str, Device]
    links: Mapping[str, Link]
    regions: Mapping[str, Region]

    def device(self, name: str) -> Device:
        """The device of that name; raises PolicyError with the names there are."""
        if name not in self.devices:
            raise PolicyError(f"device {name!r} is not in the catalogue: choose from {', '.join(sorted(self.devices))}")
        return self.devices[name]

    def region(self, name: str) -> Region:
        """The region of that name; raises PolicyError with the names there are."""
        if name not in self.regions:
            raise PolicyError(f"region {name!r} is not in the catalogue: choose from {', '.join(sorted(self.regions))}")
        return self.regions[name]


def load_catalogue(extra: Sequence[Path] = ()) -> Catalogue:
    """The shipped catalogue, overridden and extended by the user's files in order.

    Raises:
        PolicyError: a file cannot be read, or a figure is wrong; one line that names file, device and field.
    """
    tables = {kind: dict(entries) for kind, entries in _shipped().items()}
    owner = {(kind, name): f"{kind}.json" for kind, entries in tables.items() for name in entries}
    for path in extra:
        document = _read(path)
        for kind, table in tables.items():
            for name, entry in document.get(kind, {}).items():
                table[name] = _override(kind.removesuffix("s"), table, name, entry, path)
                owner[kind, name] = str(path)
    return Catalogue(
        {name: _device(name, entry, owner["devices", name]) for name, entry in tables["devices"].items()},
        {name: _link(name, entry, owner["links", name]) for name, entry in tables["links"].items()},
        {name: _region(name, entry, owner["regions", name]) for name, entry in tables["regions"].items()},
    )


@cache
def _shipped() -> dict[str, dict[str, Any]]:
    return {kind: _read(_DATA / f"{kind}.json")[kind] for kind in _KINDS}


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _NO_FIGURE_FILE_IS_LARGER:
            raise PolicyError(f"{path}: expected a catalogue, but the file is over {_NO_FIGURE_FILE_IS_LARGER} bytes")
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise PolicyError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise PolicyError(f"{path}: expected JSON: {error}") from None
    if not isinstance(document, dict) or document.get("version") != FORMAT_VERSION:
        raise PolicyError(f'{path}: expected an object with "version": {FORMAT_VERSION}')
    for key, value in document.items():
        if key not in {"version", *_KINDS}:
            raise PolicyError(f"{path}: unknown key {key!r}: expected version, {', '.join(_KINDS)}")
        if key != "version" and not (isinstance(value, dict) and all(isinstance(v, dict) for v in value.values())):
            raise PolicyError(f"{path}: {key}: expected an object of objects by name")
    return document


def _override(kind: str, known: Mapping[str, Any], name: str, entry: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """`entry` laid over what it extends, or over what has the same name; a figure is replaced whole."""
    base_name = entry.get("extends", name)
    if not isinstance(base_name, str) or ("extends" in entry and base_name not in known):
        raise PolicyError(f"{path}: {kind} {name!r}: extends: {base_name!r} is not in the catalogue")
    merged = dict(known.get(base_name, {}))
    for key, value in entry.items():
        below = merged.get(key)
        both_tables = (
            isinstance(value, dict) and isinstance(below, dict) and key in {"peak_flops", "efficiency", "radio"}
        )
        merged[key] = {**below, **value} if both_tables and isinstance(below, dict) else value
    merged.pop("extends", None)
    return merged


def _device(name: str, entry: Mapping[str, Any], origin: str) -> Device:
    try:
        return Device.model_validate({**entry, "name": name})
    except ValidationError as error:
        raise PolicyError(f"{origin}: device {name!r}: {first_problem(error)}") from None


def _link(name: str, entry: Mapping[str, Any], origin: str) -> Link:
    try:
        return _LinkEntry.model_validate(entry).link(name)
    except ValidationError as error:
        raise PolicyError(f"{origin}: link {name!r}: {first_problem(error)}") from None


def _region(name: str, entry: Mapping[str, Any], origin: str) -> Region:
    try:
        return Region.model_validate(entry)
    except ValidationError as error:
        raise PolicyError(f"{origin}: region {name!r}: {first_problem(error)}") from None
