"""What targets of chips have in common: they compile chip parts, and the host runs what lies beside them.

A chip target says what it takes, compiles chip parts and loads one; this class makes a `Target` of that. An artifact
has, beside the chip's own files, `segments.json` (`SegmentTable`), which tells an app what to call in which order, and
the host's parts (`flagsplit.targets.chip_parts`) as ONNX files under `host/`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir

from flagsplit import flagir
from flagsplit.flagir import Segment
from flagsplit.flagir.atoms import Chains, atoms_of
from flagsplit.targets.by_size import BySize
from flagsplit.targets.chip_parts import ChipPart, SplitSegment
from flagsplit.targets.interface import (
    CHOICE_PREFIX,
    Array,
    Artifact,
    CompileOptions,
    Executable,
    LoadOptions,
    StoredArtifact,
    SupportVerdict,
    TargetDescription,
    TensorSpec,
)
from flagsplit.targets.onnx_engine import open_onnx
from flagsplit.targets.open_parts import split_open
from flagsplit.targets.open_sizes import OpenSizes, sizes_to_build_for
from flagsplit.targets.part_samples import with_samples
from flagsplit.targets.segment_table import (
    TABLE_NAME,
    ChipCall,
    SegmentCalls,
    SegmentTable,
    StatefulCall,
    TableTensor,
    read_table,
)


@dataclass(frozen=True)
class ChipArtifact:
    """What a chip's compiler made of all chip parts of one tier.

    Attributes:
        files: content by path, relative to the tier's folder of this target; or a file to copy it from.
        calls: for each segment, how its chip part is called.
        options: what `load_part` needs to know again.
        sized: for segments that have a program for each size, how these are called; the nominal one is in `calls` too.
        stateful: for segments that have one, how the twin of the chip part is called that holds states.
    """

    files: Mapping[str, bytes | Path]
    calls: Mapping[str, ChipCall]
    options: Mapping[str, str] = field(default_factory=dict)
    sized: Mapping[str, Sequence[ChipCall]] = field(default_factory=dict)
    stateful: Mapping[str, StatefulCall] = field(default_factory=dict)


class ChipTarget(ABC):
    """A target whose segments a chip runs, but for their ends. Its SDK is imported inside the methods that need it.

    Attributes:
        loads_all_sizes: whether the programs of all listed sizes are loaded with a segment, as where loading compiles.
    """

    loads_all_sizes: bool = False

    @abstractmethod
    def describe(self) -> TargetDescription:
        """Its capabilities."""

    @abstractmethod
    def supports(self, node: ir.Node) -> SupportVerdict:
        """Whether it takes a node of fixed shapes."""

    @abstractmethod
    def compile_parts(self, parts: Sequence[ChipPart], options: CompileOptions) -> ChipArtifact:
        """Compile all chip parts of one tier, equal weights stored once.

        Raises:
            ModelError: a part cannot be compiled; the message names the node.
            ConfigError: the SDK is not installed, or a choice is none that there is.
        """

    @abstractmethod
    def load_part(self, file: Path, call: ChipCall, options: Mapping[str, str], host: LoadOptions) -> Executable:
        """Load one chip part, under the names of the graph's values.

        Args:
            file: the file or folder that holds it.
            call: how it is called.
            options: `ChipArtifact.options`.
            host: choices of this host.

        Raises:
            BundleError: it cannot be loaded.
            ConfigError: the SDK is not installed.
        """

    def in_pieces(self, options: CompileOptions) -> bool:  # noqa: ARG002 for those who override it
        """Whether what several segments have in common is compiled as pieces of its own, which they run in turn.

        For a compiler that stores equal weights once for each program.
        """
        return False

    def wants_rest(self, options: CompileOptions) -> bool:  # noqa: ARG002 for those who override it
        """Whether parts are to know what comes after them; see `ChipPart.rest`."""
        return False

    quantized_ends = False
    """Whether the host quantizes what comes in and takes back what goes out."""

    def at_ends(self, split: SplitSegment) -> SplitSegment:
        """A segment as the host and the chip share it; for a chip that leaves more to the host than codecs."""
        return split

    def compile(self, model: ir.Model, segments: Sequence[Segment], options: CompileOptions) -> Artifact:
        """Compile all segments of one tier; see `Target.compile`."""
        divided = self.in_pieces(options) and len(segments) > 1
        chains = atoms_of(model, segments, {}) if divided else {each.id: (each,) for each in segments}
        pieces = list({piece.id: piece for chain in chains.values() for piece in chain}.values())
        shapes = self.describe().shapes(options.choices)
        sizes = sizes_to_build_for(shapes, model, [*segments, *pieces], options)
        splits = [self.at_ends(split) for split in split_open(model, pieces, sizes, self.quantized_ends)]
        parts = [split.chip for split in splits if split.chip is not None]
        made = self.compile_parts(with_samples(model, parts, options, self.wants_rest(options)), options)
        files = dict(made.files)
        table: dict[str, SegmentCalls] = {}
        for segment, split in zip(pieces, splits, strict=True):
            before, after = _host_files(split)
            files.update(before)
            files.update(after)
            table[segment.id] = SegmentCalls(
                inputs=[_table_tensor(name, sizes) for name in segment.inputs],
                outputs=[_table_tensor(name, sizes) for name in segment.outputs],
                before=list(before),
                chip=made.calls.get(segment.id),
                after=list(after),
                sized=list(made.sized.get(segment.id, ())),
                stateful=made.stateful.get(segment.id),
            )
        table |= _calls_in_turn(segments, chains, sizes)
        entries = {segment.id: table[chains[segment.id][0].id].files[0] for segment in segments}
        files[TABLE_NAME] = SegmentTable(segments=table, dims=sizes.table()).to_json()
        chosen = {f"{CHOICE_PREFIX}{name}": value for name, value in options.choices.items()}
        return Artifact(files, entries, {"numerics": options.numerics, **chosen, **made.options})

    def load(self, artifact: StoredArtifact, segment: str, host: LoadOptions) -> Executable:
        """Load one segment, the host's parts included; see `Target.load`."""
        artifact.entry(segment)
        table = read_table(artifact.folder / TABLE_NAME)
        calls = table.calls_of(segment)
        with ExitStack() as opened:
            parts: list[Executable] = []
            for piece in table.pieces_of(calls):
                for part in self._open(artifact, piece, host):
                    opened.callback(part.close)
                    parts.append(part)
            opened.pop_all()
        return PartsInTurn(parts, [spec.to_spec() for spec in calls.inputs], [spec.to_spec() for spec in calls.outputs])

    def _open(self, artifact: StoredArtifact, calls: SegmentCalls, host: LoadOptions) -> Iterator[Executable]:
        for name in calls.before:
            yield open_onnx(artifact.inside(name), artifact.weights, "exact", host.threads)
        if calls.chip is not None:

            def load(call: ChipCall) -> Executable:
                return self.load_part(artifact.inside(call.file), call, artifact.options, host)

            at_once = self.loads_all_sizes
            yield BySize(calls.sized, load, all_at_once=at_once) if calls.sized else load(calls.chip)
        for name in calls.after:
            yield open_onnx(artifact.inside(name), artifact.weights, "exact", host.threads)


class PartsInTurn:
    """Executables that run one after another as one, each on what was there or made before.

    Args:
        parts: in the order in which they run.
        inputs, outputs: of the whole.
    """

    def __init__(
        self, parts: Sequence[Executable], inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
    ) -> None:
        self._parts = list(parts)
        self._inputs, self._outputs = tuple(inputs), tuple(outputs)
        self._takes = [[spec.name for spec in part.inputs] for part in parts]

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._outputs

    def run(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        values = dict(tensors)
        for part, names in zip(self._parts, self._takes, strict=True):
            values.update(part.run({name: values[name] for name in names}))
        return {spec.name: values[spec.name] for spec in self._outputs}

    def close(self) -> None:
        for part in self._parts:
            part.close()


def _calls_in_turn(segments: Sequence[Segment], chains: Chains, sizes: OpenSizes) -> dict[str, SegmentCalls]:
    """The calls of the segments that are pieces: several, or one that gives more than the segment does."""
    return {
        segment.id: SegmentCalls(
            inputs=[_table_tensor(name, sizes) for name in segment.inputs],
            outputs=[_table_tensor(name, sizes) for name in segment.outputs],
            pieces=[piece.id for piece in chains[segment.id]],
        )
        for segment in segments
        if chains[segment.id] != (segment,)
    }


def _table_tensor(name: str, sizes: OpenSizes) -> TableTensor:
    dtype = sizes.types[0].types[name].dtype
    return TableTensor(name=name, dtype=dtype.numpy().name, shape=sizes.shape_of(name))


def _host_files(split: SplitSegment) -> tuple[dict[str, bytes], dict[str, bytes]]:
    before = {} if split.before is None else {f"host/{split.segment}.before.onnx": flagir.to_bytes(split.before)}
    after = {f"host/{split.segment}.after{at}.onnx": flagir.to_bytes(part) for at, part in enumerate(split.after)}
    return before, after
