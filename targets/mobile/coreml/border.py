"""The border of a Core ML function: names that it allows, and the element types that it takes and gives."""

import re
from collections.abc import Iterable, Mapping, Sequence

import onnx_ir as ir

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
