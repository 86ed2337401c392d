"""Turning what a user says of tiers, devices and links into the splitter's terms."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from flagsplit.apps.target_choice import TierTargets, choose_targets
from flagsplit.errors import PolicyError
from flagsplit.splitter.costs import Tier
from flagsplit.splitter.devices import WORLD, Catalogue, Device, load_catalogue
from flagsplit.splitter.links import Link, parse_link
from flagsplit.splitter.problem import Bypass

THIS_HOST = "this-host"
"""The device name that stands for this machine; its figures are measured when it is asked for."""

_DEVICE_OF = {"phone": "generic-phone-cpu", "edge": "generic-edge-cpu", "cloud": "t4"}
_FIRST_LINK = "wifi"
_NEXT_LINK = "wan"


@dataclass(frozen=True)
class Deployment:
    """The line of tiers, what joins them, each tier's compiler back ends, and direct links between others."""

    tiers: tuple[Tier, ...]
    links: tuple[Link, ...]
    targets: tuple[TierTargets, ...]
    bypasses: tuple[Bypass, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """What was left out."""
        return tuple(note for choice in self.targets for note in choice.left_out)


def describe_deployment(
    names: Sequence[str],
    devices: Mapping[str, str],
    links: Mapping[str, str],
    catalogues: Sequence[Path] = (),
    regions: Mapping[str, str] | None = None,
    targets: Mapping[str, Sequence[str]] | None = None,
) -> Deployment:
    """Look everything up in the catalogue.

    Args:
        names: the tiers, from the one that asks to the farthest.
        devices: device names by tier; phone, edge and cloud have defaults, `this-host` is measured here and now.
        links: links by tier, each to the tier before it; the first is Wi-Fi by default, the others a WAN. Two tiers
            with "-" between stand for a by-pass: `{"phone-cloud": "20mbit/40ms"}`.
        catalogues: the user's own files.
        regions: where tiers draw their power, by tier: `DEU`, or `DEU@14` at that hour of the day; the world's mean
            by default.
        targets: compiler back ends by tier, where they are not the device's own.

    Raises:
        PolicyError: a tier, device, link, region or target is unknown, or a tier stands twice.
    """
    catalogue = load_catalogue(catalogues)
    if not names:
        raise PolicyError("expected at least one tier, such as --tiers phone,edge,cloud")
    twice = next((name for name in names if list(names).count(name) > 1), None)
    if twice is not None:
        raise PolicyError(f"tier {twice!r} stands twice among {', '.join(names)}; give each tier a name of its own")
    _check_known("--devices", devices, names)
    _check_known("--region", regions or {}, names)
    _check_known("--target", targets or {}, names)
    direct = _bypasses(links, names, catalogue)
    _check_known("--link", [key for key in links if key not in direct], names[1:])
    placed = {name: _device(_device_of(name, devices, catalogue), catalogue) for name in names}
    chosen = {name: choose_targets(name, device, (targets or {}).get(name)) for name, device in placed.items()}
    tiers = tuple(_tier(name, placed[name], chosen[name], regions or {}, catalogue) for name in names)
    joined = tuple(
        parse_link(links.get(name, _FIRST_LINK if at == 0 else _NEXT_LINK), catalogue.links)
        for at, name in enumerate(names[1:])
    )
    return Deployment(tiers, joined, tuple(chosen.values()), tuple(direct.values()))


def _tier(name: str, device: Device, targets: TierTargets, regions: Mapping[str, str], catalogue: Catalogue) -> Tier:
    first = targets.names[0]
    region, at, hour = regions.get(name, WORLD).partition("@")
    if at and not (hour.isascii() and hour.isdigit() and int(hour) < 24):
        raise PolicyError(f"--region {name}={region}@{hour}: expected an hour of the day from 0 to 23, came {hour!r}")
    grams = catalogue.region(region).grams_per_kwh(int(hour) if at else None)
    return Tier(
        name,
        device,
        device.chip_targets.get(first),
        first,
        region=regions.get(name, WORLD),
        carbon_g_per_kwh=grams,
    )


def _bypasses(links: Mapping[str, str], names: Sequence[str], catalogue: Catalogue) -> dict[str, Bypass]:
    """The links between two tiers that are no neighbors, by the name that they are given."""
    pairs = {f"{near}-{far}": (i, i + 2 + j) for i, near in enumerate(names) for j, far in enumerate(names[i + 2 :])}
    neighbors = {f"{near}-{far}": far for near, far in pairwise(names)}
    for key in links:
        if key in neighbors and key not in names:
            raise PolicyError(f"--link {key}: these two are neighbors; say {neighbors[key]}={links[key]}")
    return {
        key: Bypass(*pairs[key], parse_link(text, catalogue.links))
        for key, text in links.items()
        if key in pairs and key not in names
    }


def _check_known(option: str, given: Collection[str], names: Sequence[str]) -> None:
    for name in given:
        if name not in names:
            raise PolicyError(f"{option} names tier {name!r}, expected one of {', '.join(names) or '(none)'}")


def _device(name: str, catalogue: Catalogue) -> Device:
    if name == THIS_HOST and name not in catalogue.devices:
        from flagsplit.apps.host_profile import measure_host

        return measure_host()
    return catalogue.device(name)


def _device_of(name: str, devices: Mapping[str, str], catalogue: Catalogue) -> str:
    device = devices.get(name) or _DEVICE_OF.get(name)
    if device is None:
        known = ", ".join(sorted(catalogue.devices))
        raise PolicyError(
            f"unknown tier {name!r}: phone, edge and cloud have devices of their own; for another name "
            f"say which with --devices {name}=NAME ({known})"
        )
    return device
