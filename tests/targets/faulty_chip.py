"""A chip that computes one node wrongly, or all of them a little."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx
from tests.targets.onnx_chip import OnnxChip

from flagsplit.targets.chip_parts import ChipPart
from flagsplit.targets.chip_target import ChipArtifact
from flagsplit.targets.interface import CompileOptions, TargetDescription


class FaultyChip(OnnxChip):
    """Multiplies what some nodes make.

    Args:
        factors: by name of the value that a node makes, in whatever plan; "" for all others.
    """

    def __init__(self, factors: Mapping[str, float]) -> None:
        super().__init__()
        self.factors = factors

    def describe(self) -> TargetDescription:
        return replace(super().describe(), name="faulty", choices={"precision": ("fp32", "fp16")})

    def compile_parts(self, parts: Sequence[ChipPart], options: CompileOptions) -> ChipArtifact:
        made = super().compile_parts(parts, options)
        files = {name: spoil(data, self.factors) for name, data in made.files.items() if isinstance(data, bytes)}
        return ChipArtifact(files, made.calls)


def spoil(data: bytes, factors: Mapping[str, float]) -> bytes:
    """An ONNX file in which values of float32 are multiplied where they are made."""
    model = onnx.load_model_from_string(data)
    kinds = {info.name: info.type.tensor_type.elem_type for info in (*model.graph.value_info, *model.graph.output)}
    nodes = []
    for node in model.graph.node:
        nodes.append(node)
        for at, name in enumerate(node.output):
            factor = factors.get(name.partition(".after_")[0], factors.get("", 1.0))
            if factor == 1.0 or kinds.get(name) != onnx.TensorProto.FLOAT:
                continue
            node.output[at] = f"{name}/right"
            weight = onnx.numpy_helper.from_array(np.float32(factor) * np.ones((), np.float32), f"{name}/factor")
            model.graph.initializer.append(weight)
            nodes.append(onnx.helper.make_node("Mul", [node.output[at], weight.name], [name], f"{name}/wrong"))
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    return bytes(model.SerializeToString())
