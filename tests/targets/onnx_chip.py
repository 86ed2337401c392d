"""A chip whose programs are ONNX files: what chip targets have in common, without any SDK."""

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path

import onnx_ir as ir

from flagsplit import flagir
from flagsplit.targets.chip_parts import ChipPart
from flagsplit.targets.chip_target import ChipArtifact, ChipTarget
from flagsplit.targets.interface import CompileOptions, Executable, LoadOptions, SupportVerdict, TargetDescription
from flagsplit.targets.onnx_engine import open_onnx
from flagsplit.targets.segment_table import ChipCall, ChipTensor


class OnnxChip(ChipTarget):
    """Takes every standard operator of fixed shapes.

    Args:
        refused: operators that it does not take.
        on_cpu: operators that it leaves to the CPU.
        twice: operators of which it moves all that they read and give once more.
        pieces: whether segments that overlap are compiled in pieces.

    Attributes:
        parts: what it was given to compile last.
    """

    def __init__(
        self,
        refused: Sequence[str] = (),
        on_cpu: Sequence[str] = (),
        twice: Sequence[str] = (),
        *,
        pieces: bool = False,
    ) -> None:
        self._refused = refused
        self._on_cpu = on_cpu
        self._twice = twice
        self._pieces = pieces
        self.parts: tuple[ChipPart, ...] = ()

    def describe(self) -> TargetDescription:
        return TargetDescription(
            "onnx-chip", "1", ("float32",), 8, True, "emulated", "itself", "high", choices={"speed": ("fast", "slow")}
        )

    def supports(self, node: ir.Node) -> SupportVerdict:
        if node.domain or node.op_type in self._refused:
            return SupportVerdict(False, f"the chip has no {node.op_type}")
        if node.op_type in self._on_cpu:
            return SupportVerdict(True, "the chip is slow at it", unit="cpu")
        if node.op_type in self._twice:
            return SupportVerdict(True, "the chip moves all twice", extra_bytes=_sizes(node))
        return SupportVerdict(True)

    def in_pieces(self, options: CompileOptions) -> bool:
        return self._pieces

    def compile_parts(self, parts: Sequence[ChipPart], options: CompileOptions) -> ChipArtifact:
        self.parts = tuple(parts)
        files = {f"{part.segment}.chip.onnx": _whole_bytes(part.model) for part in parts}
        calls = {part.segment: _call(part) for part in parts}
        return ChipArtifact(files, calls)

    def load_part(self, file: Path, call: ChipCall, options: Mapping[str, str], host: LoadOptions) -> Executable:
        return open_onnx(file, None, "exact", 1)


def _sizes(node: ir.Node) -> dict[str, float]:
    values = [value for value in (*node.inputs, *node.outputs) if value is not None and value.const_value is None]
    return {value.name or "": 4.0 * prod(value.shape.numpy()) for value in values if value.shape is not None}


def _whole_bytes(model: ir.Model) -> bytes:
    copy = model.clone()
    for weight in copy.graph.initializers.values():
        assert weight.const_value is not None
        weight.const_value = ir.tensor(weight.const_value.numpy(), name=weight.name)
    return flagir.to_bytes(copy)


def _call(part: ChipPart) -> ChipCall:
    graph = part.model.graph
    inputs, outputs = ([_tensor(value) for value in values] for values in (graph.inputs, graph.outputs))
    return ChipCall(file=f"{part.segment}.chip.onnx", function="main", inputs=inputs, outputs=outputs)


def _tensor(value: ir.Value) -> ChipTensor:
    assert value.name
    assert value.dtype is not None
    assert value.shape is not None
    shape = [dim for dim in value.shape if isinstance(dim, int)]
    assert len(shape) == len(value.shape)
    return ChipTensor(name=value.name, dtype=value.dtype.numpy().name, shape=list(shape), called=value.name)
