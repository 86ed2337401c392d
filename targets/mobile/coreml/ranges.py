"""How large and how small the values of a graph become, by running it with ONNX Runtime on sample inputs."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from flagsplit import flagir
from flagsplit.targets.interface import Array
from flagsplit.targets.onnx_engine import open_onnx

NEAR_ZERO_MATTERS = {"Div": 1, "Log": 0, "Reciprocal": 0}
"""Operators that make much of an input near zero, and which input it is."""


@dataclass(frozen=True)
class Range:
    """What a value was on the samples.

    Attributes:
        low, high: least and greatest element; not a number if one was none.
        nearest: the magnitude of the element nearest to zero, where it was asked for; else 0.
    """

    low: float
    high: float
    nearest: float = 0.0

    @property
    def largest(self) -> float:
        """The greatest magnitude; infinite if an element is not a number."""
        largest = max(abs(self.low), abs(self.high))
        return largest if largest == largest else float("inf")

    def joined(self, other: "Range | None") -> "Range":
        """What holds of this and of another."""
        if other is None:
            return self
        low, high = np.minimum(self.low, other.low), np.maximum(self.high, other.high)
        return Range(float(low), float(high), min(self.nearest, other.nearest))


def random_inputs(model: ir.Model) -> dict[str, Array]:
    """An array for each input of a model of fixed shapes, always the same ones.

    Floats are of the standard normal distribution, whole numbers 0 or 1, which index into most things.
    """
    made: dict[str, Array] = {}
    for seed, value in enumerate(model.graph.inputs):
        assert value.name
        assert value.dtype is not None
        assert value.shape is not None
        shape, dtype = [int(dim) for dim in value.shape.numpy()], value.dtype.numpy()
        rng = np.random.default_rng(seed)
        array = rng.standard_normal(shape) if dtype.kind == "f" else rng.integers(0, 2, shape)
        made[value.name] = np.asarray(array).astype(dtype)
    return made


def answers(model: ir.Model, samples: Sequence[Mapping[str, Array]]) -> list[dict[str, Array]]:
    """The outputs of a model for each sample.

    Raises:
        InputError: the model does not take these inputs.
    """
    return list(_runs(model, samples))


def measure(model: ir.Model, samples: Sequence[Mapping[str, Array]]) -> dict[str, Range]:
    """The ranges of all float values that a model computes or takes.

    Args:
        model: a canonical model of fixed shapes; it stays as it is.
        samples: one array per input in each.

    Raises:
        InputError: the model does not take these inputs.
    """
    copy = model.clone()
    graph = copy.graph
    asked = [*graph.inputs, *(value for node in graph for value in node.outputs)]
    asked = [value for value in asked if value.name and value.dtype == ir.DataType.FLOAT and _has_elements(value)]
    near = {
        node.inputs[NEAR_ZERO_MATTERS[node.op_type]]
        for node in graph
        if not node.domain and node.op_type in NEAR_ZERO_MATTERS
    }
    graph.outputs.clear()
    for at, value in enumerate(asked):
        kinds = {"low": ("ReduceMin", value), "high": ("ReduceMax", value)}
        if value in near:
            size = ir.node("Abs", [value], name=f"range {at} size")
            graph.append(size)
            kinds["nearest"] = ("ReduceMin", size.outputs[0])
        for kind, (op_type, source) in kinds.items():
            node = ir.node(op_type, [source], {"keepdims": 0}, name=f"range {at} {kind}")
            node.outputs[0].name = f"range {at} {kind}"
            graph.append(node)
            graph.outputs.append(node.outputs[0])
    for output in graph.outputs:
        output.type, output.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(())
    names = {value.name or "": f"range {at} " for at, value in enumerate(asked)}
    ranges: dict[str, Range] = {}
    for found in _runs(copy, samples) if asked else ():
        for name, key in names.items():
            low, high, nearest = (float(found.get(key + kind, 0.0)) for kind in ("low", "high", "nearest"))
            ranges[name] = Range(low, high, nearest).joined(ranges.get(name))
    return ranges


def _has_elements(value: ir.Value) -> bool:
    return value.shape is not None and 0 not in value.shape


def _runs(model: ir.Model, samples: Sequence[Mapping[str, Array]]) -> Iterator[dict[str, Array]]:
    taken = [value.name or "" for value in model.graph.inputs]
    with tempfile.TemporaryDirectory(prefix="flagsplit-ranges-") as folder:
        loaded = open_onnx(*_stored(model, Path(folder)), "exact", 0)
        try:
            for sample in samples:
                yield loaded.run({name: sample[name] for name in taken})
        finally:
            loaded.close()


def _stored(model: ir.Model, folder: Path) -> tuple[Path, Path | None]:
    """The model as a file, and the file of its weights: the one that they are mapped from, if it is one."""
    tensors = [value.const_value for value in model.graph.initializers.values()]
    mapped = {Path(tensor.path) for tensor in tensors if isinstance(tensor, ir.ExternalTensor)}
    if len(mapped) > 1:
        flagir.save(model, folder)
        return folder / flagir.MODEL_NAME, folder / flagir.WEIGHTS_NAME
    file = folder / flagir.MODEL_NAME
    file.write_bytes(flagir.to_bytes(model))
    return file, next(iter(mapped), None)
