"""One function for inputs of several sizes: a list of shapes, or a range for each open dimension.

A chip part is lowered at two sizes of each symbol. Where the programs differ in nothing but what follows from their
inputs, the program holds for every size, and is written with open dimensions; where they differ in more, such as a
mask or a padding of a certain size, it is refused, and each size needs a function of its own. Those share weights, so
they cost little; and a function of open shapes was seen to run beside the Neural Engine
(`flagsplit.targets.mobile.coreml.ane_rules`, "flexible").
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from flagsplit.errors import ModelError
from flagsplit.flagir.specialize import specialize
from flagsplit.targets.chip_parts import ChipPart
from flagsplit.targets.mobile.coreml.choices import Choices
from flagsplit.targets.mobile.coreml.lower_part import LoweredPart, lower_part
from flagsplit.targets.mobile.coreml.sdk import import_sdk, quiet

MOST_SHAPES = 128
"""How many enumerated shapes an input may have."""


def lower_enumerated(model: ir.Model, sizes: Sequence[Mapping[str, int]], choices: Choices) -> LoweredPart:
    """Lower a model for a list of shapes; the first is the default.

    Args:
        model: canonical, of standard operators, with symbols for open dimensions; it stays as it is.
        sizes: of all symbols, for each shape.
        choices: of the build; ranges are taken on random inputs of the first shape.

    Raises:
        ModelError: there are too many shapes, the model is another at another size, or it cannot be lowered.
    """
    if not 2 <= len(sizes) <= MOST_SHAPES:
        raise ModelError(f"expected 2 to {MOST_SHAPES} shapes, came {len(sizes)}; give each size a function of its own")
    shapes = [_shapes_at(model, each) for each in sizes]
    ct = import_sdk()

    def declared(name: str, at: int) -> Any:
        each = list(dict.fromkeys(shape[at] for shape in shapes))
        return ct.TensorType(name, shape=ct.EnumeratedShapes(each, default=each[0]) if len(each) > 1 else each[0])

    return _flexible(model, sizes[0], _variations(sizes), declared, choices)


def lower_ranged(
    model: ir.Model, sizes: Mapping[str, int], ranges: Mapping[str, tuple[int, int]], choices: Choices
) -> LoweredPart:
    """Lower a model for ranges of its open dimensions.

    Args:
        model: canonical, of standard operators, with symbols for open dimensions; it stays as it is.
        sizes: of all symbols, by default.
        ranges: lowest and highest size of the symbols that stay open.
        choices: of the build; ranges of values are taken on random inputs of the default sizes.

    Raises:
        ModelError: the model is another at another size, or it cannot be lowered.
    """
    ct = import_sdk()
    inputs = [
        [dim if isinstance(dim, int) else str(dim.value) for dim in value.shape or ()] for value in model.graph.inputs
    ]

    def declared(name: str, at: int) -> Any:
        shape = [
            dim
            if isinstance(dim, int)
            else ct.RangeDim(*ranges[dim], default=sizes[dim])
            if dim in ranges
            else sizes[dim]
            for dim in inputs[at]
        ]
        return ct.TensorType(name, shape=shape)

    others = [{**sizes, name: low if low != sizes[name] else high} for name, (low, high) in ranges.items()]
    return _flexible(model, sizes, [each for each in others if each != sizes], declared, choices)


def _variations(sizes: Sequence[Mapping[str, int]]) -> list[dict[str, int]]:
    """For each symbol that has several sizes, the first ones with another of it."""
    first = dict(sizes[0])
    found = []
    for name, size in first.items():
        other = next((each[name] for each in sizes if each[name] != size), None)
        if other is not None:
            found.append({**first, name: other})
    return found


def _shapes_at(model: ir.Model, sizes: Mapping[str, int]) -> list[tuple[int, ...]]:
    return [
        tuple(dim if isinstance(dim, int) else sizes[str(dim.value)] for dim in value.shape or ())
        for value in model.graph.inputs
    ]


def _flexible(
    model: ir.Model, sizes: Mapping[str, int], others: Sequence[Mapping[str, int]], declared: Any, choices: Choices
) -> LoweredPart:
    first = lower_part(ChipPart("flexible", specialize(model, sizes)), choices)
    open_sizes: dict[tuple[str, str], set[int]] = {}
    for each in others:
        other = lower_part(ChipPart("flexible", specialize(model, each)), choices)
        for place, axes in _differences(first.program, other.program).items():
            open_sizes.setdefault(place, set()).update(axes)
    names = [first.names[value.name or ""] for value in model.graph.inputs]
    types = [declared(name, at) for at, name in enumerate(names)]
    return replace(first, program=_reopened(first.program, types, open_sizes, choices))


def _differences(one: Any, other: Any) -> dict[tuple[str, str], set[int]]:
    """Where the constants of two programs differ: the axes, by operation and parameter.

    Raises:
        ModelError: they differ in more than sizes that a reshape is told.
    """
    found: dict[tuple[str, str], set[int]] = {}
    pair = [list(each.functions["main"].operations) for each in (one, other)]
    if [each.op_type for each in pair[0]] != [each.op_type for each in pair[1]]:
        raise ModelError("the program is another at another size; give each size a function of its own")
    for here, there in zip(*pair, strict=True):
        for name, var in here.inputs.items():
            mine, others = (_constants(each) for each in (var, there.inputs[name]))
            for left, right in zip(mine, others, strict=True):
                if (
                    left is None
                    or right is None
                    or np.array_equal(left, right, equal_nan=np.asarray(left).dtype.kind == "f")
                ):
                    continue
                if here.op_type != "reshape" or name != "shape" or np.shape(left) != np.shape(right):
                    raise ModelError(
                        f"{here.op_type} {here.name!r} has another {name} at another size; "
                        "give each size a function of its own"
                    )
                found[here.name, name] = set(np.flatnonzero(left != right).tolist())
    return found


def _constants(var: Any) -> list[Any]:
    return [each.val for each in (var if isinstance(var, list | tuple) else [var])]


def _reopened(
    program: Any, types: Sequence[Any], open_sizes: Mapping[tuple[str, str], set[int]], choices: Choices
) -> Any:
    """The program once more, on inputs of open sizes."""
    ct = import_sdk()
    from coremltools.converters.mil import Builder
    from coremltools.converters.mil.mil import Function, Program

    old = program.functions["main"]
    taken = {
        each.name: Builder.placeholder(each.shape.symbolic_shape, dtype=old.inputs[each.name].dtype) for each in types
    }
    made = Program()
    with quiet(), Function(taken, opset_version=getattr(ct.target, choices.deployment)) as function:
        known = {old.inputs[name]: var for name, var in function.inputs.items()}
        for operation in old.operations:
            _again(Builder, operation, known, open_sizes)
        function.set_outputs([known[var] for var in old.outputs])
    function.set_input_types(tuple(types))
    made.add_function("main", function)
    return made


def _again(mb: Any, operation: Any, known: dict[Any, Any], open_sizes: Mapping[tuple[str, str], set[int]]) -> None:
    given: dict[str, Any] = {}
    for name, var in operation.inputs.items():
        axes = open_sizes.get((operation.name, name), set())
        if len(axes) > 1:
            raise ModelError(
                f"reshape {operation.name!r} depends on several sizes; give each size a function of its own"
            )
        if axes:
            given[name] = np.array([-1 if at in axes else size for at, size in enumerate(var.val)], np.int32)
        else:
            given[name] = [known[each] for each in var] if isinstance(var, list | tuple) else known[var]
    if operation.op_type == "const":
        given = {"val": operation.outputs[0].val}
    made = getattr(mb, operation.op_type)(**given, name=operation.name)
    for before, after in zip(operation.outputs, made if isinstance(made, list | tuple) else [made], strict=True):
        after.name = before.name
        known[before] = after
