"""The border of a Core ML function: names that it allows, and the element types that it takes and gives."""

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from flagsplit.errors import BundleError, InputError
from flagsplit.targets.interface import Array, TensorSpec
from flagsplit.targets.segment_table import ChipTensor

_NOT_IN_NAMES = re.compile(r"[^0-9A-Za-z_]")
_TAKEN = frozenset(
    "main any bool program func tensor list dict tuple true false string state bf16 fp16 fp32 fp64 "
    "int8 int16 int32 int64 uint8 uint16 uint32 uint64".split()
)
"""Words of the language of programs: coremltools would give inputs of such names others."""


def program_names(model: ir.Model) -> dict[str, str]:
    """A name in the program for each input and output of a model: letters, digits and underscores, no two alike.

    Args:
        model: of a chip part.
    """
    names: dict[str, str] = {}
    used = set(_TAKEN)
    for value in (*model.graph.inputs, *model.graph.outputs):
        name = value.name or ""
        if name in names:
            continue
        base = _NOT_IN_NAMES.sub("_", name)
        base = base if base and base[0].isascii() and base[0].isalpha() else f"v_{base}"
        wanted, at = base, 0
        while wanted in used:
            at += 1
            wanted = f"{base}_{at}"
        used.add(wanted)
        names[name] = wanted
    return names


def function_name(segment: str) -> str:
    """The name of the function of a segment."""
    return "segment_" + _NOT_IN_NAMES.sub("_", segment)


def chip_tensors(
    values: Iterable[ir.Value],
    names: Mapping[str, str],
    passed: Mapping[str, tuple[str, tuple[int, ...]]],
    open_shapes: Mapping[str, Sequence[int | str]],
) -> list[ChipTensor]:
    """What an app passes for values of a chip part.

    Args:
        values: inputs or outputs.
        names: of the values in the program.
        passed: element type and shape that the program declares, by name in the program.
        open_shapes: by name of the value, its shape with symbols, where sizes are open.
    """
    found = []
    for value in values:
        assert value.name
        assert value.dtype is not None
        assert value.shape is not None
        called = names[value.name]
        dtype, shape = value.dtype.numpy().name, [int(dim) for dim in value.shape.numpy()]
        passed_as, passed_shape = passed[called]
        is_open = any(isinstance(dim, str) for dim in open_shapes.get(value.name, ()))
        found.append(
            ChipTensor(
                name=value.name,
                dtype=dtype,
                shape=list(open_shapes.get(value.name, shape)),
                called=called,
                passed_as="" if passed_as == dtype else passed_as,
                passed_shape=None if is_open or list(passed_shape) == shape else list(passed_shape),
            )
        )
    return found


def to_program(tensor: ChipTensor, given: Array) -> Array:
    """An array as the program takes it.

    Raises:
        InputError: it is of another type or shape, or holds a number that the program's type cannot.
    """
    if given.dtype.name != tensor.dtype or not _fits(given.shape, tensor.shape):
        raise InputError(
            f"expected {tensor.name!r} as {tensor.dtype}{list(tensor.shape)}, came {given.dtype}{list(given.shape)}"
        )
    kind = np.dtype(tensor.passed_as or tensor.dtype)
    if kind.kind in "iu" and given.dtype.kind in "iu" and given.size:
        limits = np.iinfo(kind)
        low, high = int(given.min()), int(given.max())
        if low < limits.min or high > limits.max:
            wrong = low if low < limits.min else high
            raise InputError(f"{tensor.name!r} is passed to Core ML as {kind.name}, which cannot hold {wrong}")
    with np.errstate(over="ignore"):
        passed = given.astype(kind, copy=False)
    if (
        kind.kind == "f"
        and kind.itemsize < given.dtype.itemsize
        and np.isinf(passed).any()
        and np.isfinite(given).all()
    ):
        raise InputError(
            f"{tensor.name!r} is passed to Core ML as {kind.name}, which cannot hold {_largest(given):.5g}"
        )
    return passed if tensor.passed_shape is None else passed.reshape(tensor.passed_shape)


def _fits(shape: Sequence[int], declared: Sequence[int | str]) -> bool:
    """Whether an array is of a shape; a symbol stands for any size."""
    return len(shape) == len(declared) and all(
        isinstance(want, str) or size == want for size, want in zip(shape, declared, strict=True)
    )


def _largest(array: Array) -> float:
    return float(np.abs(array).max())


def from_program(tensor: ChipTensor, made: Array) -> Array:
    """An array as the graph has it.

    Raises:
        BundleError: it is of another shape.
    """
    if tensor.passed_shape is not None:
        made = made.reshape([int(size) for size in tensor.shape])
    if not _fits(made.shape, tensor.shape):
        raise BundleError(
            f"the program gave {tensor.name!r} as {list(made.shape)}, segments.json says {list(tensor.shape)}; "
            "build the bundle again"
        )
    return np.asarray(made, np.dtype(tensor.dtype), order="C")


def spec_of(tensor: ChipTensor) -> TensorSpec:
    """What an executable says of a tensor."""
    return TensorSpec(tensor.name, tensor.dtype, tuple(tensor.shape))
