"""What planning and building need of a model: its blocks, open dimensions, what the targets of the tiers take, costs.

Nothing is written here. `flagsplit.apps.pipeline` goes on to a bundle, `flagsplit.apps.planning` to an explanation.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir

from flagsplit import flagir
from flagsplit.apps.deployment import Deployment
from flagsplit.apps.extra_plans import ExtraPlans
from flagsplit.apps.profiled import ProfiledCosts, profiled_costs
from flagsplit.apps.tier_parts import ResidencyChoice
from flagsplit.errors import ConfigError
from flagsplit.flagir import Block, BlockGraph, Skeleton
from flagsplit.splitter.costs import CostModel, model_costs
from flagsplit.splitter.problem import Problem, make_problem
from flagsplit.splitter.profiles import Profile
from flagsplit.splitter.sla import SLA
from flagsplit.targets.catalogue import get_target
from flagsplit.targets.interface import Numerics, Target, TargetDescription


@dataclass(frozen=True)
class BuildOptions:
    """Choices of a build beside the deployment and the SLA.

    Attributes:
        dims: nominal size of symbolic dimensions, by symbol.
        shapes: nominal shape of inputs, by input; another way to say the same.
        ranges: smallest and largest size of symbolic dimensions, by symbol. The graph is checked at both ends, and
            requests outside are refused. The nominal size is the largest unless `dims` says otherwise.
        numerics: "exact" makes split runs equal the unsplit model bit for bit; "fast" lets engines round differently.
        catalogues: files with devices and links of the user's own.
        regions: where tiers draw their power, by tier; see `describe_deployment`.
        costs: given the graph and the modelled costs, what to plan with instead, for instance measured seconds.
        extra_plans: further placements to ship, by name.
        profiles: file with measured times by tier name, from `flagsplit profile`.
        residency: whether segments come as atoms too, so that a tier can hold each weight once whatever plan it runs.
            "auto": where the whole segments of all pooled plans are more than the tier's memory.
    """

    dims: Mapping[str, int] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    ranges: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    numerics: Numerics = "exact"
    catalogues: Sequence[Path] = ()
    regions: Mapping[str, str] = field(default_factory=dict)
    costs: Callable[[BlockGraph, CostModel], CostModel] | None = None
    extra_plans: ExtraPlans | None = None
    profiles: Mapping[str, Path] = field(default_factory=dict)
    residency: ResidencyChoice = "auto"


@dataclass(frozen=True, eq=False)
class Groundwork:
    """What planning needs to know of a model.

    Attributes:
        dims: nominal size of its symbolic dimensions.
        graph: its blocks.
        targets: the compiler back end of each tier.
        supports: by tier name, for each block why its target cannot take it, or None.
        profiled: costs from the user's profiles, if there are any.
    """

    dims: dict[str, int]
    graph: BlockGraph
    targets: list[Target]
    supports: dict[str, list[str | None]]
    profiled: ProfiledCosts


def prepare(
    model: ir.Model, deployment: Deployment, options: BuildOptions, profiles: Mapping[str, Profile]
) -> Groundwork:
    """Read off a canonical model what planning needs; nothing is compiled or written."""
    skeleton = Skeleton(model)
    dims = flagir.nominal_dims(skeleton, _given_dims(skeleton, options))
    _check_ranges(skeleton, dims, options.ranges)
    graph = flagir.block_graph(model, dims, skeleton)
    targets = [get_target(name) for name in deployment.targets]
    supports = {
        tier.name: _verdicts(model, graph, target) for tier, target in zip(deployment.tiers, targets, strict=True)
    }
    return Groundwork(dims, graph, targets, supports, profiled_costs(graph, deployment, profiles))


def pose(ground: Groundwork, deployment: Deployment, sla: SLA, options: BuildOptions) -> Problem:
    """The placement problem of a model on a line of tiers."""
    graph, tiers, links, costs = ground.graph, deployment.tiers, deployment.links, ground.profiled.costs
    if options.costs is not None:
        costs = options.costs(graph, costs or model_costs(graph, tiers, links))
    return make_problem(graph, tiers, links, sla, ground.supports, costs, deployment.bypasses)


def _given_dims(skeleton: Skeleton, options: BuildOptions) -> dict[str, int]:
    """The sizes that the user named, one way or the other."""
    dims = flagir.dims_of_shapes(skeleton, options.shapes)
    wanted = {name: high for name, (_, high) in options.ranges.items()} | dict(options.dims)
    for name, size in wanted.items():
        if dims.setdefault(name, size) != size:
            raise ConfigError(f"dimension {name!r} is {size} by name and {dims[name]} by the shapes; give one of them")
    return dims


def _check_ranges(skeleton: Skeleton, dims: Mapping[str, int], ranges: Mapping[str, tuple[int, int]]) -> None:
    """The graph must make sense at both ends of each range, and the nominal size lie inside."""
    for name, (low, high) in ranges.items():
        if not 1 <= low <= dims[name] <= high:
            raise ConfigError(f"dimension {name!r} is planned for {dims[name]}, outside its range {low}..{high}")
        for end in (low, high):
            skeleton.types({**dims, name: end})


def _verdicts(model: ir.Model, graph: BlockGraph, target: Target) -> list[str | None]:
    """For each block, why the target cannot take it, or None."""
    description, reasons = target.describe(), dict[str, str]()
    for node in model.graph:
        verdict = target.supports(node)
        why = verdict.reason if not verdict.supported else _against(description, node)
        if why is not None:
            reasons[node.name or ""] = why
    return [_first_reason(block, reasons) for block in graph.blocks]


def _against(description: TargetDescription, node: ir.Node) -> str | None:
    """Why a target does not take the shapes of a node's tensors, or None."""
    for value in (*node.inputs, *node.outputs):
        dims = tuple(value.shape) if value is not None and value.shape is not None else ()
        opened = next((dim for dim in dims if not isinstance(dim, int)), None)
        if description.static_shapes and opened is not None and value is not None:
            return f"{description.name} takes fixed shapes only, and {opened} of {value.name!r} is open"
        if len(dims) > description.max_rank and value is not None:
            return f"{description.name} takes ranks up to {description.max_rank}, and {value.name!r} has {len(dims)}"
    return None


def _first_reason(block: Block, reasons: Mapping[str, str]) -> str | None:
    return next((reasons[node] for node in block.nodes if node in reasons), None)
