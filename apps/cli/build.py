"""`flagsplit build`: from a model to a bundle."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from flagsplit.apps.assembly import BuildResult
from flagsplit.apps.cli.common_options import AsJson, Catalogue
from flagsplit.apps.cli.options import names, pairs, sla_file
from flagsplit.apps.cli.output import console, print_json, progress_bar, say, size_text, table
from flagsplit.apps.cli.planning_options import (
    MODEL_HELP,
    TIERS_HELP,
    Choice,
    Devices,
    Dim,
    ExpectedTokens,
    FloatProducts,
    Link,
    MaxTokens,
    Profile,
    Region,
    Sla,
    Target,
    Trusted,
    planning_options,
)
from flagsplit.apps.cli.plans import calibration_data, calibration_texts, plan_data, plan_notes, plan_rows
from flagsplit.apps.pipeline import build
from flagsplit.apps.tier_parts import ResidencyChoice
from flagsplit.flagir.frontends.any_model import Source

PLAN_COLUMNS = ("plan", "tiers", "latency ms", "energy mJ", "USD/1000", "up", "down")

NominalShape = Annotated[list[str] | None, typer.Option(metavar="INPUT=1,3,640,640", help="Nominal shape of an input.")]
Samples = Annotated[
    list[str] | None,
    typer.Option(
        "--samples",
        "--calibrate",
        metavar="DIR|FILE|zoo:NAME",
        help="Inputs to calibrate chips and check their ranges with: .npz, pictures or recordings.",
    ),
]
KeepSamples = Annotated[
    bool, typer.Option("--keep-samples", help="Put the samples into the bundle, for when it is built again.")
]
Numerics = Annotated[
    Literal["exact", "fast"],
    typer.Option(help="exact: split equals unsplit bit for bit; fast: rounding may differ."),
]
Residency = Annotated[
    ResidencyChoice,
    typer.Option(help="auto: atoms where the segments of all plans are more than a tier's memory; docs/workers.md."),
]


def command(
    model: Annotated[Path, typer.Argument(help=MODEL_HELP)],
    tiers: Annotated[str, typer.Option(help=TIERS_HELP)],
    output: Annotated[Path, typer.Option("-o", "--output", help="The bundle to write.")],
    devices: Devices = None,
    link: Link = None,
    region: Region = None,
    target: Target = None,
    choice: Choice = None,
    sla: Sla = None,
    dim: Dim = None,
    shape: NominalShape = None,
    catalogue: Catalogue = None,
    profile: Profile = None,
    samples: Samples = None,
    keep_samples: KeepSamples = False,
    numerics: Numerics = "exact",
    residency: Residency = "auto",
    float_products: FloatProducts = False,
    expected_tokens: ExpectedTokens = 0,
    max_tokens: MaxTokens = 0,
    trusted: Trusted = False,
    as_json: AsJson = False,
) -> None:
    """Build a bundle: plans for every state of the network, and what each tier needs to run them."""
    options = planning_options(
        dim=dim,
        shape=shape,
        catalogue=catalogue,
        region=region,
        target=target,
        choice=choice,
        profile=profile,
        float_products=float_products,
        expected_tokens=expected_tokens,
        max_tokens=max_tokens,
    )
    with progress_bar(quiet=as_json) as progress:
        result = build(
            Source(model, trusted=trusted),
            names("--tiers", tiers),
            output,
            devices=pairs("--devices", devices, commas=True),
            links=pairs("--link", link),
            sla=sla_file(sla),
            options=replace(
                options, numerics=numerics, samples=samples or (), keep_samples=keep_samples, residency=residency
            ),
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
