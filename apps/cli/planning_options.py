"""The options of commands that plan a model: its tiers, the world around it, and the model's own choices."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Final

import typer

from flagsplit.apps.cli.options import choices, open_dims, pairs, shapes, targets
from flagsplit.apps.groundwork import BuildOptions

MODEL_HELP: Final = "The model: .onnx, .ort or .pt2; zoo:NAME or the folder of a generative program."
TIERS_HELP: Final = "Names of the tiers, from the one that asks to the farthest."
_MOST_TOKENS: Final = 1_000_000

Devices = Annotated[
    list[str] | None, typer.Option(metavar="TIER=DEVICE", help="Devices, with commas between; see flagsplit devices.")
]
Link = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TIER=BW/RTT",
        help="The link to the tier before, such as edge=100mbit/5ms; or a by-pass: phone-cloud=20mbit/40ms.",
    ),
]
Region = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TIER=REGION[@HOUR]",
        help="Where a tier draws its power, such as cloud=DEU or cloud=DEU@14; docs/devices.md.",
    ),
]
Target = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TIER=NAME,...",
        help="Compiler back ends of a tier, such as phone=coreml,litert; those of its device by default.",
    ),
]
Choice = Annotated[
    list[str] | None,
    typer.Option(metavar="TARGET.NAME=VALUE", help="What a target lets choose, such as coreml.precision=fp32."),
]
Sla = Annotated[Path | None, typer.Option(metavar="FILE", help="The policy, JSON; docs/sla.md.")]
Dim = Annotated[
    list[str] | None,
    typer.Option(
        metavar="SYMBOL=SIZE",
        help="Nominal size of an open dimension; its range, 1..64; or its sizes, 1,8,64. 1..64@16 is planned for 16.",
    ),
]
Shape = Annotated[list[str] | None, typer.Option(metavar="INPUT=1,3,640,640", help="Shape of an input.")]
Profile = Annotated[
    list[str] | None, typer.Option(metavar="TIER=FILE", help="Measured times of a tier, from flagsplit profile.")
]
FloatProducts = Annotated[
    bool, typer.Option("--float-products", help="Undo quantization on the fly, which chips do not take.")
]
ExpectedTokens = Annotated[
    int,
    typer.Option(
        min=0,
        max=_MOST_TOKENS,
        metavar="N",
        help="Tokens that an answer is expected to have, or trips that the model's loops make.",
    ),
]
MaxTokens = Annotated[
    int, typer.Option(min=0, max=_MOST_TOKENS, metavar="N", help="Most tokens of an answer of the linked model.")
]
Trusted = Annotated[bool, typer.Option("--trusted", help="You know who wrote this .pt2 file.")]


def planning_options(
    *,
    dim: Iterable[str] | None,
    shape: Iterable[str] | None,
    catalogue: list[Path] | None,
    region: Iterable[str] | None,
    target: Iterable[str] | None,
    choice: Iterable[str] | None,
    profile: Iterable[str] | None,
    float_products: bool,
    expected_tokens: int,
    max_tokens: int,
) -> BuildOptions:
    """What was said of a model and its world, as a build takes it.

    Raises:
        ConfigError: a text does not say what its option expects.
    """
    dims = open_dims("--dim", dim)
    return BuildOptions(
        dims=dims.nominal,
        ranges=dims.ranges,
        listed=dims.listed,
        shapes=shapes("--shape", shape),
        catalogues=catalogue or [],
        regions=pairs("--region", region, commas=True),
        targets=targets(target),
        choices=choices(choice),
        float_products=float_products,
        expected_tokens=expected_tokens,
        max_tokens=max_tokens,
        profiles={tier: Path(file) for tier, file in pairs("--profile", profile).items()},
    )
