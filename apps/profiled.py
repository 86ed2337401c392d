"""Costs for planning from the user's profiles: the one door for every command that takes `--profile`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flagsplit.apps.deployment import Deployment
from flagsplit.errors import PolicyError
from flagsplit.flagir import BlockGraph
from flagsplit.splitter.calibration import Calibration, calibrated_costs
from flagsplit.splitter.costs import CostModel, Handicaps, model_costs
from flagsplit.splitter.profiles import Profile, load_profile
from flagsplit.targets.interface import Numerics


@dataclass(frozen=True, eq=False)
class ProfiledCosts:
    """The costs to plan with.

    Attributes:
        costs: None where there is no profile, and the model stands.
        calibrations: by tier name, which of its blocks were measured and how the others were found.
    """

    costs: CostModel | None
    calibrations: Mapping[str, Calibration]


def load_profiles(files: Mapping[str, Path], deployment: Deployment, numerics: Numerics) -> dict[str, Profile]:
    """Read the profiles of tiers, and check that they are about what is being built.

    Args:
        files: by tier name.
        deployment: the tiers and their targets.
        numerics: of the build.

    Raises:
        PolicyError: a tier is unknown, a file is wrong, or it was measured through another target or numerics.
    """
    targets = dict(zip((tier.name for tier in deployment.tiers), deployment.targets, strict=True))
    found: dict[str, Profile] = {}
    for name, path in files.items():
        if name not in targets:
            raise PolicyError(f"--profile names tier {name!r}, expected one of {', '.join(targets)}")
        profile = load_profile(path)
        for what, expected, came in (
            ("target", targets[name].names[0], profile.target),
            ("numerics", numerics, profile.numerics),
        ):
            if came != expected:
                raise PolicyError(
                    f"{path}: {what}: expected {expected!r}, as tier {name} is built, came {came!r}; measure again"
                )
        found[name] = profile
    return found


def profiled_costs(
    graph: BlockGraph,
    deployment: Deployment,
    profiles: Mapping[str, Profile],
    handicaps: Mapping[str, Handicaps] | None = None,
) -> ProfiledCosts:
    """The costs of a graph where some tiers have profiles.

    Args:
        graph: its blocks.
        deployment: tiers and links.
        profiles: by tier name, from `load_profiles`.
        handicaps: as `model_costs` takes it.
    """
    if not profiles:
        return ProfiledCosts(None, {})
    modelled = model_costs(graph, deployment.tiers, deployment.links, handicaps)
    costs, calibrations = calibrated_costs(modelled, graph, deployment.tiers, profiles)
    return ProfiledCosts(costs, calibrations)
