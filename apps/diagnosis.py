"""Why a segment of an artifact departs: what to bisect it with, and what the finding means for the artifact.

ONNX Runtime's artifacts are ONNX files, so the stored file itself is cut. What other targets stored cannot be: their
parts are compiled anew, with the choices that the artifact records. If a rebuild agrees, what was stored is at fault.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import onnx
import onnx_ir as ir

from flagsplit import flagir
from flagsplit.apps.bisection import Suspect, find_break, find_fault
from flagsplit.apps.deviation import Tolerance
from flagsplit.apps.fault import Cause, Fault, advice_for
from flagsplit.apps.part_engines import NodeLine, PartEngine, ReferenceEngine, TargetEngine
from flagsplit.apps.plan_graphs import PlanGraphs, original_name
from flagsplit.apps.tolerances import coarseness
from flagsplit.apps.verification import Sample
from flagsplit.errors import FlagsplitError, ModelError
from flagsplit.flagir import Segment
from flagsplit.flagir.diff import changes
from flagsplit.flagir.placement import clear_placements
from flagsplit.flagir.tensor_data import check_tensor
from flagsplit.runtime.bundle import GRAPH_NAME, REFERENCE_TARGET, WEIGHTS_MEMBER, Bundle
from flagsplit.runtime.manifest import TierArtifact
from flagsplit.targets.catalogue import get_target
from flagsplit.targets.interface import CHOICE_PREFIX, Array, CompileOptions, LoadOptions, StoredArtifact

_MOST_CHANGES = 3


@dataclass(frozen=True, eq=False)
class Departure:
    """A segment that departs, or breaks.

    Attributes:
        tier: position of its tier.
        made: the artifact.
        segment: the segment.
        given, expected: its inputs and outputs by the reference, for a sample on which it departs.
        allowed: what may differ.
        broken: whether it did not load or run at all.
    """

    tier: int
    made: TierArtifact
    segment: Segment
    given: Mapping[str, Array]
    expected: Mapping[str, Array]
    allowed: Tolerance
    broken: bool = False


class Diagnosis:
    """Finds out why segments of a bundle depart.

    Args:
        bundle: the bundle.
        graphs: its plans, cut.
        samples: what it is verified on; compilers get them in place of those of the build.
        host: choices of this host.
        told: called with what is being done.
    """

    def __init__(
        self,
        bundle: Bundle,
        graphs: PlanGraphs,
        samples: Sequence[Sample],
        host: LoadOptions,
        told: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._bundle, self._graphs, self._samples = bundle, graphs, samples
        self._host, self._told = host, told

    def of(self, case: Departure) -> Fault:
        """Where and why a segment departs; a fault of cause `UNKNOWN` says why that could not be found."""
        try:
            fault = self._of_onnx(case) if case.made.target == REFERENCE_TARGET else self._of_compiled(case)
        except FlagsplitError as error:
            fault = Fault(Cause.UNKNOWN, note=str(error))
        tier, chosen = self._bundle.tiers[case.tier], coarseness(case.made.target, case.made.options)
        others = [name for name in (*self._bundle.tiers[case.tier + 1 :], *self._bundle.tiers) if name != tier]
        return replace(fault, advice=advice_for(fault, tier, case.made.target, chosen, next(iter(others), "")))

    def _of_compiled(self, case: Departure) -> Fault:
        """Of parts that the target compiles anew."""
        tier = self._bundle.facts.tiers[case.tier]
        weights, nominal = self._bundle.folder / WEIGHTS_MEMBER, self._bundle.facts.nominal_dims
        options = CompileOptions(
            numerics="fast" if case.made.options.get("numerics") == "fast" else "exact",
            dims=nominal,
            ranges=self._bundle.facts.dim_ranges,
            listed={name: tuple(sizes) for name, sizes in self._bundle.facts.dim_sizes.items()},
            device=tier.device,
            choices=_chosen(case.made),
            samples=[sample.tensors for sample in self._samples if _sizes_of(self._bundle, sample) == nominal],
            real_samples=not all(sample.made_up for sample in self._samples),
            weights=weights if weights.is_file() else None,
        )
        target = get_target(case.made.target)
        version = target.describe().version
        engine = TargetEngine(self._bundle, self._graphs.model, target, options, self._host)
        fault = self._search(case, engine)
        if fault.cause is not Cause.STORED:
            return fault
        if version != case.made.version:
            return replace(fault, note=f"it was built with version {case.made.version}, rebuilt with {version}")
        recipe = self._bundle.facts.recipe or {}
        if recipe.get("samples"):
            return replace(fault, note=_OTHER_SAMPLES)
        return fault

    def _of_onnx(self, case: Departure) -> Fault:
        """Of parts of the stored ONNX file."""
        made, weights = case.made, self._bundle.folder / WEIGHTS_MEMBER
        artifact = StoredArtifact(self._bundle.folder / made.folder, made.entries, made.options, weights)
        try:
            model = _parse(artifact.entry(case.segment.id), weights)
        except ModelError as error:
            return Fault(Cause.STORED, note=str(error))
        rebuilt = flagir.extract(self._graphs.model, case.segment)
        found = [str(change) for change in changes(rebuilt, model)]
        if not found:
            return self._search(case, ReferenceEngine(self._bundle, self._graphs.model, self._host))
        more = f", and {len(found) - _MOST_CHANGES} more" if len(found) > _MOST_CHANGES else ""
        differs = f"a rebuild | what is stored: {'; '.join(found[:_MOST_CHANGES])}{more}"
        if {node.name for node in model.graph} != set(case.segment.nodes):
            return Fault(Cause.STORED, note=differs)
        fault = self._search(case, ReferenceEngine(self._bundle, model, self._host))
        return replace(fault, cause=Cause.STORED, note="; ".join(filter(None, (differs, fault.note))))

    def _search(self, case: Departure, engine: PartEngine) -> Fault:
        line = NodeLine(self._graphs.model, case.segment)
        names = [node.name or "" for node in line.nodes]
        found = {name: self._blocks.get(original_name(name), "") for name in names}
        suspect = Suspect(line, case.given, case.expected, case.allowed, {k: v for k, v in found.items() if v})
        find = find_break if case.broken else find_fault
        return find(suspect, ReferenceEngine(self._bundle, self._graphs.model, self._host), engine, self._told)

    @cached_property
    def _blocks(self) -> dict[str, str]:
        """The name of the block of each node of the model."""
        model = flagir.load((self._bundle.folder / GRAPH_NAME).parent)
        clear_placements(model)
        graph = flagir.block_graph(model, dict(self._bundle.facts.nominal_dims))
        return {node: block.name for block in graph.blocks for node in block.nodes}


_OTHER_SAMPLES = (
    "it was calibrated on the samples of its build, the rebuild on those of this run, which tell more of them; "
    "build with more samples that are like these"
)


def _sizes_of(bundle: Bundle, sample: Sample) -> dict[str, int]:
    """The sizes that a request has, by symbol."""
    return {
        dim: size
        for tensor in bundle.inputs
        for dim, size in zip(tensor.shape, sample.tensors[tensor.name].shape, strict=True)
        if isinstance(dim, str)
    }


def _chosen(made: TierArtifact) -> dict[str, str]:
    """What was chosen for a target, as its artifact records it; what names values of the whole model is left out."""
    free = get_target(made.target).describe().free_choices
    chosen = {n.removeprefix(CHOICE_PREFIX): value for n, value in made.options.items() if n.startswith(CHOICE_PREFIX)}
    return {name: value for name, value in chosen.items() if name not in free}


def _parse(file: Path, weights: Path) -> ir.Model:
    """A segment's file, its large tensors in the shared weights file.

    Raises:
        ModelError: it is none, or a tensor is damaged.
    """
    try:
        model = ir.serde.deserialize_model(onnx.load_model_from_string(file.read_bytes()))
    except Exception as error:  # protobuf, onnx_ir and the file system each raise their own
        text = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        raise ModelError(f"what is stored is no ONNX model: {text}") from error
    ir.external_data.set_base_dir(model.graph, weights.parent)
    for value in model.graph.initializers.values():
        check_tensor(value.const_value, weights.parent.resolve())
    return model
