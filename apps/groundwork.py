"""What planning and building need of a model: its blocks, open dimensions, what the targets of the tiers take, costs.

Nothing is written here. `flagsplit.apps.assembly` goes on to a bundle, `flagsplit.apps.planning` to an explanation.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir

from flagsplit import flagir
from flagsplit.apps.deployment import Deployment
from flagsplit.apps.extra_plans import ExtraPlans
from flagsplit.apps.graph_tensors import check_ends, homebound
from flagsplit.apps.node_verdicts import Judge, NodeVerdicts, first_reason
from flagsplit.apps.open_shapes import check_shapes
from flagsplit.apps.profiled import ProfiledCosts, profiled_costs
from flagsplit.apps.target_choice import check_choices
from flagsplit.apps.tier_parts import ResidencyChoice
from flagsplit.errors import ConfigError, PolicyError
from flagsplit.flagir import BlockGraph, Skeleton
from flagsplit.runtime.bundle import REFERENCE_TARGET
from flagsplit.splitter.costs import CostModel, Handicaps, model_costs
from flagsplit.splitter.problem import Problem, make_problem
from flagsplit.splitter.profiles import Profile
from flagsplit.splitter.sla import SLA
from flagsplit.targets.cloud.ort_providers import devices_named
from flagsplit.targets.interface import Numerics


@dataclass(frozen=True)
class BuildOptions:
    """Choices of a build beside the deployment and the SLA.

    Attributes:
        dims: nominal size of symbolic dimensions, by symbol.
        shapes: nominal shape of inputs, by input; another way to say the same.
        ranges: smallest and largest size of symbolic dimensions, by symbol. The graph is checked at both ends, and
            requests outside are refused. The nominal size is the largest unless `dims` says otherwise.
        listed: the only sizes of symbolic dimensions, by symbol; otherwise as `ranges`.
        numerics: "exact" makes split runs equal the unsplit model bit for bit; "fast" lets engines round differently.
        catalogues: files with devices and links of the user's own.
        regions: where tiers draw their power, by tier; see `describe_deployment`.
        costs: given the graph and the modelled costs, what to plan with instead, for instance measured seconds.
        extra_plans: further placements to ship, by name.
        profiles: file with measured times by tier name, from `flagsplit profile`.
        residency: whether segments come as atoms too, so that a tier can hold each weight once whatever plan it runs.
            "auto": where the whole segments of all pooled plans are more than the tier's memory.
        targets: compiler back ends by tier, where they are not the device's own; see `flagsplit.apps.target_choice`.
        choices: what targets let a build choose, by target: `{"coreml": {"precision": "fp32"}}`.
        samples: inputs of the nominal sizes, to calibrate chips with and to check their ranges, as `.npz` files or what
            else `flagsplit.apps.calibration` reads. Without any, seeded random ones are made up, which tell less.
        keep_samples: whether the bundle has the samples too, so that it can be built again as well as it was.
        float_products: whether products that are quantized on the fly are turned into floating-point ones, which chips
            take; the result is the model that runs everywhere, and the reference.
        expected_tokens: how many tokens a generative program is expected to make, or how often the loops of another
            model run; 0 leaves that to the program's facts or to the model.
        max_tokens: most tokens that the linked model of a program makes; 0: as many as its facts allow.
    """

    dims: Mapping[str, int] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    ranges: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    listed: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    numerics: Numerics = "exact"
    catalogues: Sequence[Path] = ()
    regions: Mapping[str, str] = field(default_factory=dict)
    costs: Callable[[BlockGraph, CostModel], CostModel] | None = None
    extra_plans: ExtraPlans | None = None
    profiles: Mapping[str, Path] = field(default_factory=dict)
    residency: ResidencyChoice = "auto"
    targets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    choices: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    samples: Sequence[str] = ()
    keep_samples: bool = False
    float_products: bool = False
    expected_tokens: int = 0
    max_tokens: int = 0

    @property
    def spans(self) -> dict[str, tuple[int, int]]:
        """Smallest and largest size of all symbols that have a range or a list."""
        return {name: (min(sizes), max(sizes)) for name, sizes in self.listed.items()} | dict(self.ranges)


@dataclass(frozen=True, eq=False)
class Groundwork:
    """What planning needs to know of a model.

    Attributes:
        dims: nominal size of its symbolic dimensions.
        graph: its blocks.
        verdicts: of each target of each tier, what it says of the nodes, by tier name and target.
        supports: by tier name, for each block why its targets cannot take it, or None.
        handicaps: by tier name, what its first target does not run at its best.
        ranges: sizes that requests may have, by symbol: the user's, or the nominal size alone where a target takes
            fixed shapes.
        profiled: costs from the user's profiles, if there are any.
    """

    dims: dict[str, int]
    graph: BlockGraph
    verdicts: dict[str, dict[str, NodeVerdicts]]
    supports: dict[str, list[str | None]]
    handicaps: dict[str, Handicaps]
    ranges: dict[str, tuple[int, int]]
    profiled: ProfiledCosts


def prepare(
    model: ir.Model, deployment: Deployment, options: BuildOptions, profiles: Mapping[str, Profile]
) -> Groundwork:
    """Read off a canonical model what planning needs; nothing is compiled or written."""
    check_choices(options.choices)
    _check_providers(deployment, options)
    check_ends(model)
    skeleton = Skeleton(model)
    dims = flagir.nominal_dims(skeleton, _given_dims(skeleton, options))
    _check_sizes(skeleton, dims, options)
    graph = flagir.block_graph(model, dims, skeleton)
    for chosen in deployment.targets:
        check_shapes(chosen.names, options, skeleton.symbols)
    judge = Judge(model, dims, options.spans, options.choices)
    verdicts, supports, handicaps = {}, {}, {}
    for tier, chosen in zip(deployment.tiers, deployment.targets, strict=True):
        said = {name: judge.verdicts(name) for name in chosen.names}
        verdicts[tier.name] = said
        supports[tier.name] = [first_reason(block, [said[name] for name in chosen.required]) for block in graph.blocks]
        handicaps[tier.name] = said[chosen.names[0]].handicaps(graph)
    for index, why in homebound(model, graph, deployment.tiers[0].name).items():
        for tier in deployment.tiers[1:]:
            supports[tier.name][index] = supports[tier.name][index] or why
    ranges = options.spans
    if any(chosen.are_chips for chosen in deployment.targets):
        ranges = {name: (size, size) for name, size in dims.items()} | ranges
    profiled = profiled_costs(graph, deployment, profiles, handicaps)
    return Groundwork(dims, graph, verdicts, supports, handicaps, ranges, profiled)


def _check_providers(deployment: Deployment, options: BuildOptions) -> None:
    """A misspelled device would leave its tier to the CPU without a word."""
    named = devices_named(options.choices.get(REFERENCE_TARGET, {}).get("provider", ""))
    there = {tier.device.name for tier in deployment.tiers}
    if named - there:
        raise PolicyError(
            f"--choice ort.provider: expected devices of the tiers ({', '.join(sorted(there))}), "
            f"came {sorted(named - there)[0]!r}"
        )


def pose(ground: Groundwork, deployment: Deployment, sla: SLA, options: BuildOptions) -> Problem:
    """The placement problem of a model on a line of tiers."""
    graph, tiers, links = ground.graph, deployment.tiers, deployment.links
    costs = ground.profiled.costs or model_costs(graph, tiers, links, ground.handicaps)
    if options.costs is not None:
        costs = options.costs(graph, costs)
    return make_problem(graph, tiers, links, sla, ground.supports, costs, deployment.bypasses)


def _given_dims(skeleton: Skeleton, options: BuildOptions) -> dict[str, int]:
    """The sizes that the user named, one way or the other."""
    dims = flagir.dims_of_shapes(skeleton, options.shapes)
    wanted = {name: high for name, (_, high) in options.spans.items()} | dict(options.dims)
    for name, size in wanted.items():
        if dims.setdefault(name, size) != size:
            raise ConfigError(f"dimension {name!r} is {size} by name and {dims[name]} by the shapes; give one of them")
    return dims


def _check_sizes(skeleton: Skeleton, dims: Mapping[str, int], options: BuildOptions) -> None:
    """The graph must make sense at both ends of each range and at listed sizes, and the nominal size be among them."""
    for name, sizes in options.listed.items():
        if name in options.ranges:
            raise ConfigError(f"dimension {name!r} has both a range and a list of sizes; give one of them")
        if dims[name] not in sizes or min(sizes) < 1:
            told = ", ".join(map(str, sizes))
            raise ConfigError(f"dimension {name!r} is planned for {dims[name]}, which is none of its sizes {told}")
        for size in sizes:
            skeleton.types({**dims, name: size})
    for name, (low, high) in options.ranges.items():
        if not 1 <= low <= dims[name] <= high:
            raise ConfigError(f"dimension {name!r} is planned for {dims[name]}, outside its range {low}..{high}")
        for end in (low, high):
            skeleton.types({**dims, name: end})
