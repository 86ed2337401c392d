"""The `qnn` target: what Snapdragon's NPU runs of a segment, compiled ahead of time for one system on a chip."""

import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import onnx_ir as ir

from flagsplit.errors import BundleError, ConfigError, ModelError
from flagsplit.targets.chip_parts import ChipPart
from flagsplit.targets.chip_target import ChipArtifact, ChipTarget
from flagsplit.targets.interface import CompileOptions, Executable, LoadOptions, SupportVerdict, TargetDescription
from flagsplit.targets.mobile.qnn.compiler import compile_apart, compile_shared, file_of, some
from flagsplit.targets.mobile.qnn.emulator import open_compiled
from flagsplit.targets.mobile.qnn.prepare import INPUTS_PASSED_AS, OUTPUTS_PASSED_AS, prepare
from flagsplit.targets.mobile.qnn.process import installed_version
from flagsplit.targets.mobile.qnn.quantize import check_compiled, quantize
from flagsplit.targets.mobile.qnn.socs import soc_of, socs
from flagsplit.targets.mobile.qnn.table import DTYPES, MOST_RANK, SupportTable, support_table
from flagsplit.targets.segment_table import ChipCall, ChipTensor

_PRECISIONS = ("fp16", "qdq")
_ACTIVATIONS = ("16", "8")
_WEIGHTS = ("pieces", "apart", "shared")


class QnnTarget(ChipTarget):
    """Snapdragon's NPU, by context binaries of onnxruntime-qnn."""

    def describe(self) -> TargetDescription:
        """What the NPU takes; the version is that of the compiler, or of the table where it is not installed."""
        table = self._table()
        return TargetDescription(
            name="qnn",
            version=installed_version() or table.version,
            dtypes=DTYPES,
            max_rank=MOST_RANK,
            static_shapes=True,
            runs_here=_runs_here(),
            source=f"each operator alone, compiled and emulated by onnxruntime-qnn {table.version}",
            confidence="high" if table.fits else "low",
            extra="qnn",
            choices={
                "soc": tuple(socs()),
                "precision": _PRECISIONS,
                "activations": _ACTIVATIONS,
                "weights": _WEIGHTS,
            },
            carries_nan=False,
        )

    def supports(self, node: ir.Node) -> SupportVerdict:
        """By the support table; a yes holds for every system on a chip that can be chosen."""
        return self._table().verdict(node)

    def _table(self) -> SupportTable:
        return support_table(installed_version())

    def in_pieces(self, options: CompileOptions) -> bool:
        """With the choice weights=pieces: a binary has the weights of its own part alone."""
        return _choice(options, "weights", _WEIGHTS) == "pieces"

    def compile_parts(self, parts: Sequence[ChipPart], options: CompileOptions) -> ChipArtifact:
        """Compile all chip parts of one tier; see `ChipTarget.compile_parts`.

        Equal weights of these parts are stored once with the choice weights=shared, which the emulator cannot load.
        """
        soc = soc_of(options)
        weights = _choice(options, "weights", _WEIGHTS)
        precision = _choice(options, "precision", _PRECISIONS)
        bits = int(_choice(options, "activations", _ACTIVATIONS))
        self._refuse_unsupported(parts, soc.name)
        exact = {part.segment: prepare(part.model) for part in parts}
        calls = {part.segment: _call(part) for part in parts}
        samples = {part.segment: part.samples if options.real_samples else () for part in parts}
        models = exact
        if precision == "qdq":
            models = {name: quantize(model, name, samples[name], bits) for name, model in exact.items()}
        files = (compile_shared if weights == "shared" else compile_apart)(models, soc)
        if precision == "qdq" and weights != "shared" and _runs_here() != "no":
            for name, model in exact.items():
                check_compiled(model, files[file_of(name)], calls[name], soc, samples[name][0], name)
        numbers = f"qdq{bits}" if precision == "qdq" else precision
        told = {"soc": soc.name, "precision": numbers, "weights": weights, "compiler": installed_version() or ""}
        return ChipArtifact(files, calls, told)

    def _refuse_unsupported(self, parts: Sequence[ChipPart], soc: str) -> None:
        """The compiler takes some nodes and computes them wrongly, which the table knows."""
        table = self._table()
        for part in parts:
            said = {node: table.verdict(node, soc) for node in part.model.graph} if table.fits else {}
            named = [f"{node.name} ({node.op_type}): {v.reason}" for node, v in said.items() if not v.supported]
            if named:
                raise ModelError(f"segment {part.segment}: the Snapdragon's NPU does not take {some(named)}")

    def load_part(
        self,
        file: Path,
        call: ChipCall,
        options: Mapping[str, str],
        host: LoadOptions,  # noqa: ARG002 neither the NPU nor the emulator lets us choose threads
    ) -> Executable:
        """Load one chip part: on the NPU itself, or on the emulator; see `ChipTarget.load_part`."""
        here = _runs_here()
        if here == "no":
            raise ConfigError("qnn segments run on Snapdragon, and emulated on Linux on x86-64; this host is neither")
        if here == "emulated" and options.get("weights") == "shared":
            raise ConfigError(
                "the emulator loads no binary that segments share; build with weights=pieces to run it here"
            )
        soc = socs().get(options.get("soc", ""))
        if soc is None:
            raise BundleError(
                f"the artifact is for {options.get('soc')!r}, which is no Snapdragon known; build it again"
            )
        return open_compiled(file, call, soc)


def _runs_here() -> Literal["yes", "emulated", "no"]:
    machine = platform.machine().lower()
    if sys.platform == "linux" and machine == "x86_64":
        return "emulated"
    model = Path("/proc/device-tree/compatible")
    if sys.platform == "linux" and machine in ("aarch64", "arm64") and model.is_file():
        return "yes" if b"qcom," in model.read_bytes() else "no"
    return "no"


def _choice(options: CompileOptions, name: str, possible: Sequence[str]) -> str:
    chosen = options.choices.get(name, possible[0])
    if chosen not in possible:
        raise ConfigError(f"expected {name} as one of {', '.join(possible)}, came {chosen!r}")
    return chosen


def _call(part: ChipPart) -> ChipCall:
    graph = part.model.graph
    inputs = [_tensor(value, INPUTS_PASSED_AS) for value in graph.inputs]
    outputs = [_tensor(value, OUTPUTS_PASSED_AS) for value in graph.outputs]
    return ChipCall(file=file_of(part.segment), function="main", inputs=inputs, outputs=outputs)


def _tensor(value: ir.Value, passed_as: Mapping[str, str]) -> ChipTensor:
    name = value.name or ""
    if value.dtype is None or value.shape is None:
        raise ModelError(f"the type of {name!r} is not known; the qnn target needs it")
    shape: list[int | str] = [dim for dim in value.shape if isinstance(dim, int)]
    dtype = value.dtype.numpy().name
    return ChipTensor(name=name, dtype=dtype, shape=shape, called=name, passed_as=passed_as.get(dtype, ""))
