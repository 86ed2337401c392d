"""`flagsplit build`: from a model to a bundle."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from flagsplit.apps.cli.options import (
    CHOICE_HELP,
    DIM_HELP,
    EXPECTED_TOKENS_HELP,
    LINK_HELP,
    MAX_TOKENS_HELP,
    MODEL_HELP,
    MOST_TOKENS,
    REGION_HELP,
    TARGET_HELP,
    choices,
    names,
    open_dims,
    pairs,
    shapes,
    sla_file,
    targets,
)
from flagsplit.apps.cli.output import console, print_json, progress_bar, say, size_text, table
from flagsplit.apps.cli.plans import calibration_data, calibration_texts, plan_data, plan_notes, plan_rows
from flagsplit.apps.groundwork import BuildOptions
from flagsplit.apps.pipeline import BuildResult, build
from flagsplit.apps.tier_parts import ResidencyChoice
from flagsplit.flagir.frontends.any_model import Source

PLAN_COLUMNS = ("plan", "tiers", "latency ms", "energy mJ", "USD/1000", "up", "down")


def command(
    model: Annotated[Path, typer.Argument(help=MODEL_HELP)],
    tiers: Annotated[str, typer.Option(help="Names of the tiers, from the one that asks to the farthest.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The bundle to write.")],
    devices: Annotated[
        list[str] | None,
        typer.Option(metavar="TIER=DEVICE", help="Devices, with commas between; see flagsplit devices."),
    ] = None,
    link: Annotated[
        list[str] | None,
        typer.Option(metavar="TIER=BW/RTT", help=LINK_HELP),
    ] = None,
    region: Annotated[list[str] | None, typer.Option(metavar="TIER=REGION[@HOUR]", help=REGION_HELP)] = None,
    target: Annotated[list[str] | None, typer.Option(metavar="TIER=NAME,...", help=TARGET_HELP)] = None,
    choice: Annotated[list[str] | None, typer.Option(metavar="TARGET.NAME=VALUE", help=CHOICE_HELP)] = None,
    sla: Annotated[Path | None, typer.Option(metavar="FILE", help="The policy, JSON; docs/sla.md.")] = None,
    dim: Annotated[
        list[str] | None,
        typer.Option(metavar="SYMBOL=SIZE", help=DIM_HELP),
    ] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(metavar="INPUT=1,3,640,640", help="Nominal shape of an input."),
    ] = None,
    catalogue: Annotated[list[Path] | None, typer.Option(metavar="FILE", help="Devices and links of your own.")] = None,
    profile: Annotated[
        list[str] | None,
        typer.Option(metavar="TIER=FILE", help="Measured times of a tier, from flagsplit profile."),
    ] = None,
    samples: Annotated[
        list[str] | None,
        typer.Option(
            "--samples",
            "--calibrate",
            metavar="DIR|FILE|zoo:NAME",
            help="Inputs to calibrate chips and check their ranges with: .npz, pictures or recordings.",
        ),
    ] = None,
    keep_samples: Annotated[
        bool, typer.Option("--keep-samples", help="Put the samples into the bundle, for when it is built again.")
    ] = False,
    numerics: Annotated[
        Literal["exact", "fast"],
        typer.Option(help="exact: split equals unsplit bit for bit; fast: rounding may differ."),
    ] = "exact",
    residency: Annotated[
        ResidencyChoice,
        typer.Option(
            help="auto: atoms where the segments of all plans are more than a tier's memory; docs/workers.md."
        ),
    ] = "auto",
    float_products: Annotated[
        bool, typer.Option("--float-products", help="Undo quantization on the fly, which chips do not take.")
    ] = False,
    expected_tokens: Annotated[int, typer.Option(min=0, max=MOST_TOKENS, metavar="N", help=EXPECTED_TOKENS_HELP)] = 0,
    max_tokens: Annotated[int, typer.Option(min=0, max=MOST_TOKENS, metavar="N", help=MAX_TOKENS_HELP)] = 0,
    trusted: Annotated[bool, typer.Option("--trusted", help="You know who wrote this .pt2 file.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Build a bundle: plans for every state of the network, and what each tier needs to run them."""
    dims = open_dims("--dim", dim)
    options = BuildOptions(
        dims=dims.nominal,
        ranges=dims.ranges,
        listed=dims.listed,
        shapes=shapes("--shape", shape),
        numerics=numerics,
        catalogues=catalogue or [],
        regions=pairs("--region", region, commas=True),
        targets=targets(target),
        choices=choices(choice),
        samples=samples or (),
        keep_samples=keep_samples,
        float_products=float_products,
        residency=residency,
        expected_tokens=expected_tokens,
        max_tokens=max_tokens,
        profiles={tier: Path(file) for tier, file in pairs("--profile", profile).items()},
    )
    with progress_bar(quiet=as_json) as progress:
        result = build(
            Source(model, trusted=trusted),
            names("--tiers", tiers),
            output,
            devices=pairs("--devices", devices, commas=True),
            links=pairs("--link", link),
            sla=sla_file(sla),
            options=options,
            progress=progress,
        )
    if as_json:
        print_json(_data(result))
    else:
        _show(result)


def _data(result: BuildResult) -> dict[str, Any]:
    pool = result.planning.pool
    return {
        "bundle": str(result.path),
        "digest": result.digest,
        "size_bytes": result.size_bytes,
        "weights_bytes": result.weights_bytes,
        "plan": result.planning.chosen.plan.name,
        "plans": [plan_data(plan) for plan in pool.plans],
        "absent": dict(pool.absent),
        "layer_plans": [] if result.layers is None else [plan_data(plan) for plan in result.layers.pool.plans],
        "reasons": list(result.planning.reasons),
        "notes": list(result.notes),
        "seconds": {name: round(seconds, 4) for name, seconds in result.seconds.items()},
        "profiles": calibration_data(result.calibrations),
        "basis": "modelled",
    }


def _show(result: BuildResult) -> None:
    out = console()
    pool = result.planning.pool
    out.print(table("Plans (modelled)", PLAN_COLUMNS, plan_rows(pool.plans), left=2))
    for note in plan_notes(pool.plans):
        say(out, note)
    for name, why in pool.absent.items():
        say(out, f"{name} is not among them: {why}")
    out.print()
    for sentence in (*result.planning.reasons, *result.notes):
        say(out, sentence)
    if result.layers is not None:
        out.print()
        layered = result.layers.pool
        out.print(table("Plans that divide its layers (modelled)", PLAN_COLUMNS, plan_rows(layered.plans), left=2))
        for sentence in result.layers.reasons:
            say(out, sentence)
    for sentence in calibration_texts(result.calibrations):
        say(out, sentence)
    out.print()
    say(
        out,
        f"{result.path}: {size_text(result.size_bytes)}, weights {size_text(result.weights_bytes)}, "
        f"{len(pool.plans)} plans, built in {sum(result.seconds.values()):.1f} s",
    )
