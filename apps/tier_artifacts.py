"""Compiling what a tier runs for each of its targets.

ONNX Runtime's artifact has all parts, atoms included; chips have the segments that requests run.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from flagsplit.apps.calibration import calibration_samples
from flagsplit.apps.deployment import Deployment
from flagsplit.apps.graph_tensors import tensor_of
from flagsplit.apps.groundwork import BuildOptions, Groundwork
from flagsplit.apps.node_verdicts import NodeVerdicts
from flagsplit.apps.plan_graphs import original_name
from flagsplit.apps.target_choice import TierTargets
from flagsplit.apps.tier_parts import TierParts
from flagsplit.errors import ModelError
from flagsplit.flagir import Segment
from flagsplit.runtime.archive import Member
from flagsplit.runtime.bundle import REFERENCE_TARGET
from flagsplit.runtime.inputs import check_inputs, random_inputs
from flagsplit.runtime.manifest import TierArtifact
from flagsplit.splitter.costs import Tier
from flagsplit.targets.catalogue import get_target
from flagsplit.targets.interface import Array, Artifact, CompileOptions, Target


@dataclass(frozen=True)
class Compiled:
    """What one target made for a tier."""

    target: Target
    artifact: Artifact

    def entry(self, tier: str, parts: TierParts, members: dict[str, Member]) -> TierArtifact:
        """Describe it for the manifest, and add its files to the bundle's members."""
        description = self.target.describe()
        folder = f"tiers/{tier}/{description.name}"
        members.update({f"{folder}/{name}": data for name, data in self.artifact.files.items()})
        entries = dict(self.artifact.entries)
        chains = parts.chains if description.name == REFERENCE_TARGET else {}
        return TierArtifact(
            target=description.name,
            version=description.version,
            folder=folder,
            entries=entries,
            options=dict(self.artifact.options),
            chains={segment: list(chain) for segment, chain in chains.items()},
            weight_bytes={part: size for part, size in parts.weight_bytes.items() if part in entries},
        )


def compile_tier(
    model: ir.Model,
    parts: TierParts,
    tier: Tier,
    chosen: TierTargets,
    ground: Groundwork,
    options: BuildOptions,
    given: CompileOptions,
) -> list[Compiled]:
    """Compile the parts of a tier, for ONNX Runtime first, then for its targets in their order.

    Args:
        model: the model that the parts were cut from.
        parts: of the tier.
        tier: its name and device.
        chosen: its targets.
        ground: what they said of the nodes.
        options: of the build.
        given: of the compilation, whatever the tier and the target are.

    Raises:
        ModelError: a target that has to take a segment cannot; the message names tier, target and node.
        PolicyError: a choice is none that the target has.
    """
    made = [_compile(REFERENCE_TARGET, model, parts.segments, tier, options, given)]
    for name in chosen.names:
        if name == REFERENCE_TARGET:
            continue
        segments = parts.segments[: parts.whole]
        verdicts = ground.verdicts[tier.name][name]
        if name not in chosen.required:
            segments = [segment for segment in segments if _takes(verdicts, segment)]
        elif not chosen.each:  # a decoder's loop runs beside the chip
            segments = [segment for segment in segments if _takes(verdicts, segment) or not _loops(model, segment)]
        if segments:
            made.append(_compile(name, model, segments, tier, options, given))
    return made


def compile_options(
    model: ir.Model, weights: Path, deployment: Deployment, ground: Groundwork, options: BuildOptions
) -> CompileOptions:
    """What holds for the compilation of all tiers.

    Args:
        model: the canonical model.
        weights: the file of its large weights.
        deployment: tiers and targets.
        ground: sizes.
        options: of the build; samples are made up only if some tier has a chip.

    Raises:
        InputError: samples cannot be read or do not fit the model, or none can be made up.
    """
    samples: list[dict[str, Array]] = []
    if any(chosen.are_chips for chosen in deployment.targets):
        declared = [tensor_of(value) for value in model.graph.inputs]
        nominal = {name: (size, size) for name, size in ground.dims.items()}
        samples = calibration_samples(declared, ground.dims, options.samples)
        samples = [check_inputs(declared, sample, nominal) for sample in samples]
        samples = samples or [random_inputs(declared, ground.dims)]
    return CompileOptions(
        options.numerics,
        ground.dims,
        options.ranges,
        options.listed,
        samples=samples,
        real_samples=bool(options.samples),
        weights=weights if weights.is_file() else None,
    )


def _compile(
    name: str,
    model: ir.Model,
    segments: Sequence[Segment],
    tier: Tier,
    options: BuildOptions,
    given: CompileOptions,
) -> Compiled:
    target = get_target(name)
    choices = options.choices.get(name, {})
    wanted = replace(given, device=tier.device.name, choices=choices)
    try:
        return Compiled(target, target.compile(model, segments, wanted))
    except ModelError as error:
        raise ModelError(
            f"{name} cannot compile what tier {tier.name} runs: {error}; pin the node to another tier in the SLA, "
            f"or leave the target out with --target {tier.name}={REFERENCE_TARGET}"
        ) from error


def _loops(model: ir.Model, segment: Segment) -> bool:
    return any(node.op_type == "Loop" for node in model.graph if node.name in segment.nodes)


def _takes(verdicts: NodeVerdicts, segment: Segment) -> bool:
    return verdicts.takes([original_name(node) for node in segment.nodes])
