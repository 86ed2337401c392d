"""One function for inputs of several sizes: a list of shapes, or a range for each open dimension.

A chip part comes at a few sizes of each symbol. Where its programs differ in nothing but what follows from their
inputs, the program holds for every size, and is written with open dimensions; where they differ in more, such as a
mask or a padding of a certain size, it is refused, and each size needs a function of its own. Those share weights, so
they cost little; and a function of ranged shapes was seen to run beside the Neural Engine
(`flagsplit.targets.mobile.coreml.ane_rules`, "flexible").
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from flagsplit.errors import ModelError
from flagsplit.targets.chip_parts import ChipPart
from flagsplit.targets.mobile.coreml.choices import Choices
from flagsplit.targets.mobile.coreml.lower_part import LoweredPart, lower_part
from flagsplit.targets.mobile.coreml.sdk import import_sdk, quiet


def lower_flexible(part: ChipPart, choices: Choices) -> LoweredPart:
    """Lower a chip part for all of its sizes: those of a list, or whatever lies between the ends of ranges.

    Args:
        part: with `others`; a part without any is lowered as it is.
        choices: of the build; what `shapes` says decides between a list and ranges.

    Raises:
        ModelError: the part is another program at another size, or it cannot be lowered.
    """
    first = lower_part(part, choices)
    if not part.others:
        return first
    open_at: dict[tuple[str, str], set[int]] = {}
    for each in part.others:
        other = lower_part(ChipPart(part.segment, each), choices, decided=first.decided)
        for place, axes in _differences(first.program, other.program).items():
            open_at.setdefault(place, set()).update(axes)
    names = [value.name or "" for value in part.model.graph.inputs]
    declared = (
        _listed(part, first.names, names) if choices.shapes == "enumerated" else _ranged(part, first.names, names)
    )
    return replace(first, program=_reopened(first.program, declared, open_at, choices))


def _listed(part: ChipPart, called: Mapping[str, str], names: Sequence[str]) -> list[Any]:
    """What the program takes, each input in one shape for each listed size."""
    ct = import_sdk()
    made = []
    for name in names:
        shapes = [shape or (1,) for shape in dict.fromkeys(part.all_shapes[name])]
        shape = ct.EnumeratedShapes(shapes, default=shapes[0]) if len(shapes) > 1 else shapes[0]
        made.append(ct.TensorType(called[name], shape=shape))
    return made


def _ranged(part: ChipPart, called: Mapping[str, str], names: Sequence[str]) -> list[Any]:
    """What the program takes, each open dimension from its least to its greatest size."""
    ct = import_sdk()
    known: dict[str, Any] = {}
    made = []
    for name in names:
        sizes_of = list(zip(*part.all_shapes[name], strict=True))
        shape: list[Any] = []
        for dim, sizes in zip(part.open_shapes[name], sizes_of, strict=True):
            if isinstance(dim, str) and dim not in known:
                known[dim] = ct.RangeDim(min(sizes), max(sizes), default=sizes[0])
            shape.append(known[dim] if isinstance(dim, str) else dim)
        made.append(ct.TensorType(called[name], shape=shape or (1,)))
    return made


def _differences(one: Any, other: Any) -> dict[tuple[str, str], set[int]]:
    """Where the constants of two programs differ: the axes, by operation and parameter.

    Raises:
        ModelError: they differ in more than sizes that a reshape is told.
    """
    found: dict[tuple[str, str], set[int]] = {}
    pair = [list(each.functions["main"].operations) for each in (one, other)]
    inner = next((each.name for each in pair[0] if each.blocks), "")
    if inner:
        raise ModelError(f"{inner!r} is a loop or a branch; give each size a function of its own")
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
