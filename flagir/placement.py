"""Plans on the graph, in the standard's own words: which tier runs each node.

A plan is one `ModelProto.configuration` whose devices are the tiers; `NodeProto.device_configurations` puts a node in
one by `pipeline_stage`, the tier's position. Several plans can sit on one graph.
"""

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from flagsplit.errors import ModelError


def write_placement(model: ir.Model, plan: str, tiers: Sequence[str], placement: Mapping[str, int]) -> None:
    """Put a plan on the graph.

    Args:
        model: a canonical model.
        plan: the plan's name; the model has none of that name yet.
        tiers: names of the tiers, in the order of the line.
        placement: for each node of the main graph, its tier's position.

    Raises:
        ModelError: the model has the plan already, or a node has no tier or one that does not exist.
    """
    if plan in plans_on(model):
        raise ModelError(f"expected a new plan, the model has {plan!r} already")
    for node in model.graph:
        tier = placement.get(node.name or "")
        if tier is None or not 0 <= tier < len(tiers):
            raise ModelError(f"plan {plan!r} gives node {node.name!r} tier {tier}, expected 0 to {len(tiers) - 1}")
    configuration = model.add_device_configuration(plan, device_names=tuple(tiers))
    for node in model.graph:
        node.set_pipeline_stage(configuration, placement[node.name or ""])


def clear_placements(model: ir.Model) -> None:
    """Take all plans off a graph."""
    for plan in plans_on(model):
        model.remove_device_configuration(plan, cascade=True)


def plans_on(model: ir.Model) -> dict[str, tuple[str, ...]]:
    """The plans that a graph carries, each with its tiers."""
    return {
        configuration.name: tuple(configuration.device_names)
        for configuration in model.device_configurations
        if configuration.name
    }


def name_of(entry: ir.NodeDeviceConfiguration) -> str:
    """The plan that a node's entry belongs to; empty if it belongs to none."""
    return entry.configuration.name or "" if entry.configuration is not None else ""


def read_placement(model: ir.Model, plan: str) -> dict[str, int]:
    """The tier of each node under a plan, as `write_placement` took it.

    Raises:
        ModelError: the graph does not carry the plan, or does not place every node.
    """
    tiers = plans_on(model).get(plan)
    if tiers is None:
        raise ModelError(f"expected one of the plans {', '.join(plans_on(model)) or '(none)'}, came {plan!r}")
    placement: dict[str, int] = {}
    for node in model.graph:
        for entry in node.device_configurations:
            if name_of(entry) == plan and entry.pipeline_stage is not None:
                placement[node.name or ""] = entry.pipeline_stage
        if not 0 <= placement.get(node.name or "", -1) < len(tiers):
            raise ModelError(f"plan {plan!r} does not place node {node.name!r} in one of its tiers")
    return placement
