"""`flagsplit devices`: the catalogue of devices, links and regions."""

from flagsplit.apps.cli.common_options import AsJson, Catalogue
from flagsplit.apps.cli.output import console, print_json, rate_text, size_text, table
from flagsplit.splitter.devices import Device, load_catalogue


def command(
    catalogue: Catalogue = None,
    as_json: AsJson = False,
) -> None:
    """List the devices, links and regions that plans can be made for. Every figure has its source in --json."""
    found = load_catalogue(catalogue or [])
    if as_json:
        print_json(
            {
                "devices": [device.model_dump(mode="json") for device in found.devices.values()],
                "links": [
                    {
                        "name": link.name,
                        "up_mbit": link.up_bytes_per_s * 8e-6,
                        "down_mbit": link.down_bytes_per_s * 8e-6,
                        "rtt_ms": link.rtt_s * 1e3,
                        "medium": link.medium,
                        "source": link.source,
                    }
                    for link in found.links.values()
                ],
                "regions": {name: region.model_dump(mode="json") for name, region in found.regions.items()},
            }
        )
        return
    out = console()
    columns = ("device", "kind", "confidence", "peak", "memory", "bandwidth", "power", "USD/h", "chips")
    out.print(table("Devices", columns, [_row(device) for device in found.devices.values()], left=3))
    out.print()
    links = [
        (
            name,
            link.medium,
            rate_text(link.up_bytes_per_s * 8, "bit/s"),
            rate_text(link.down_bytes_per_s * 8, "bit/s"),
            f"{link.rtt_s * 1e3:g} ms",
        )
        for name, link in found.links.items()
    ]
    out.print(table("Links", ("link", "medium", "up", "down", "rtt"), links, left=2))
    out.print()
    regions = [
        (name, region.title, f"{region.intensity.value:g}", "yes" if region.hourly else "no")
        for name, region in found.regions.items()
    ]
    out.print(table("Regions", ("region", "", "gCO2/kWh", "by hour"), regions, left=2))


def _row(device: Device) -> tuple[str, ...]:
    peak = device.peak_flops[device.precision]
    return (
        device.name,
        device.kind,
        peak.confidence,
        rate_text(peak.value, f"FLOP/s {device.precision}"),
        size_text(device.memory.value),
        rate_text(device.memory_bandwidth.value, "B/s"),
        f"{device.active_power.value:g} W",
        f"{device.price.value:g}",
        ", ".join(device.chip_targets) or "-",
    )
