"""The Python API behind `flagsplit.build` and `flagsplit.plan`: the words of the command line.

Both take plain values (paths, names, mappings) and give the objects of the layers below.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

from flagsplit.apps.assembly import BuildResult, Progress
from flagsplit.apps.groundwork import BuildOptions
from flagsplit.apps.pipeline import build as build_bundle
from flagsplit.apps.planning import PlanReport
from flagsplit.apps.planning import plan as plan_model
from flagsplit.apps.tier_parts import ResidencyChoice
from flagsplit.errors import PolicyError
from flagsplit.flagir.frontends.any_model import Source
from flagsplit.splitter.sla import SLA, parse_sla
from flagsplit.targets.interface import Numerics

AnyPath = str | PathLike[str]


def build(
    model: Any,
    tiers: str | Sequence[str],
    output: AnyPath,
    *,
    devices: Mapping[str, str] | None = None,
    links: Mapping[str, str] | None = None,
    sla: SLA | Mapping[str, Any] | AnyPath | None = None,
    dims: Mapping[str, int] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    ranges: Mapping[str, tuple[int, int]] | None = None,
    listed: Mapping[str, Sequence[int]] | None = None,
    numerics: Numerics = "exact",
    residency: ResidencyChoice = "auto",
    catalogues: Sequence[AnyPath] = (),
    regions: Mapping[str, str] | None = None,
    targets: Mapping[str, Sequence[str]] | None = None,
    choices: Mapping[str, Mapping[str, str]] | None = None,
    samples: Sequence[AnyPath] = (),
    keep_samples: bool = False,
    float_products: bool = False,
    expected_tokens: int = 0,
    max_tokens: int = 0,
    profiles: Mapping[str, AnyPath] | None = None,
    example_inputs: Sequence[Any] | None = None,
    dynamic_shapes: Any = None,
    trusted: bool = False,
    progress: Progress = lambda _what, _share: None,
) -> BuildResult:
    """Build a bundle from a model.

    Args:
        model: path of an `.onnx`, `.ort` or `.pt2` file, an `onnx_ir.Model`, a `torch.export.ExportedProgram`, or a
            `torch.nn.Module`; of a generative program `zoo:NAME`, its folder, or a `flagsplit.flagir.programs.Program`.
        tiers: names from the tier that asks to the farthest, or one string with commas: `"phone,edge,cloud"`.
        output: path of the bundle to write.
        devices: device of each tier by name, from `flagsplit devices`.
        links: link of each tier to the one before it, such as `{"edge": "100mbit/5ms"}`; or, as in
            `{"phone-cloud": "20mbit/40ms"}`, of two that are no neighbors.
        sla: an `SLA`, its fields as a mapping, or the path of an SLA file.
        dims: nominal size of symbolic dimensions, elements.
        shapes: nominal shape of inputs, elements.
        ranges: smallest and largest size of symbolic dimensions, elements; requests outside are refused.
        listed: the only sizes of symbolic dimensions, elements; requests of others are refused.
        numerics: "exact" or "fast"; see `flagsplit.targets.interface.Numerics`.
        residency: whether the bundle has atoms too, so that a tier can hold each weight once whatever plan it runs:
            "auto" where the whole segments of all plans are more than its memory, "segments" never, "atoms" wherever
            plans share weights.
        catalogues: JSON files with devices and links of your own.
        regions: where tiers draw their power, by tier: `{"cloud": "DEU"}`, or `DEU@14` at that hour.
        targets: compiler back ends by tier, such as `{"phone": ["coreml", "litert"]}`; the device's own by default.
        choices: what targets let choose, by target: `{"coreml": {"precision": "fp32"}}`.
        float_products: turn products that are quantized on the fly, which chips do not take, into floating-point ones.
        expected_tokens: tokens that a program's answer is expected to have, or trips that a model's loops make; 0
            leaves that to the program's facts or to the model.
        max_tokens: most tokens of an answer of a program's linked model; 0: as many as its facts allow.
        samples: `.npz` files with inputs by name, folders of them, of pictures or of recordings, or `zoo:NAME`, to
            calibrate chips and check their ranges with; random by default.
        keep_samples: put them into the bundle, for `update_sla` to calibrate with; whoever has the bundle has them.
        profiles: file with measured times of each tier that has one, from `flagsplit profile`.
        example_inputs: positional inputs to trace a `torch.nn.Module` with.
        dynamic_shapes: of a module, as for `torch.export.export`.
        trusted: whether you know who wrote a `.pt2` file; reading one can run code that is in it.
        progress: called with what is being done and the share done, 0 to 1.

    Returns:
        The bundle's path, digest, sizes in bytes, seconds per step and plans.

    Raises:
        ModelError, PolicyError, ConfigError: what was asked cannot be built; the message says why.
    """
    options = _options(
        dims=dims,
        shapes=shapes,
        ranges=ranges,
        listed=listed,
        catalogues=catalogues,
        regions=regions,
        targets=targets,
        choices=choices,
        expected_tokens=expected_tokens,
        max_tokens=max_tokens,
        profiles=profiles,
    )
    return build_bundle(
        _source(model, example_inputs, dynamic_shapes, trusted=trusted),
        _names(tiers),
        Path(output),
        devices=devices,
        links=links,
        sla=_sla(sla),
        options=replace(
            options,
            numerics=numerics,
            residency=residency,
            samples=[str(path) for path in samples],
            keep_samples=keep_samples,
            float_products=float_products,
        ),
        progress=progress,
    )


async def build_async(model: Any, tiers: str | Sequence[str], output: AnyPath, **choices: Any) -> BuildResult:
    """The asyncio twin of `build`: the same arguments, on a thread of its own."""
    return await asyncio.to_thread(build, model, tiers, output, **choices)


def plan(
    model: Any,
    tiers: str | Sequence[str] | None = None,
    *,
    devices: Mapping[str, str] | None = None,
    links: Mapping[str, str] | None = None,
    sla: SLA | Mapping[str, Any] | AnyPath | None = None,
    dims: Mapping[str, int] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    ranges: Mapping[str, tuple[int, int]] | None = None,
    listed: Mapping[str, Sequence[int]] | None = None,
    catalogues: Sequence[AnyPath] = (),
    regions: Mapping[str, str] | None = None,
    targets: Mapping[str, Sequence[str]] | None = None,
    choices: Mapping[str, Mapping[str, str]] | None = None,
    expected_tokens: int = 0,
    max_tokens: int = 0,
    profiles: Mapping[str, AnyPath] | None = None,
    what_if: Mapping[str, str] | None = None,
    thresholds: bool = True,
    pareto: bool = False,
    example_inputs: Sequence[Any] | None = None,
    dynamic_shapes: Any = None,
    trusted: bool = False,
) -> PlanReport:
    """Plan a model without building it: what would run where, and why.

    Args:
        model: as for `build`; or the path of a bundle, whose tiers, devices, links and sizes count where none is given.
        tiers: names from the tier that asks to the farthest, or one string with commas.
        devices, links, sla, dims, shapes, ranges, listed, catalogues, regions, targets, choices, profiles: as `build`.
        expected_tokens, max_tokens: as for `build`.
        what_if: another world, such as `{"cloud": "5mbit/80ms"}` or `{"edge": "slower:3"}`.
        thresholds: whether to find out where another plan becomes best.
        pareto: whether to find the plans that no other beats in latency, energy and price.
        example_inputs, dynamic_shapes, trusted: as for `build`.

    Returns:
        The plan with its figures (seconds, joules, dollars, bytes), baselines, runner-up and thresholds.

    Raises:
        ModelError, BundleError, PolicyError, ConfigError: what was asked cannot be planned; the message says why.
    """
    options = _options(
        dims=dims,
        shapes=shapes,
        ranges=ranges,
        listed=listed,
        catalogues=catalogues,
        regions=regions,
        targets=targets,
        choices=choices,
        expected_tokens=expected_tokens,
        max_tokens=max_tokens,
        profiles=profiles,
    )
    return plan_model(
        _source(model, example_inputs, dynamic_shapes, trusted=trusted),
        _names(tiers) if tiers is not None else None,
        devices=devices,
        links=links,
        sla=_sla(sla),
        options=options,
        what_ifs=list((what_if or {}).items()),
        thresholds=thresholds,
        frontier=pareto,
    )


def _source(model: Any, example_inputs: Sequence[Any] | None, dynamic_shapes: Any, *, trusted: bool) -> Source:
    return Source(Path(model) if isinstance(model, str | PathLike) else model, example_inputs, dynamic_shapes, trusted)


def _names(tiers: str | Sequence[str]) -> Sequence[str]:
    return [name.strip() for name in tiers.split(",")] if isinstance(tiers, str) else tiers


def _options(
    *,
    dims: Mapping[str, int] | None,
    shapes: Mapping[str, Sequence[int]] | None,
    ranges: Mapping[str, tuple[int, int]] | None,
    listed: Mapping[str, Sequence[int]] | None,
    catalogues: Sequence[AnyPath],
    regions: Mapping[str, str] | None,
    targets: Mapping[str, Sequence[str]] | None,
    choices: Mapping[str, Mapping[str, str]] | None,
    expected_tokens: int,
    max_tokens: int,
    profiles: Mapping[str, AnyPath] | None,
) -> BuildOptions:
    """What `build` and `plan` take, as the layers below do; None is nothing."""
    return BuildOptions(
        dims=dims or {},
        shapes={name: tuple(shape) for name, shape in (shapes or {}).items()},
        ranges=ranges or {},
        listed={name: tuple(sorted(set(sizes))) for name, sizes in (listed or {}).items()},
        catalogues=[Path(path) for path in catalogues],
        regions=regions or {},
        targets={tier: tuple(names) for tier, names in (targets or {}).items()},
        choices=choices or {},
        expected_tokens=expected_tokens,
        max_tokens=max_tokens,
        profiles={tier: Path(path) for tier, path in (profiles or {}).items()},
    )


def _sla(given: SLA | Mapping[str, Any] | AnyPath | None) -> SLA | None:
    if given is None or isinstance(given, SLA):
        return given
    if isinstance(given, Mapping):
        return parse_sla(given)
    if not isinstance(given, str | PathLike):
        raise PolicyError(f"SLA: expected an SLA, a mapping or the path of a file, came {type(given).__name__}")
    path = Path(given)
    try:
        return parse_sla(path.read_bytes(), str(path))
    except OSError as error:
        raise PolicyError(f"cannot read the SLA {path}: {error.strerror}") from None
