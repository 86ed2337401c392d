"""What a target is: a compiler back end that turns segments into files, and files into something that runs.

A target describes itself as data, says yes or no to each node with the reason, compiles all segments of a tier at once
(so that weights are stored once), and loads one segment back on a host that can execute or emulate it. Which targets
exist is in `flagsplit.targets.catalogue`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from flagsplit.flagir import Segment

Array = NDArray[np.generic]
Numerics = Literal["exact", "fast"]
"""Whether a split run must equal the unsplit model bit for bit, or may differ in rounding to be faster."""


@dataclass(frozen=True)
class TargetDescription:
    """A target's capabilities as data.

    Attributes:
        name: its name in the catalogue.
        version: of the compiler or engine behind it.
        dtypes: ONNX element types that its segments may take and give, by name.
        max_rank: highest rank of a boundary tensor.
        static_shapes: whether every dimension must be a number.
        runs_here: "yes", "emulated" or "no": what `load` does on this host.
        source: where these statements come from.
        confidence: "high", "medium" or "low".
    """

    name: str
    version: str
    dtypes: tuple[str, ...]
    max_rank: int
    static_shapes: bool
    runs_here: Literal["yes", "emulated", "no"]
    source: str
    confidence: Literal["high", "medium", "low"]


@dataclass(frozen=True)
class SupportVerdict:
    """Whether a target takes a node; a no carries its reason."""

    supported: bool
    reason: str = ""


@dataclass(frozen=True)
class CompileOptions:
    """Choices that hold for a whole build.

    Attributes:
        numerics: see `Numerics`.
    """

    numerics: Numerics = "exact"


@dataclass(frozen=True)
class Artifact:
    """What a target made of all segments of one tier.

    Attributes:
        files: content by path, relative to the tier's folder of this target.
        entries: for each segment id, the file that holds it.
        options: what `load` needs to know again, as JSON data.
    """

    files: Mapping[str, bytes]
    entries: Mapping[str, str]
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TensorSpec:
    """A tensor that an executable takes or gives.

    Attributes:
        name: the value's name in the graph.
        dtype: NumPy name of the element type.
        shape: sizes, or the symbol of an open dimension.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class Executable(Protocol):
    """A loaded segment. It holds no state between runs and may be used from one thread at a time."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What `run` takes."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What `run` gives."""

    def run(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """Run once.

        Args:
            tensors: one array per input, of its dtype and shape; not changed.

        Returns:
            One array per output.

        Raises:
            InputError: the engine refused the tensors.
        """

    def close(self) -> None:
        """Free what it holds; a second call does nothing."""


@dataclass(frozen=True)
class LoadOptions:
    """Choices of the host that runs a segment.

    Attributes:
        threads: how many threads one run may use; 0 lets the engine choose.
    """

    threads: int = 0


class Target(Protocol):
    """A compiler back end. Its SDK is imported inside the methods that need it."""

    def describe(self) -> TargetDescription:
        """Its capabilities."""

    def supports(self, node: ir.Node) -> SupportVerdict:
        """Whether it takes a node of a canonical graph."""

    def compile(self, model: ir.Model, segments: Sequence[Segment], options: CompileOptions) -> Artifact:
        """Compile all segments of one tier.

        Args:
            model: the canonical model, its weights mapped from the shared weights file.
            segments: distinct segments of all plans.
            options: choices of the build.

        Raises:
            ModelError: a segment cannot be compiled; the message names the node.
        """

    def load(self, file: Path, weights: Path, build: Mapping[str, str], host: LoadOptions) -> Executable:
        """Load one segment.

        Args:
            file: the segment's file, as `compile` wrote it.
            weights: the bundle's shared weights file.
            build: `Artifact.options`.
            host: choices of this host.

        Raises:
            BundleError: the file cannot be loaded.
        """
