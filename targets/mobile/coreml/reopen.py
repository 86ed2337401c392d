"""From programs of one part at a few sizes to one program of open sizes.

They have to be the same operations on the same values. Constants may differ where what they say can be said without a
size: shapes that a reshape is told, and bounds of slices that count from the end.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from flagsplit.errors import ModelError
from flagsplit.targets.mobile.coreml.choices import Choices
from flagsplit.targets.mobile.coreml.sdk import import_sdk, quiet

_Made = dict[str, Any]


class SizesDifferError(ModelError):
    """Raised where one program cannot be that of all sizes."""


def reopened(programs: Sequence[Any], types: Sequence[Any], choices: Choices) -> Any:
    """One program that is each of some programs at its sizes.

    Args:
        programs: of coremltools, with one function "main", all passes done; that of the default sizes first.
        types: the inputs, each with its open shape.
        choices: of the build.

    Raises:
        SizesDifferError: one differs from the others in more than sizes.
    """
    ct = import_sdk()
    from coremltools.converters.mil import Builder
    from coremltools.converters.mil.mil import Function, Program

    alike = _side_by_side(programs)
    old = programs[0].functions["main"]
    taken = {
        each.name: Builder.placeholder(each.shape.symbolic_shape, dtype=old.inputs[each.name].dtype) for each in types
    }
    made = Program()
    with quiet(), Function(taken, opset_version=getattr(ct.target, choices.deployment)) as function:
        known = {old.inputs[name]: var for name, var in function.inputs.items()}
        for operations in alike:
            _again(Builder, operations, known)
        function.set_outputs([known[var] for var in old.outputs])
    function.set_input_types(tuple(types))
    made.add_function("main", function)
    return made


def _side_by_side(programs: Sequence[Any]) -> list[tuple[Any, ...]]:
    """The operations of all programs, those that are the same one together.

    Raises:
        SizesDifferError: the programs are of other operations, or on other values.
    """
    functions = [each.functions["main"] for each in programs]
    lists = [list(each.operations) for each in functions]
    kinds = [[operation.op_type for operation in each] for each in lists]
    if any(each != kinds[0] for each in kinds):
        raise SizesDifferError("the program is another at another size")
    alike = list(zip(*lists, strict=True))
    places = [{var: (name, 0) for name, var in each.inputs.items()} for each in functions]
    for at, operations in enumerate(alike):
        if operations[0].blocks:
            raise SizesDifferError(f"{operations[0].name!r} is a loop or a branch")
        read = [
            [(name, [place.get(var) for var in _listed(given)]) for name, given in operation.inputs.items()]
            for operation, place in zip(operations, places, strict=True)
        ]
        if any(each != read[0] for each in read):
            raise SizesDifferError(f"{operations[0].name!r} reads other values at another size")
        for operation, place in zip(operations, places, strict=True):
            place.update({var: (str(at), index) for index, var in enumerate(operation.outputs)})
    return alike


def _listed(given: Any) -> list[Any]:
    return list(given) if isinstance(given, list | tuple) else [given]


def _again(mb: Any, operations: Sequence[Any], known: dict[Any, Any]) -> None:
    """Build an operation once more, without sizes."""
    first = operations[0]
    if first.op_type == "const":
        return
    differing = [name for name in first.inputs if _differs([each.inputs[name] for each in operations])]
    given = {name: _value(mb, var, known) for name, var in first.inputs.items() if name not in differing}
    for name in differing:
        say = _WITHOUT_SIZES.get((first.op_type, name))
        more = None if say is None else say(mb, operations, given)
        if more is None:
            raise SizesDifferError(f"{first.op_type} {first.name!r} has another {name} at another size")
        given.update(more)
    made = getattr(mb, first.op_type)(**given, name=first.name)
    for before, after in zip(first.outputs, _listed(made), strict=True):
        after.name = before.name
        known[before] = after


def _value(mb: Any, given: Any, known: dict[Any, Any]) -> Any:
    if isinstance(given, list | tuple):
        return [_value(mb, each, known) for each in given]
    if given not in known:
        known[given] = mb.const(val=given.val, name=given.name)
    return known[given]


def _differs(given: Sequence[Any]) -> bool:
    """Whether what an operation is given is another constant in one of the programs."""
    for vars_ in zip(*map(_listed, given), strict=True):
        values = [var.val for var in vars_]
        if any((each is None) != (values[0] is None) for each in values):
            return True
        if values[0] is None:
            continue
        nans = np.asarray(values[0]).dtype.kind == "f"
        if not all(np.array_equal(each, values[0], equal_nan=nans) for each in values):
            return True
    return False


def _reshape(mb: Any, operations: Sequence[Any], given: Mapping[str, Any]) -> _Made | None:
    """Sizes that differ: the one that is left, or those of axes that the operand has."""
    shapes = [[int(size) for size in each.shape.val] for each in operations]
    sizes = [[int(size) for size in each.x.shape] for each in operations]
    if len({len(each) for each in shapes}) > 1:
        return None
    open_axes = [at for at, column in enumerate(zip(*shapes, strict=True)) if len(set(column)) > 1]
    if len(open_axes) == 1:
        return {"shape": np.array([-1 if at in open_axes else n for at, n in enumerate(shapes[0])], np.int32)}
    columns = list(zip(*sizes, strict=True))
    parts: list[Any] = []
    told = None
    for at, column in enumerate(zip(*shapes, strict=True)):
        if at not in open_axes:
            parts.append(np.array([column[0]], np.int32))
        elif column in columns:
            told = mb.shape(x=given["x"]) if told is None else told
            axis = columns.index(column)
            parts.append(mb.slice_by_index(x=told, begin=[axis], end=[axis + 1]))
        else:
            parts.append(np.array([-1], np.int32))
    left = sum(1 for part in parts if isinstance(part, np.ndarray) and part[0] == -1)
    return {"shape": mb.concat(values=parts, axis=0)} if left <= 1 else None


def _bounds(_: Any, operations: Sequence[Any], __: Mapping[str, Any]) -> _Made | None:
    """Bounds that differ: those that are as far from the end of the axis in all programs, the end itself among them."""
    first = operations[0]
    rank = len(first.x.shape)
    begins, ends = [int(at) for at in first.begin.val], [int(at) for at in first.end.val]
    masks = [False] * rank if first.end_mask is None else [bool(each) for each in first.end_mask.val]
    strides = [1] * rank if first.stride is None else [int(by) for by in first.stride.val]
    for axis, stride in enumerate(strides):
        sizes = [int(each.x.shape[axis]) for each in operations]
        started = [int(each.begin.val[axis]) for each in operations]
        ended = [int(each.end.val[axis]) for each in operations]
        if len(set(started)) > 1:
            begins[axis] = started[0] - sizes[0]
            if any(begin - size != begins[axis] for begin, size in zip(started, sizes, strict=True)):
                return None
        if masks[axis] or len(set(ended)) == 1:
            continue
        taken = [range(*bounds, stride) for bounds in zip(started, ended, strict=True)]
        if stride > 0 and taken == [range(*bounds, stride) for bounds in zip(started, sizes, strict=True)]:
            masks[axis], ends[axis] = True, 0
        else:
            ends[axis] = ended[0] - sizes[0]
            if any(end - size != ends[axis] for end, size in zip(ended, sizes, strict=True)):
                return None
    made: _Made = {"begin": np.array(begins, np.int32), "end": np.array(ends, np.int32)}
    return {**made, "end_mask": np.array(masks)} if any(masks) else made


def _natural(_: Any, operations: Sequence[Any], __: Mapping[str, Any]) -> _Made | None:
    """The shape that a transposed convolution makes, where it is the one that it makes by itself."""
    for each in operations:
        spatial = len(each.x.shape) - 2
        kernel = [int(size) for size in each.weight.shape[2:]]
        strides, dilations = ([int(by) for by in given.val] for given in (each.strides, each.dilations))
        padded = each.pad is not None and each.pad_type.val == "custom"
        pads = [int(by) for by in each.pad.val] if padded else [0] * (2 * spatial)
        made = [
            (int(each.x.shape[2 + at]) - 1) * strides[at]
            + (kernel[at] - 1) * dilations[at]
            + 1
            - pads[2 * at]
            - pads[2 * at + 1]
            for at in range(spatial)
        ]
        if each.pad_type.val not in ("custom", "valid") or made != [int(size) for size in each.output_shape.val[2:]]:
            return None
    return {}


_WITHOUT_SIZES: Mapping[tuple[str, str], Callable[[Any, Sequence[Any], Mapping[str, Any]], _Made | None]] = {
    ("reshape", "shape"): _reshape,
    ("slice_by_index", "begin"): _bounds,
    ("slice_by_index", "end"): _bounds,
    ("conv_transpose", "output_shape"): _natural,
}
"""What says a constant without sizes, by operation and parameter; it makes None where that cannot be."""
