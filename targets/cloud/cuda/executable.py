"""A part, loaded: NumPy arrays in and out, by a CUDA graph on the GPU, or step by step on the CPU."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from flagsplit.errors import BundleError, InputError, ModelError
from flagsplit.targets.cloud.cuda.choices import Choices
from flagsplit.targets.cloud.cuda.compiled import Replay, cache_folder, compiled
from flagsplit.targets.cloud.cuda.lowering.program import Program, build_program, to_module
from flagsplit.targets.cloud.cuda.lowering.registry import is_taken
from flagsplit.targets.cloud.cuda.lowering.site import as_dtype
from flagsplit.targets.cloud.cuda.lowering.style import Style
from flagsplit.targets.cloud.cuda.part_file import read_part
from flagsplit.targets.cloud.cuda.passes import optimize
from flagsplit.targets.cloud.cuda.sdk import import_torch, require_gpu, torch
from flagsplit.targets.interface import Array, Executable, TensorSpec
from flagsplit.targets.segment_table import ChipCall, ChipTensor
from flagsplit.targets.written_out import write_out

_PRECISIONS = {"fp16": "float16", "bf16": "bfloat16", "fp32": ""}


def load_graph(file: Path, weights: Path) -> ir.Model:
    """Read a part, and run the passes of this target.

    Raises:
        BundleError: it is damaged.
    """
    model = read_part(file, weights)
    write_out(model, is_taken)
    optimize(model)
    return model


def program_of(model: ir.Model, precision: str, style: Style = Style()) -> Program:  # noqa: B008 it is frozen
    """Lower a part.

    Raises:
        BundleError: it holds a node that this version does not take.
    """
    try:
        return build_program(model, _PRECISIONS[precision], style)
    except ModelError as error:
        raise BundleError(f"{error}; build the bundle again") from error


def load_part(file: Path, weights: Path, call: ChipCall, choices: Choices) -> Executable:
    """Load a part.

    Raises:
        BundleError: it is damaged, or cannot be compiled here.
        ConfigError: PyTorch is not installed; or there is no GPU, and the CPU was not chosen.
    """
    import_torch()
    on_cpu = choices.device == "cpu"
    if not on_cpu:
        require_gpu()
    model = load_graph(file, weights)
    passed = [_passed(each) for each in call.outputs]

    def module_of(style: Style) -> Any:
        return to_module(program_of(model, choices.precision, style), passed, "cpu" if on_cpu else "cuda")

    if on_cpu:
        return TorchExecutable(call, _Eager(module_of(Style())))
    kind = _kind_of(model)
    examples = example_inputs(call, "cuda", images=kind != "products")
    folder = cache_folder(file, weights, [choices.precision, choices.io])
    try:
        replay, times_ms = compiled(module_of, examples, folder, choices.tune, kind)
    except (RuntimeError, OSError) as error:
        short = " ".join(str(error).split())[:300]
        raise BundleError(f"PyTorch cannot compile {file.name} for this GPU: {short}") from error
    return TorchExecutable(call, _OnGpu(replay), times_ms)


def _kind_of(model: ir.Model) -> str:
    """What there is to try for a graph; see `compiled`."""
    nodes = (node for node in model.graph if node.op_type in ("Conv", "ConvRelu"))
    convs = [node for node in nodes if len(node.outputs[0].shape or ()) == 4]
    groups = {node.attributes.get_int("group", 1) for node in convs}
    return "depthwise" if groups - {1} else "images" if convs else "products"


def example_inputs(call: ChipCall, device: str, *, images: bool) -> list[Any]:
    """A tensor for each input: ones, in channels-last layout where the program convolves images."""
    found = []
    for each in call.inputs:
        tensor = torch.ones([int(size) for size in each.shape], dtype=as_dtype(_passed(each)), device=device)
        found.append(tensor.to(memory_format=torch.channels_last) if images and tensor.dim() == 4 else tensor)
    return found


def _sizes(tensor: ChipTensor) -> tuple[int, ...]:
    return tuple(int(size) for size in tensor.shape)


def _array(each: ChipTensor, tensor: Any) -> Array:
    """A new array of the graph's type; PyTorch converts half precision many times quicker than NumPy."""
    return np.array(tensor.to(as_dtype(each.dtype)).numpy(), order="C").reshape(_sizes(each))


def _passed(tensor: ChipTensor) -> str:
    return tensor.passed_as or tensor.dtype


class _Eager:
    """Runs a module on the CPU, not compiled."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def __call__(self, given: Sequence[Any], passed: Sequence[str]) -> Sequence[Any]:
        with torch.inference_mode():
            made: Sequence[Any] = self._module(*(x.to(as_dtype(dtype)) for x, dtype in zip(given, passed, strict=True)))
        return made


class _OnGpu:
    """Copies through pinned memory, so that all of a run is queued at once and waited for once."""

    def __init__(self, replay: Replay) -> None:
        self.replay = replay
        self._given, self._made = (
            [torch.empty(each.shape, dtype=each.dtype, pin_memory=True) for each in tensors]
            for tensors in (replay.inputs, replay.outputs)
        )

    def __call__(self, given: Sequence[Any], _passed: Sequence[str]) -> Sequence[Any]:
        for pinned, own, tensor in zip(self._given, self.replay.inputs, given, strict=True):
            pinned.copy_(tensor)
            own.copy_(pinned, non_blocking=True)
        self.replay.replay()
        for pinned, made in zip(self._made, self.replay.outputs, strict=True):
            pinned.copy_(made, non_blocking=True)
        torch.cuda.current_stream().synchronize()
        return self._made


class TorchExecutable:
    """Runs a part under the names and element types of the graph.

    Args:
        call: how it is called.
        run: from arrays in the order of the program's inputs to arrays in the order of its outputs.
        times_ms: milliseconds of a run by way of compiling, where several were tried.

    Attributes:
        times_ms: the same.
    """

    def __init__(self, call: ChipCall, run: "_Eager | _OnGpu", times_ms: Mapping[str, float] | None = None) -> None:
        self._call = call
        self.times_ms = dict(times_ms or {})
        self._run: _Eager | _OnGpu | None = run

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return tuple(each.to_spec() for each in self._call.inputs)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return tuple(each.to_spec() for each in self._call.outputs)

    def run(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        if self._run is None:
            raise InputError("the segment was closed; load it again")
        given = [self._checked(each, tensors) for each in self._call.inputs]
        try:
            made = self._run(given, [_passed(each) for each in self._call.inputs])
        except RuntimeError as error:
            raise InputError(f"PyTorch could not run the segment: {' '.join(str(error).split())[:300]}") from error
        return {each.name: _array(each, tensor) for each, tensor in zip(self._call.outputs, made, strict=True)}

    @property
    def on_gpu(self) -> Replay:
        """The recorded program, for callers whose tensors are on the GPU.

        Raises:
            InputError: the segment was closed, or runs on the CPU.
        """
        if not isinstance(self._run, _OnGpu):
            raise InputError("the segment is not on a GPU: it was closed, or loaded for the CPU")
        return self._run.replay

    def _checked(self, each: ChipTensor, tensors: Mapping[str, Array]) -> Any:
        array = tensors.get(each.name)
        if array is None:
            raise InputError(f"expected an array for {each.name!r}, came none")
        if array.dtype.name != each.dtype or array.shape != _sizes(each):
            raise InputError(
                f"expected {each.name!r} as {each.dtype}{list(each.shape)}, came {array.dtype}{list(array.shape)}"
            )
        return torch.from_numpy(np.require(array, requirements=("C", "W")))

    def close(self) -> None:
        self._run = None
