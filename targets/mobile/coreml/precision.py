"""Which nodes are computed in fp32 although fp16 was chosen: those whose values fp16 cannot hold.

Fp16 goes up to 65504, has full precision down to 6.1e-5 and reaches zero below 6e-8. What the values of a model are is
seen by running it on samples (`flagsplit.targets.mobile.coreml.ranges`). Values that the samples do not show are not
known; a margin stands between what was seen and what fp16 holds.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from flagsplit.targets.mobile.coreml.moved import MOVING
from flagsplit.targets.mobile.coreml.ranges import NEAR_ZERO_MATTERS, Range

LARGEST = 65504.0
MARGIN = 2.0
"""Inputs of the real world may make values so many times larger than samples did."""
LEAST_NORMAL = 2.0**-14
LEAST = 2.0**-24
_STEP = 2.0**-11
"""By what share fp16 rounds at most."""

_SQUARING = frozenset(
    (
        "Asinh",
        "GroupNormalization",
        "InstanceNormalization",
        "LayerNormalization",
        "LpNormalization",
        "RMSNormalization",
        "ReduceL2",
        "ReduceSumSquare",
    )
)
"""Operators that add up squares inside, where a sum in fp16 overflows long before their results do."""
_EXPONENTS = frozenset(("LogSoftmax", "Softmax"))
_EXPONENTS_UP_TO = {False: 256.0, True: 64.0}
"""The greatest of numbers whose exponentials are compared: there fp16 is off by up to 1/8, or 1/32 to be careful."""
_ADDING = frozenset(("Add", "Sub"))
"""Operators where it is the size of a rounding error that counts, not its share."""
_WITH_EPSILON = frozenset(
    ("BatchNormalization", "GroupNormalization", "InstanceNormalization", "LayerNormalization", "RMSNormalization")
)
_EPSILON = 1e-5
"""What the standard gives them where nothing is said."""
_WORST_ROUNDING = 0.05


def nodes_in_fp32(model: ir.Model, ranges: Mapping[str, Range], *, careful: bool) -> dict[str, str]:
    """The nodes that fp16 would get wrong.

    Args:
        model: a canonical model of fixed shapes.
        ranges: of its float values, by name.
        careful: also those that fp16 would get imprecise.

    Returns:
        For each, by name, the reason.
    """
    return {node.name or "": reason for node in model.graph if (reason := next(_reasons(node, ranges, careful), ""))}


def overflows(seen: Range) -> bool:
    """Whether fp16 might not hold a value."""
    return seen.largest * MARGIN > LARGEST


def _reasons(node: ir.Node, ranges: Mapping[str, Range], careful: bool) -> Iterator[str]:
    for value in (*node.inputs, *node.outputs):
        seen = ranges.get(value.name or "") if value is not None else None
        if seen is None:
            continue
        if overflows(seen):
            yield f"{_called(value)} reaches {seen.largest:.3g}, fp16 ends at {LARGEST:.0f}"
        elif 0 < seen.largest < (LEAST_NORMAL if careful else LEAST / _WORST_ROUNDING):
            yield f"{_called(value)} stays below {seen.largest:.3g}, where fp16 has few digits"
    yield from _inside(node, ranges, careful)
    yield from _canceled(node, ranges)
    yield from _small_constants(node, careful)


def _inside(node: ir.Node, ranges: Mapping[str, Range], careful: bool) -> Iterator[str]:
    """What goes wrong between what a node reads and what it gives."""
    at = NEAR_ZERO_MATTERS.get(node.op_type)
    value = node.inputs[at] if at is not None and at < len(node.inputs) else None
    seen = ranges.get(value.name or "") if value is not None else None
    if seen is not None and 0 < seen.nearest < LEAST_NORMAL:
        yield f"{_called(value)} comes as near to zero as {seen.nearest:.3g}"
    first = node.inputs[0] if node.inputs else None
    seen = ranges.get(first.name or "") if first is not None else None
    if node.op_type in _SQUARING and seen is not None and seen.largest**2 * MARGIN > LARGEST:
        yield f"squares of {_called(first)} reach {seen.largest**2:.3g}, fp16 ends at {LARGEST:.0f}"
    if node.op_type in _EXPONENTS and seen is not None and seen.high > _EXPONENTS_UP_TO[careful]:
        yield f"{_called(first)} reaches {seen.high:.3g}, where fp16 has steps that change shares"


def _canceled(node: ir.Node, ranges: Mapping[str, Range]) -> Iterator[str]:
    """Sums far smaller than what they are of: the rounding of that is all that would be left."""
    if node.op_type not in _ADDING:
        return
    given = max((ranges[each.name or ""].largest for each in node.inputs if each and each.name in ranges), default=0.0)
    made = ranges.get(node.outputs[0].name or "")
    if made is not None and 0 < made.largest * _WORST_ROUNDING < given * _STEP:
        yield f"of numbers up to {given:.3g} only {made.largest:.3g} is left"


def _small_constants(node: ir.Node, careful: bool) -> Iterator[str]:
    for value in node.inputs:
        tensor = value.const_value if value is not None else None
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or tensor.size != 1 or node.op_type in MOVING:
            continue
        number = float(tensor.numpy().reshape(()))
        if _rounds_badly(number, careful and node.op_type not in _ADDING):
            yield f"{_called(value)} is {number:.3g}, which fp16 cannot hold"
    given = node.attributes.get("epsilon")
    epsilon = given.as_float() if given is not None else _EPSILON if node.op_type in _WITH_EPSILON else 0.0
    if _rounds_badly(epsilon, careful):
        yield f"its epsilon is {epsilon:.3g}, which fp16 cannot hold"


def _rounds_badly(number: float, careful: bool) -> bool:
    if number == 0 or abs(number) >= LEAST_NORMAL:
        return False
    return careful or abs(float(np.float16(number)) / number - 1) > _WORST_ROUNDING


def _called(value: ir.Value | None) -> str:
    return repr(value.name) if value is not None else "a value"


def fp16_selector(
    program: Any, model: ir.Model, kept: Collection[str], moved: Collection[str] = ()
) -> Callable[[Any], bool]:
    """What says of an operation of a program whether it is computed in fp16.

    Args:
        program: from the lowering of the model, its operations scoped by the node that they came from.
        model: the model.
        kept: names of the nodes that are computed in fp32, by themselves or fused into others.
        moved: names of the nodes that only move what is in fp32.
    """
    kept = set(kept)
    consumers = {
        node.name or "": [user.name or "" for out in node.outputs for user, _ in out.uses()] for node in model.graph
    }
    settled = False

    def in_fp16(operation: Any) -> bool:
        nonlocal settled
        if not settled:
            _pass_on(kept, _scopes_in(program), consumers)
            kept.update(moved)
            settled = True
        if _epsilon_is_lost(operation):
            return False
        node = scope_of(operation)
        return node not in kept if node else _continues_fp16(operation)

    return in_fp16


def _scopes_in(program: Any) -> set[str]:
    return {scope_of(operation) for function in program.functions.values() for operation in function.operations}


def _pass_on(kept: set[str], present: Collection[str], consumers: Mapping[str, list[str]]) -> None:
    """Nodes that passes fused away hand their being kept on to what they were fused into, which comes after them."""
    waiting = [name for name in kept if name not in present]
    while waiting:
        for user in consumers.get(waiting.pop(), ()):
            if user not in kept:
                kept.add(user)
                if user not in present:
                    waiting.append(user)


def scope_of(operation: Any) -> str:
    """The name of the node that an operation of a program came from; "" if it came from none."""
    from coremltools.converters.mil.mil.scope import ScopeSource

    names = operation.scopes.get(ScopeSource.TORCHSCRIPT_MODULE_NAME) or [""]
    return str(names[-1])


def _epsilon_is_lost(operation: Any) -> bool:
    epsilon = operation.inputs.get("epsilon")
    return epsilon is not None and epsilon.val is not None and _rounds_badly(float(epsilon.val), careful=False)


def _continues_fp16(operation: Any) -> bool:
    """Of an operation at the border: whether what it reads is computed in fp16 as well."""
    for inputs in operation.inputs.values():
        for var in inputs if isinstance(inputs, list | tuple) else [inputs]:
            maker = var.op
            if maker is not None and maker.op_type not in ("const", "cast") and var.is_tensor_or_scalar_of("fp32"):
                return False
    return True
