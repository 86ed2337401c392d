"""What a bundle was built from beside its model: the devices, links and choices, as its manifest records them.

A build writes a recipe, `flagsplit.apps.rebuild` follows it under another policy. Figures are written out, so neither
the user's catalogues and profiles nor the host that was measured are needed again. Format: `docs/bundle.md`.
"""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from flagsplit.apps.deployment import Deployment
from flagsplit.apps.groundwork import BuildOptions
from flagsplit.apps.target_choice import TierTargets
from flagsplit.apps.tier_parts import ResidencyChoice
from flagsplit.errors import BundleError, FlagsplitError
from flagsplit.flagir import BlockGraph
from flagsplit.runtime.bundle import Bundle
from flagsplit.splitter.costs import CostModel, Tier, check_costs
from flagsplit.splitter.devices import Device
from flagsplit.splitter.links import Link
from flagsplit.splitter.problem import Bypass
from flagsplit.splitter.sla import SLA, first_problem, parse_sla
from flagsplit.targets.catalogue import TARGETS
from flagsplit.targets.interface import Array, CompileOptions

COSTS_NAME = "costs.json"
"""The member with the costs that were planned with, where they are not what the devices' figures say."""

SAMPLES_FOLDER = "samples"
"""Where a bundle has the samples that it was built with, if it has them."""

_MAX_COSTS_BYTES = 256 << 20


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class _Tier(_Frozen):
    device: Device
    target: str
    targets: tuple[str, ...] = ()
    each: bool = True
    precision: str | None = None
    region: str
    carbon_g_per_kwh: float


class _Link(_Frozen):
    name: str
    up_bytes_per_s: float
    down_bytes_per_s: float
    rtt_s: float
    medium: str
    source: str
    up_loss: float
    down_loss: float


class _Bypass(_Frozen):
    near: int
    far: int
    link: _Link


class Recipe(_Frozen):
    """What the manifest calls `recipe`.

    Attributes:
        tiers: in the order of the line: the device's figures, the first target and, since 1.3, all of them, whether
            each of them takes all segments and in which precision it computes; the region and its emissions, g/kWh.
        links: of each tier but the first to the one before it; rates in B/s, times in s.
        bypasses: the links between others.
        numerics, residency: as given to the build.
        nodes_read: of the model as it was given.
        choices: since 1.3, what targets let a build choose, by target.
        extra_plans: names of plans that were asked for beside the pool; only who asked can make them.
        samples: since 1.4, how many samples the chips were calibrated with, made-up ones not counted.
        kept_samples: since 1.4, the members that have them, if the bundle does.
    """

    tiers: tuple[_Tier, ...]
    links: tuple[_Link, ...]
    bypasses: tuple[_Bypass, ...] = ()
    numerics: Literal["exact", "fast"]
    residency: ResidencyChoice
    nodes_read: int
    choices: dict[str, dict[str, str]] = {}
    extra_plans: tuple[str, ...] = ()
    samples: int = 0
    kept_samples: tuple[str, ...] = ()


def kept_samples(options: BuildOptions, samples: Sequence[Mapping[str, Array]]) -> dict[str, bytes]:
    """The members that have the samples of a build, if it keeps them."""
    if not options.keep_samples or not options.samples:
        return {}
    return {f"{SAMPLES_FOLDER}/{at:04}.npz": _npz(sample) for at, sample in enumerate(samples)}


def _npz(sample: Mapping[str, Array]) -> bytes:
    file = io.BytesIO()
    np.savez(file, **sample)  # type: ignore[arg-type]
    return file.getvalue()


def recipe_of(
    deployment: Deployment, options: BuildOptions, given: CompileOptions, nodes_read: int, extra: tuple[str, ...]
) -> dict[str, Any]:
    """What a manifest records of a build.

    Args:
        deployment: tiers, links and targets.
        options: of the build.
        given: of the compilation, with the samples.
        nodes_read: of the model as it was given.
        extra: names of plans beside the pool.
    """
    tiers = tuple(
        _Tier(
            device=tier.device,
            target=chosen.names[0],
            targets=chosen.names,
            each=chosen.each,
            precision=tier.precision,
            region=tier.region,
            carbon_g_per_kwh=tier.carbon_g_per_kwh,
        )
        for tier, chosen in zip(deployment.tiers, deployment.targets, strict=True)
    )
    recipe = Recipe(
        tiers=tiers,
        links=tuple(_Link(**asdict(link)) for link in deployment.links),
        bypasses=tuple(
            _Bypass(near=each.near, far=each.far, link=_Link(**asdict(each.link))) for each in deployment.bypasses
        ),
        numerics=options.numerics,
        residency=options.residency,
        nodes_read=nodes_read,
        choices={target: dict(given) for target, given in options.choices.items()},
        extra_plans=extra,
        samples=len(given.samples) if given.real_samples else 0,
        kept_samples=tuple(kept_samples(options, given.samples)),
    )
    return recipe.model_dump(mode="json")


def read_recipe(bundle: Bundle) -> Recipe | None:
    """The recipe of a bundle, None if it is older than format 1.2.

    Raises:
        BundleError: it is damaged, or of a flagsplit that knows more of devices.
    """
    if bundle.facts.recipe is None:
        return None
    try:
        recipe = Recipe.model_validate(bundle.facts.recipe)
    except ValidationError as error:
        raise _unusable(bundle, first_problem(error)) from None
    last = len(recipe.tiers) - 1
    if len(recipe.tiers) != len(bundle.tiers) or len(recipe.links) != last:
        raise _unusable(bundle, f"it has {len(recipe.tiers)} tiers and {len(recipe.links)} links")
    if any(not 0 <= each.near < each.far - 1 < last for each in recipe.bypasses):
        raise _unusable(bundle, "a by-pass joins tiers that it cannot")
    lost = [name for name in recipe.kept_samples if name not in bundle.facts.sizes]
    if lost:
        raise _unusable(bundle, f"it has no {lost[0]}")
    unknown = [name for tier in recipe.tiers for name in (tier.target, *tier.targets) if name not in TARGETS]
    if unknown:
        raise _unusable(bundle, f"this flagsplit has no target {unknown[0]!r}")
    return recipe


def deployment_of(bundle: Bundle, recipe: Recipe) -> Deployment:
    """The line of tiers that a bundle was built for.

    Raises:
        BundleError: a figure is none that can be.
    """
    try:
        return Deployment(
            tiers=tuple(
                Tier(
                    name,
                    tier.device,
                    tier.precision,
                    tier.target,
                    region=tier.region,
                    carbon_g_per_kwh=tier.carbon_g_per_kwh,
                )
                for name, tier in zip(bundle.tiers, recipe.tiers, strict=True)
            ),
            links=tuple(_link(link) for link in recipe.links),
            targets=tuple(TierTargets(tier.targets or (tier.target,), tier.each) for tier in recipe.tiers),
            bypasses=tuple(Bypass(each.near, each.far, _link(each.link)) for each in recipe.bypasses),
        )
    except FlagsplitError as error:
        raise _unusable(bundle, str(error)) from None


def recorded_sla(bundle: Bundle) -> SLA | None:
    """The policy that a bundle was built under, None if it is older than format 1.2.

    Raises:
        BundleError: this flagsplit does not know all of its rules.
    """
    if bundle.facts.sla is None:
        return None
    try:
        return parse_sla(bundle.facts.sla, "its SLA")
    except FlagsplitError as error:
        raise _unusable(bundle, str(error)) from None


def sla_data(sla: SLA) -> dict[str, Any]:
    """An SLA as a manifest has it: what is not the default."""
    return sla.model_dump(mode="json", exclude_defaults=True)


def costs_to_json(costs: CostModel) -> bytes:
    """The bytes of `costs.json`; every figure comes back as it is."""
    return json.dumps({name: _plain(getattr(costs, name)) for name in _figures()}, sort_keys=True).encode() + b"\n"


def recorded_costs(bundle: Bundle) -> Callable[[BlockGraph, CostModel], CostModel] | None:
    """The costs that a bundle was planned with, as `BuildOptions.costs`; None where devices and links say it all.

    Raises:
        BundleError: they are damaged; or, when they are called for, not those of the graph.
    """
    path = bundle.folder / COSTS_NAME
    if not path.is_file():
        return None
    try:
        if path.stat().st_size > _MAX_COSTS_BYTES:
            raise ValueError(f"over {_MAX_COSTS_BYTES} bytes")
        data = json.loads(path.read_bytes())
        costs = CostModel(**{name: _arrays(data[name]) for name in _figures()})
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise _unusable(bundle, f"{COSTS_NAME}: {error}") from None

    def planned_with(graph: BlockGraph, _: CostModel) -> CostModel:
        try:
            check_costs(costs, len(graph.blocks), len(bundle.tiers))
        except FlagsplitError as error:
            raise _unusable(bundle, f"{COSTS_NAME}: {error}") from None
        return costs

    return planned_with


def _figures() -> list[str]:
    return [each.name for each in fields(CostModel)]


def _plain(figure: Any) -> Any:
    return {name: _plain(each) for name, each in figure.items()} if isinstance(figure, Mapping) else figure.tolist()


def _arrays(data: Any) -> Any:
    if isinstance(data, dict):
        return {name: np.asarray(each, dtype=np.float64) for name, each in data.items()}
    return np.asarray(data, dtype=np.float64)


def _link(link: _Link) -> Link:
    return Link(**link.model_dump())


def _unusable(bundle: Bundle, why: str) -> BundleError:
    return BundleError(f"{bundle.path} cannot be built again: {why}; build it from its model")
