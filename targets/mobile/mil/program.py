"""A program out of the protobuf: functions, blocks and operations as plain data, checked.

Checked here: every type and constant is well-formed, every name is defined before it is read, once. Not here: what an
operator wants of its inputs (`ops/`), and whether results are of the declared types (`executor.py`).
"""

import re
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any, Final

from flagsplit.errors import BundleError
from flagsplit.targets.mobile.mil.constants import Constant, OpenWeights, read_constant
from flagsplit.targets.mobile.mil.types import ValueType, read_type

_MAX_BLOCK_DEPTH: Final = 32


@dataclass(frozen=True)
class NamedType:
    """A value's name and type."""

    name: str
    type: ValueType


@dataclass(frozen=True, eq=False)
class Operation:
    """One operation.

    Attributes:
        kind: its operator.
        name: for messages.
        inputs: for each parameter, the names of values or the stored values that are bound to it.
        attributes: stored values that are no inputs.
        outputs: what it makes.
        blocks: what control flow runs.
    """

    kind: str
    name: str
    inputs: Mapping[str, tuple[str | Constant, ...]]
    attributes: Mapping[str, Constant]
    outputs: tuple[NamedType, ...]
    blocks: tuple["Block", ...]


@dataclass(frozen=True, eq=False)
class Block:
    """Operations in the order in which they run.

    Attributes:
        inputs: names that it is given.
        operations: in order.
        outputs: names that it gives.
        dead_after: for each operation, the names made in this block that nothing reads afterwards.
    """

    inputs: tuple[NamedType, ...]
    operations: tuple[Operation, ...]
    outputs: tuple[str, ...]
    dead_after: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, eq=False)
class FunctionBody:
    """A function.

    Attributes:
        inputs: what it takes, states included.
        block: what it runs.
        opset: version of its operators: the number at the end of the opset's name, 5 for iOS 15.
    """

    inputs: tuple[NamedType, ...]
    block: Block
    opset: int


def read_function(message: Any, name: str, open_weights: OpenWeights) -> FunctionBody:
    """A function out of the protobuf.

    Args:
        message: its protobuf message.
        name: its name, for messages.
        open_weights: opens the weight files of the package.

    Raises:
        BundleError: it is damaged, or has parts that the interpreter lacks.
    """
    where = f"function {name!r}"
    body = message.block_specializations.get(message.opset)
    if body is None:
        raise BundleError(
            f"expected {where} to have a body for its opset {message.opset!r}; it has bodies for "
            f"{sorted(message.block_specializations) or 'none'}; write the package again"
        )
    version = re.fullmatch(r"CoreML(\d{1,3})", message.opset)
    if version is None:
        raise BundleError(f"expected {where} to name an opset like CoreML7; it names {message.opset!r}")
    inputs = tuple(_named(value, where) for value in message.inputs)
    block = _Reader(where, open_weights).block(body, {value.name for value in inputs}, 0)
    return FunctionBody(inputs, block, int(version[1]))


class _Reader:
    """Reads the blocks of one function."""

    def __init__(self, where: str, open_weights: OpenWeights) -> None:
        self._where = where
        self._open_weights = open_weights

    def block(self, message: Any, outer: Set[str], depth: int) -> Block:
        if depth > _MAX_BLOCK_DEPTH:
            raise BundleError(f"{self._where} nests blocks deeper than {_MAX_BLOCK_DEPTH}; refused")
        inputs = tuple(_named(value, self._where) for value in message.inputs)
        known = set(outer) | {value.name for value in inputs}
        made: set[str] = set()
        operations: list[Operation] = []
        reads: list[set[str]] = []
        for item in message.operations:
            operation, read = self._operation(item, known, depth)
            names = [value.name for value in operation.outputs]
            if len(set(names)) != len(names) or made.intersection(names):
                raise BundleError(f"{self._where} defines {names} more than once; the package is damaged")
            known.update(names)
            made.update(names)
            operations.append(operation)
            reads.append(read)
        outputs = tuple(message.outputs)
        self._check_known(outputs, known, "the outputs of a block")
        return Block(inputs, tuple(operations), outputs, _dead_after(operations, reads, set(outputs)))

    def _operation(self, message: Any, known: Set[str], depth: int) -> tuple[Operation, set[str]]:
        """The operation, and the names that it or its blocks read."""
        outputs = tuple(_named(value, self._where) for value in message.outputs)
        name = outputs[0].name if outputs else message.type
        where = f"{name!r} ({message.type}) of {self._where}"
        inputs: dict[str, tuple[str | Constant, ...]] = {}
        read: set[str] = set()
        for parameter, argument in message.inputs.items():
            bound = tuple(self._binding(item, f"{parameter!r} of {where}") for item in argument.arguments)
            read.update(item for item in bound if isinstance(item, str))
            inputs[parameter] = bound
        self._check_known(read, known, where)
        attributes = {
            key: read_constant(value, f"{key!r} of {where}", self._open_weights)
            for key, value in message.attributes.items()
            if key != "name"
        }
        blocks = tuple(self.block(item, known, depth + 1) for item in message.blocks)
        for block in blocks:
            read |= _reads(block)
        return Operation(message.type, name, inputs, attributes, outputs, blocks), read

    def _binding(self, message: Any, where: str) -> str | Constant:
        kind = message.WhichOneof("binding")
        if kind == "name":
            return str(message.name)
        if kind == "value":
            return read_constant(message.value, where, self._open_weights)
        raise BundleError(f"{where} is bound to nothing; the package is damaged, write it again")

    def _check_known(self, names: Any, known: Set[str], reader: str) -> None:
        if unknown := sorted(set(names) - known):
            raise BundleError(
                f"{reader} of {self._where} read {', '.join(map(repr, unknown[:5]))}, which nothing before them makes; "
                "the package is damaged, write it again"
            )


def _named(message: Any, where: str) -> NamedType:
    return NamedType(str(message.name), read_type(message.type, f"{message.name!r} of {where}"))


def _reads(block: Block) -> set[str]:
    """The names that a block reads, its own included."""
    names = set(block.outputs)
    for operation in block.operations:
        for bound in operation.inputs.values():
            names.update(item for item in bound if isinstance(item, str))
        for inner in operation.blocks:
            names |= _reads(inner)
    return names


def _dead_after(operations: list[Operation], reads: list[set[str]], kept: set[str]) -> tuple[tuple[str, ...], ...]:
    made = {value.name for operation in operations for value in operation.outputs}
    seen = set(kept)
    dead: list[tuple[str, ...]] = []
    for operation, read in zip(reversed(operations), reversed(reads), strict=True):
        here = (read | {value.name for value in operation.outputs}) & made - seen
        dead.append(tuple(sorted(here)))
        seen |= here
    return tuple(reversed(dead))
