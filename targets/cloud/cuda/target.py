"""The target: a part is an ONNX file, compiled by the host that loads it.

The file refers to the bundle's shared weights, as those of `ort` do. What a GPU gains by is decided when it is loaded:
the passes of `passes` rewrite the graph, `lowering` makes PyTorch of it, `compiled` a CUDA graph.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import onnx_ir as ir

from flagsplit import flagir
from flagsplit.errors import ModelError
from flagsplit.targets.chip_parts import ChipPart
from flagsplit.targets.chip_target import ChipArtifact, ChipTarget
from flagsplit.targets.cloud.cuda.choices import CHOICES, Choices, read_choices
from flagsplit.targets.cloud.cuda.executable import load_part
from flagsplit.targets.cloud.cuda.lowering.registry import refusal
from flagsplit.targets.cloud.cuda.sdk import EXTRA
from flagsplit.targets.cloud.cuda.with_ort import open_on_gpu
from flagsplit.targets.interface import (
    CompileOptions,
    Executable,
    LoadOptions,
    StoredArtifact,
    SupportVerdict,
    TargetDescription,
)
from flagsplit.targets.segment_table import ChipCall, ChipTensor

_WEIGHTS = "weights file"


class CudaTarget(ChipTarget):
    """NVIDIA GPUs. Compiling needs nothing but the base install, loading needs PyTorch."""

    loads_all_sizes = True

    def describe(self) -> TargetDescription:
        """Its capabilities; without a GPU it is emulated, by what was built with the choice of the CPU."""
        try:
            release = version("torch")
        except PackageNotFoundError:
            release = "not installed"
        return TargetDescription(
            name="cuda",
            version=release,
            dtypes=("bool", "float16", "float32", "float64", "int16", "int32", "int64", "int8", "uint8"),
            max_rank=8,
            static_shapes=True,
            runs_here="no" if release == "not installed" else "yes" if _has_driver() else "emulated",
            source="flagsplit's lowering to PyTorch",
            confidence="high",
            extra=EXTRA,
            choices=CHOICES,
        )

    def supports(self, node: ir.Node) -> SupportVerdict:
        """Whether there is a lowering of a node of fixed shapes."""
        reason = refusal(node)
        return SupportVerdict(not reason, reason, source="flagsplit's lowering to PyTorch" if reason else "")

    def compile_parts(self, parts: Sequence[ChipPart], options: CompileOptions) -> ChipArtifact:
        """One ONNX file for each part; it is compiled on the device that loads it."""
        choices = read_choices(options.choices)
        files: dict[str, bytes | Path] = {}
        sized: dict[str, list[ChipCall]] = {}
        for part in parts:
            sized[part.segment] = []
            for at, model in enumerate((part.model, *part.others)):
                _refuse_unsupported(model)
                name = f"{part.segment}.{at}.onnx" if at else f"{part.segment}.onnx"
                files[name] = flagir.to_bytes(model)
                sized[part.segment].append(_call(name, model, choices))
        calls = {segment: each[0] for segment, each in sized.items()}
        several = {segment: each for segment, each in sized.items() if len(each) > 1}
        return ChipArtifact(files, calls, {**vars(choices), "compiled": "on the device that loads it"}, several)

    def load(self, artifact: StoredArtifact, segment: str, host: LoadOptions) -> Executable:
        """Load one segment; parts need to know where the shared weights are."""
        told = {**artifact.options, _WEIGHTS: str(artifact.weights)}
        return super().load(replace(artifact, options=told), segment, host)

    def load_part(
        self,
        file: Path,
        call: ChipCall,
        options: Mapping[str, str],
        host: LoadOptions,  # noqa: ARG002 PyTorch's threads are the process's
    ) -> Executable:
        """Compile a part for the GPU of this host, or take what was compiled before."""
        choices = read_choices({name: options[name] for name in CHOICES if name in options})
        weights = Path(options[_WEIGHTS])
        if choices.engine == "ort":
            return open_on_gpu(file, weights, half=choices.precision == "fp16")
        return load_part(file, weights, call, choices)


def _has_driver() -> bool:
    return Path("/proc/driver/nvidia/version").exists() or Path("/dev/nvidiactl").exists()


def _refuse_unsupported(model: ir.Model) -> None:
    for node in model.graph:
        reason = refusal(node)
        if reason:
            raise ModelError(f"{node.name!r} ({node.op_type}) is not for the cuda target: {reason}")


def _call(file: str, model: ir.Model, choices: Choices) -> ChipCall:
    graph = model.graph
    inputs, outputs = ([_tensor(value, choices) for value in values] for values in (graph.inputs, graph.outputs))
    return ChipCall(file=file, function="main", inputs=inputs, outputs=outputs)


def _tensor(value: ir.Value, choices: Choices) -> ChipTensor:
    assert value.name
    assert value.dtype is not None
    assert value.shape is not None
    dtype, shape = value.dtype.numpy().name, [int(dim) for dim in value.shape.numpy()]
    half = choices.io == "fp16" and choices.engine == "inductor" and dtype == "float32"
    passed_as = "float16" if half else ""
    return ChipTensor(name=value.name, dtype=dtype, shape=list(shape), called=value.name, passed_as=passed_as)
