"""Runs the blocks of a function, one operation after another, and checks every result against its declared type.

A value is dropped after the last operation that reads it. Results of type fp16 are rounded to fp16 here, in one place.
Constants, and what `constexpr_` operators make of them, are computed once and kept.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from flagsplit.errors import BundleError, FlagsplitError
from flagsplit.targets.mobile.mil.arguments import Arguments, Result, State, Value
from flagsplit.targets.mobile.mil.constants import Constant
from flagsplit.targets.mobile.mil.ops import MOVERS, OPERATORS
from flagsplit.targets.mobile.mil.program import Block, Operation
from flagsplit.targets.mobile.mil.types import (
    STORAGE,
    Array,
    DictType,
    ListType,
    StateType,
    TensorType,
    ValueType,
    check_room,
)

MAX_STEPS: Final = 250_000
"""Operations that one run may execute, so that a loop without an end ends."""

_FLOATS: Final = frozenset({"float16", "float32", "float64"})
# These may change the precision; every other operator gives floats of a type that it was given.
_CONVERTERS: Final = ("cast", "const", "constexpr_", "dequantize", "random_", "read_state", "cond", "while_loop")


class Executor:
    """One function, ready to run; from one thread at a time.

    Args:
        function: its name, for messages.
        types: of the function's inputs.
        body: its block.
        opset: version of its operators, see `arguments.IOS15`.

    Raises:
        BundleError: it has an operation that the interpreter lacks.
    """

    def __init__(self, function: str, types: Mapping[str, ValueType], body: Block, opset: int) -> None:
        self._function = function
        self._types = dict(types)
        self._body = body
        self._opset = opset
        self._kept: dict[Operation, tuple[Value, ...]] = {}
        self._steps = 0
        self._collect(body)

    def run(self, inputs: Mapping[str, Value]) -> tuple[Value, ...]:
        """The function's outputs for values of its inputs; states among them are changed.

        Raises:
            BundleError: the program is damaged.
        """
        self._steps = 0
        with np.errstate(all="ignore"):
            return self._run_block(self._body, dict(inputs))

    def type_of(self, name: str) -> ValueType:
        """The declared type of a value."""
        return self._types[name]

    def _collect(self, block: Block) -> None:
        for value in block.inputs:
            self._types[value.name] = value.type
        for operation in block.operations:
            if operation.kind not in OPERATORS:
                raise BundleError(
                    f"function {self._function!r} has {operation.name!r} of the operator {operation.kind!r}, which "
                    "the interpreter lacks; run the package with Core ML, or build it without that operator"
                )
            for value in operation.outputs:
                self._types[value.name] = value.type
            for inner in operation.blocks:
                self._collect(inner)
            if operation.blocks:
                self._check_blocks(operation)

    def _check_blocks(self, operation: Operation) -> None:
        """Check that branches give, and loops take and give, elements of the types that the operation gives."""
        wanted = [_element(value.type) for value in operation.outputs]
        for index, block in enumerate(operation.blocks):
            taken = [_element(value.type) for value in block.inputs]
            given = [_element(self._types[name]) for name in block.outputs]
            loops = operation.kind == "while_loop"
            if (loops and taken != wanted) or (given != wanted and not (loops and index == 0)):
                raise BundleError(
                    f"function {self._function!r}: block {index} of {operation.name!r} takes {taken}, gives {given}; "
                    f"the operation gives {wanted}; write the package again"
                )

    def _run_block(self, block: Block, values: dict[str, Value]) -> tuple[Value, ...]:
        for operation, dead in zip(block.operations, block.dead_after, strict=True):
            results = self._kept.get(operation)
            if results is None:
                results = self._run_operation(operation, values)
            for named, result in zip(operation.outputs, results, strict=True):
                values[named.name] = result
            for name in dead:
                del values[name]
        return tuple(values[name] for name in block.outputs)

    def _run_operation(self, operation: Operation, values: dict[str, Value]) -> tuple[Value, ...]:
        self._steps += 1
        where = f"{operation.name!r} ({operation.kind}) of function {self._function!r}"
        if self._steps > MAX_STEPS:
            raise BundleError(f"{where} is step {self._steps} of one run; at most {MAX_STEPS} are allowed")
        try:
            arguments = self._arguments(operation, values, where)
            raw = OPERATORS[operation.kind](arguments)
            results = self._checked(operation, arguments, raw, where)
        except FlagsplitError:
            raise
        # What NumPy raises where shapes or indices do not match.
        except (ArithmeticError, LookupError, MemoryError, RecursionError, TypeError, ValueError) as error:
            raise BundleError(f"{where} cannot be computed: {_short(error)}; write the package again") from error
        if operation.kind == "const" or operation.kind.startswith("constexpr_"):
            self._kept[operation] = results
        return results

    def _arguments(self, operation: Operation, values: dict[str, Value], where: str) -> Arguments:
        bound: dict[str, tuple[Value, ...]] = {}
        types: dict[str, tuple[ValueType, ...]] = {}
        for name, items in operation.inputs.items():
            bound[name] = tuple(item.value() if isinstance(item, Constant) else values[item] for item in items)
            types[name] = tuple(item.type if isinstance(item, Constant) else self._types[item] for item in items)
        for name, constant in operation.attributes.items():
            if name not in bound:
                bound[name] = (constant.value(),)
                types[name] = (constant.type,)

        def run_block(index: int, given: Sequence[Value]) -> tuple[Value, ...]:
            block = operation.blocks[index]
            inner = dict(values)
            for named, value in zip(block.inputs, given, strict=True):
                inner[named.name] = self._check(value, named.type, f"{named.name!r} of {where}", exact=True)
            return self._run_block(block, inner)

        outputs = tuple(value.type for value in operation.outputs)
        return Arguments(where, bound, types, outputs, run_block, self._opset)

    def _checked(self, operation: Operation, arguments: Arguments, raw: Result, where: str) -> tuple[Value, ...]:
        results = raw if isinstance(raw, tuple) else (raw,)
        if len(results) != len(operation.outputs):
            raise BundleError(f"{where} makes {len(results)} results; the program declares {len(operation.outputs)}")
        if not operation.kind.startswith(_CONVERTERS):
            _check_precision(arguments, where)
        exact = operation.kind in MOVERS and not _takes_wide_floats(arguments)
        return tuple(
            self._check(result, named.type, where, exact=exact)
            for result, named in zip(results, operation.outputs, strict=True)
        )

    def _check(self, value: Value, declared: ValueType, where: str, *, exact: bool) -> Value:
        """`value` rounded to the declared type, which it must have; what is `exact` in that type needs no rounding."""
        if isinstance(declared, TensorType) and not isinstance(value, list | State):
            return _check_tensor(np.asarray(value), declared, where, exact=exact)
        if isinstance(declared, ListType) and isinstance(value, list):
            return [_check_tensor(np.asarray(item), declared.element, where, exact=exact) for item in value]
        if isinstance(declared, StateType) and isinstance(value, State):
            return value
        if isinstance(declared, DictType) and isinstance(value, np.ndarray):
            return value
        raise BundleError(f"{where} makes a {type(value).__name__}; the program declares a {declared}")


def _element(kind: ValueType) -> str:
    while not isinstance(kind, TensorType):
        kind = (
            kind.value if isinstance(kind, DictType) else kind.element if isinstance(kind, ListType) else kind.wrapped
        )
    return kind.dtype


def _check_tensor(array: Array, declared: TensorType, where: str, *, exact: bool) -> Array:
    # All of a vector of strings are of one type, whatever their lengths.
    same_dtype = array.dtype.kind == "U" if declared.dtype == "string" else array.dtype == STORAGE[declared.dtype]
    if not same_dtype or not declared.fits(array.shape):
        raise BundleError(
            f"{where} makes {array.dtype}{list(array.shape)}; the program declares {declared}; write the package again"
        )
    check_room(array.shape, declared.dtype, where)
    return round_half(array) if declared.dtype == "float16" and not exact else array


def round_half(array: Array) -> Array:
    """Float32 values rounded to what fp16 can hold."""
    return array.astype(np.float16).astype(np.float32)


def _floats(arguments: Arguments) -> set[str]:
    kinds = (kind for kinds in arguments.types.values() for kind in kinds)
    return {kind.dtype for kind in kinds if isinstance(kind, TensorType)} & _FLOATS


def _takes_wide_floats(arguments: Arguments) -> bool:
    return bool(_floats(arguments) - {"float16"})


def _check_precision(arguments: Arguments, where: str) -> None:
    given = _floats(arguments)
    for kind in arguments.outputs:
        if given and isinstance(kind, TensorType) and kind.dtype in _FLOATS and kind.dtype not in given:
            raise BundleError(
                f"{where} takes {', '.join(sorted(given))}; the program declares its result {kind}; "
                "write the package again"
            )


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
