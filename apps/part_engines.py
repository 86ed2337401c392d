"""Running a part of a graph: as the reference does, or as a target does that compiles the part for it.

`flagsplit.apps.verify` and `flagsplit.apps.bisection` put parts together and compare.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import onnx_ir as ir

from flagsplit import flagir
from flagsplit.errors import BundleError, FlagsplitError, ModelError
from flagsplit.flagir import Segment
from flagsplit.flagir.reads import activations_read
from flagsplit.runtime.bundle import WEIGHTS_MEMBER, Bundle, load_graph
from flagsplit.targets.interface import Array, CompileOptions, LoadOptions, Target


class PartEngine(Protocol):
    """What runs parts of a graph."""

    def run(self, part: Segment, given: Mapping[str, Array]) -> dict[str, Array]:
        """Run a part once.

        Args:
            part: some nodes, and what goes in and out.
            given: at least its inputs.

        Returns:
            Its outputs.

        Raises:
            BundleError, InputError: it does not load or run.
            FlagsplitError: it cannot be compiled.
        """


@dataclass(frozen=True, eq=False)
class ReferenceEngine:
    """ONNX Runtime on parts of a graph of a bundle.

    Attributes:
        bundle: whose weights the graph has.
        model: the graph.
        host: choices of this host.
    """

    bundle: Bundle
    model: ir.Model
    host: LoadOptions

    def run(self, part: Segment, given: Mapping[str, Array]) -> dict[str, Array]:
        (made,) = self.run_all(part, [given])
        return made

    def run_all(self, part: Segment, given: Sequence[Mapping[str, Array]]) -> list[dict[str, Array]]:
        """Run a part on several requests, loading it once."""
        if not part.outputs:
            return [{} for _ in given]
        with tempfile.TemporaryDirectory(prefix="flagsplit-part-") as folder:
            file = Path(folder) / "part.onnx"
            file.write_bytes(flagir.to_bytes(flagir.extract(self.model, part)))
            loaded = load_graph(file, self.bundle, self.host)
        try:
            return [loaded.run({name: each[name] for name in part.inputs}) for each in given]
        finally:
            loaded.close()


@dataclass(frozen=True, eq=False)
class TargetEngine:
    """A target that compiles each part anew, as it compiled the artifact.

    Attributes:
        bundle: whose weights the graph has.
        model: the graph.
        target: the compiler back end.
        options: choices of the build.
        host: choices of this host.
    """

    bundle: Bundle
    model: ir.Model
    target: Target
    options: CompileOptions
    host: LoadOptions

    def run(self, part: Segment, given: Mapping[str, Array]) -> dict[str, Array]:
        if not part.outputs:
            return {}
        with tempfile.TemporaryDirectory(prefix="flagsplit-part-") as folder:
            with self._telling(ModelError):
                made = self.target.compile(self.model, [part], self.options)
                stored = made.store(Path(folder), self.bundle.folder / WEIGHTS_MEMBER)
            with self._telling(BundleError), closing(self.target.load(stored, part.id, self.host)) as loaded:
                results = loaded.run({name: given[name] for name in part.inputs})
                return {name: results[name] for name in part.outputs}

    @contextmanager
    def _telling(self, kind: type[FlagsplitError]) -> Iterator[None]:
        """Raise what a compiler or an engine of a chip raises as an error of this kind; ours stay as they are."""
        try:
            yield
        except FlagsplitError:
            raise
        except Exception as error:
            text = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            raise kind(f"{self.target.describe().name} broke on a part of the segment: {text}") from error


class NodeLine:
    """The nodes of a segment in execution order, of which any that follow each other can be run by themselves.

    Args:
        model: the graph that the segment can be taken out of.
        segment: the segment.

    Attributes:
        nodes: the nodes.
        segment: the segment.
    """

    def __init__(self, model: ir.Model, segment: Segment) -> None:
        wanted = set(segment.nodes)
        self.segment = segment
        self.nodes = [node for node in model.graph if node.name in wanted]
        self._reads = [[value.name or "" for value in activations_read(node)] for node in self.nodes]
        self._makes = [[value.name or "" for value in node.outputs if value.name] for node in self.nodes]

    def __len__(self) -> int:
        return len(self.nodes)

    def part(self, start: int, stop: int) -> Segment:
        """The nodes from `start` to before `stop`; its outputs are what later nodes or others need of it."""
        made = [name for makes in self._makes[start:stop] for name in makes]
        needed = {name for reads in self._reads[stop:] for name in reads} | set(self.segment.outputs)
        known = set(made)
        inputs = dict.fromkeys(name for reads in self._reads[start:stop] for name in reads if name not in known)
        outputs = tuple(name for name in made if name in needed)
        names = tuple(node.name or "" for node in self.nodes[start:stop])
        return Segment(f"{self.segment.id}.{start}.{stop}", names, tuple(inputs), outputs)

    def made_by(self, at: int) -> list[str]:
        """The values that a node makes and that somebody reads."""
        return list(self.part(at, at + 1).outputs)
