"""Turning what a user says of tiers, devices and links into the splitter's terms."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flagsplit.errors import PolicyError
from flagsplit.splitter.costs import Tier
from flagsplit.splitter.devices import Catalogue, Device, load_catalogue
from flagsplit.splitter.links import Link, parse_link
from flagsplit.targets.catalogue import TARGETS

THIS_HOST = "this-host"
"""The device name that stands for this machine; its figures are measured when it is asked for."""

_DEVICE_OF = {"phone": "generic-phone-cpu", "edge": "generic-edge-cpu", "cloud": "t4"}
_FIRST_LINK = "wifi"
_NEXT_LINK = "wan"
_FALLBACK_TARGET = "ort"


@dataclass(frozen=True)
class Deployment:
    """The line of tiers, what joins them, and each tier's compiler back end."""

    tiers: tuple[Tier, ...]
    links: tuple[Link, ...]
    targets: tuple[str, ...]


def describe_deployment(
    names: Sequence[str], devices: Mapping[str, str], links: Mapping[str, str], catalogues: Sequence[Path] = ()
) -> Deployment:
    """Look everything up in the catalogue.

    Args:
        names: the tiers, from the one that asks to the farthest.
        devices: device names by tier; phone, edge and cloud have defaults, `this-host` is measured here and now.
        links: links by tier, each to the tier before it; the first is Wi-Fi by default, the others a WAN.
        catalogues: the user's own files.

    Raises:
        PolicyError: a tier, device or link is unknown, or a tier stands twice.
    """
    catalogue = load_catalogue(catalogues)
    if not names:
        raise PolicyError("expected at least one tier, such as --tiers phone,edge,cloud")
    twice = next((name for name in names if list(names).count(name) > 1), None)
    if twice is not None:
        raise PolicyError(f"tier {twice!r} stands twice among {', '.join(names)}; give each tier a name of its own")
    _check_known("--devices", devices, names)
    _check_known("--link", links, names[1:])
    tiers = tuple(Tier(name, _device(_device_of(name, devices, catalogue), catalogue)) for name in names)
    joined = tuple(
        parse_link(links.get(name, _FIRST_LINK if at == 0 else _NEXT_LINK), catalogue.links)
        for at, name in enumerate(names[1:])
    )
    targets = tuple(tier.device.target if tier.device.target in TARGETS else _FALLBACK_TARGET for tier in tiers)
    return Deployment(tiers, joined, targets)


def _check_known(option: str, given: Mapping[str, str], names: Sequence[str]) -> None:
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
