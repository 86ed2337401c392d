"""What a target is: a compiler back end that turns segments into files, and files into something that runs.

A target describes itself as data, says yes or no to each node with the reason, compiles all segments of a tier at once
(so that weights are stored once), and loads one segment back on a host that can execute or emulate it. Which targets
exist is in `flagsplit.targets.catalogue`.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from flagsplit.errors import BundleError
from flagsplit.flagir import Segment

Array = NDArray[np.generic]
CHOICE_PREFIX = "choice."
"""What stands before the name of a choice of the build in an artifact's options: it can be compiled again alike."""

REPORT = "report"
"""The option of an artifact that names the file in which its target tells what became of the segments.

That is JSON: `basis`, and `segments` with, by id, a `summary` in one line and whatever else the target has to tell.
"""
_MAX_REPORT_BYTES = 16 << 20

Numerics = Literal["exact", "fast"]
"""Whether a split run must equal the unsplit model bit for bit, or may differ in rounding to be faster."""

SHAPES_CHOICE = "shapes"
"""The choice by which a target of fixed shapes takes several sizes; its values are of `Shapes`, "fixed" first."""

Shapes = Literal["fixed", "enumerated", "ranged", "any"]
"""Which sizes a target takes of an open dimension: one, those of a list, those of a range, or whatever comes."""


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
        extra: the extra of flagsplit that installs its SDK; "" if the base install has all.
        choices: by name of each choice of a build (`CompileOptions.choices`), what it may be, the default first.
        carries_nan: whether what goes in as NaN, or becomes NaN inside, comes out as NaN.
        free_choices: by name of each choice whose value the build makes up, the form of that.
        beside: by name and value of a choice, what becomes of nodes that would run on the accelerator without it.
    """

    name: str
    version: str
    dtypes: tuple[str, ...]
    max_rank: int
    static_shapes: bool
    runs_here: Literal["yes", "emulated", "no"]
    source: str
    confidence: Literal["high", "medium", "low"]
    extra: str = ""
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    carries_nan: bool = True
    free_choices: Mapping[str, str] = field(default_factory=dict)
    beside: Mapping[tuple[str, str], "SupportVerdict"] = field(default_factory=dict)

    def shapes(self, choices: Mapping[str, str]) -> Shapes:
        """Which sizes of an open dimension it takes under some choices."""
        if not self.static_shapes:
            return "any"
        chosen = choices.get(SHAPES_CHOICE, "fixed") if SHAPES_CHOICE in self.choices else "fixed"
        return "ranged" if chosen == "ranged" else "enumerated" if chosen == "enumerated" else "fixed"

    def off_accelerator(self, choices: Mapping[str, str]) -> "SupportVerdict | None":
        """What choices make of nodes that would run on the accelerator, if they make anything of them."""
        return next((self.beside[each] for each in choices.items() if each in self.beside), None)


@dataclass(frozen=True)
class SupportVerdict:
    """Whether a target takes a node; a no carries its reason.

    Attributes:
        supported: whether it can be compiled and run at all.
        reason: why not; or, of a node that runs beside the accelerator, why it does not run there; or what is slow.
        unit: where it runs: on the chip's accelerator, or on its CPU, which costs time.
        source: where this is known from, for rules that are not the vendor's word.
        confidence: "high", "medium" or "low".
        extra_bytes: for values that the node reads or gives, by name, what the accelerator moves beside reading or
            writing them once, in bytes of the graph's element type; modelled, and it costs time.
    """

    supported: bool
    reason: str = ""
    unit: Literal["accelerator", "cpu"] = "accelerator"
    source: str = ""
    confidence: Literal["high", "medium", "low"] = "high"
    extra_bytes: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class CompileOptions:
    """Choices that hold for a whole build.

    Attributes:
        numerics: see `Numerics`.
        dims: size of each symbol of the model's inputs, for targets that take fixed shapes.
        ranges: smallest and largest size of symbols, where requests of other sizes come.
        listed: the sizes of symbols, where requests of these alone come; the symbol is in `ranges` too.
        device: catalogue name of the device of the tier, "" if none is known.
        choices: the target's own, such as `{"precision": "fp16"}`; what may be chosen is in `TargetDescription`.
        samples: inputs of the model, to calibrate and to check ranges with.
        real_samples: whether they are the user's, or were made up.
        weights: the file of the model's large weights, if it has any.
    """

    numerics: Numerics = "exact"
    dims: Mapping[str, int] = field(default_factory=dict)
    ranges: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    listed: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    device: str = ""
    choices: Mapping[str, str] = field(default_factory=dict)
    samples: Sequence[Mapping[str, Array]] = ()
    real_samples: bool = False
    weights: Path | None = None


@dataclass(frozen=True)
class Artifact:
    """What a target made of all segments of one tier.

    Attributes:
        files: content by path, relative to the tier's folder of this target; or a file to copy it from.
        entries: for each segment id, the file that holds it, or the folder if it is one like an `.mlpackage`.
            Several segments may be in one.
        options: what `load` needs to know again, as JSON data.
    """

    files: Mapping[str, bytes | Path]
    entries: Mapping[str, str]
    options: Mapping[str, str] = field(default_factory=dict)

    def store(self, folder: Path, weights: Path) -> "StoredArtifact":
        """Write the files.

        Args:
            folder: where to; made if it is not there.
            weights: the shared weights file of the model.
        """
        for name, data in self.files.items():
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(data, Path):
                shutil.copyfile(data, file)
            else:
                file.write_bytes(data)
        return StoredArtifact(folder, self.entries, self.options, weights)


@dataclass(frozen=True)
class StoredArtifact:
    """An artifact on this host's disk.

    Attributes:
        folder: where its files are.
        entries, options: of the `Artifact`.
        weights: the bundle's shared weights file.
    """

    folder: Path
    entries: Mapping[str, str]
    options: Mapping[str, str]
    weights: Path

    def entry(self, segment: str) -> Path:
        """The file or folder that holds a segment.

        Raises:
            BundleError: there is none, or its path leaves the artifact's folder.
        """
        name = self.entries.get(segment)
        if name is None:
            raise BundleError(f"no artifact for segment {segment!r}; build the bundle again")
        return self.inside(name)

    def report(self) -> Mapping[str, Any] | None:
        """What the target tells of the segments; see `REPORT`.

        Raises:
            BundleError: it is not what such a report is.
        """
        if REPORT not in self.options:
            return None
        file = self.inside(self.options[REPORT])
        try:
            if file.stat().st_size > _MAX_REPORT_BYTES:
                raise ValueError(f"{file.stat().st_size} bytes")
            read: Any = json.loads(file.read_bytes())
            told = [part["summary"] for part in read["segments"].values()]
            if not all(isinstance(each, str) for each in (read["basis"], *told)):
                raise ValueError("a summary is no text")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise BundleError(f"the report at {self.options[REPORT]!r} cannot be read ({error}); build again") from None
        return cast("Mapping[str, Any]", read)

    def inside(self, name: str) -> Path:
        """A file or folder of the artifact.

        Raises:
            BundleError: its path leaves the artifact's folder.
        """
        found = (self.folder / name).resolve()
        if not found.is_relative_to(self.folder.resolve()):
            raise BundleError(f"a part of the artifact lies at {name!r}, outside the bundle; refused")
        return found


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
        target: which of a tier's artifacts to run; "" takes ONNX Runtime's, which every tier has.
    """

    threads: int = 0
    target: str = ""


class Target(Protocol):
    """A compiler back end. Its SDK is imported inside the methods that need it."""

    def describe(self) -> TargetDescription:
        """Its capabilities."""

    def supports(self, node: ir.Node) -> SupportVerdict:
        """Whether it takes a node of a canonical graph; where `describe` says static shapes, of one of fixed shapes."""

    def compile(self, model: ir.Model, segments: Sequence[Segment], options: CompileOptions) -> Artifact:
        """Compile all segments of one tier.

        Args:
            model: the canonical model, its weights mapped from the shared weights file.
            segments: distinct segments of all plans.
            options: choices of the build.

        Raises:
            ModelError: a segment cannot be compiled; the message names the node.
        """

    def load(self, artifact: StoredArtifact, segment: str, host: LoadOptions) -> Executable:
        """Load one segment.

        Args:
            artifact: what `compile` made, on disk.
            segment: id of one of its segments.
            host: choices of this host.

        Raises:
            BundleError: it cannot be loaded.
            ConfigError: the target's SDK is not installed.
        """
