"""What an operator's implementation is handed: its inputs by parameter name, checked for kind as they are asked for.

Arrays of type fp16 come as float32 (see `types.STORAGE`); `dtype` tells the type in the program. An implementation
returns arrays of the storage type, and says with `room` what shape it is about to make, so that a damaged package is
refused before memory is taken.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from flagsplit.errors import BundleError
from flagsplit.targets.mobile.mil.types import Array, ListType, TensorType, ValueType, check_room

IOS15: Final = 5
IOS16: Final = 6
IOS17: Final = 7
IOS18: Final = 8
"""Versions of the operators, as the name of a function's opset counts them: iOS 15 is CoreML5."""


@dataclass(eq=False)
class State:
    """A tensor that lives on between runs."""

    value: Array


Value = Array | list[Array] | State
Result = Array | list[Array] | tuple[Array | list[Array], ...]
RunBlock = Callable[[int, Sequence[Value]], tuple[Value, ...]]
Operator = Callable[["Arguments"], Result]


@dataclass(eq=False)
class Arguments:
    """The inputs of one operation.

    Attributes:
        where: the operation and its function, for messages.
        values: the values bound to each parameter.
        types: their types in the program.
        outputs: the declared types of its results.
        run_block: runs one of its blocks on values for the block's inputs.
        opset: of the function, see `IOS15`.
    """

    where: str
    values: Mapping[str, tuple[Value, ...]]
    types: Mapping[str, tuple[ValueType, ...]]
    outputs: tuple[ValueType, ...]
    run_block: RunBlock
    opset: int

    def has(self, name: str) -> bool:
        """Whether the parameter is bound."""
        return bool(self.values.get(name))

    def all(self, name: str) -> tuple[Value, ...]:
        """Everything that is bound to a parameter."""
        if not self.has(name):
            raise BundleError(f"{self.where} lacks its input {name!r}; write the package again")
        return self.values[name]

    def one(self, name: str) -> Value:
        """The one value that is bound to a parameter."""
        bound = self.all(name)
        if len(bound) != 1:
            raise BundleError(f"{self.where} expects one value for {name!r}; it has {len(bound)}")
        return bound[0]

    def tensor(self, name: str) -> Array:
        """The tensor bound to a parameter."""
        value = self.one(name)
        if not isinstance(value, np.ndarray):
            raise BundleError(f"{self.where} expects a tensor for {name!r}; it has a {self._type(name)}")
        return value

    def optional(self, name: str) -> Array | None:
        """The tensor bound to a parameter, if there is one."""
        return self.tensor(name) if self.has(name) else None

    def tensors(self, name: str) -> list[Array]:
        """All tensors bound to a parameter."""
        found = [value for value in self.all(name) if isinstance(value, np.ndarray)]
        if len(found) != len(self.all(name)):
            raise BundleError(f"{self.where} expects tensors for {name!r}")
        return found

    def list_of(self, name: str) -> list[Array]:
        """The list bound to a parameter."""
        value = self.one(name)
        if not isinstance(value, list):
            raise BundleError(f"{self.where} expects a list for {name!r}; it has a {self._type(name)}")
        return value

    def state(self, name: str) -> State:
        """The state bound to a parameter."""
        value = self.one(name)
        if not isinstance(value, State):
            raise BundleError(f"{self.where} expects a state for {name!r}; it has a {self._type(name)}")
        return value

    def integer(self, name: str, default: int | None = None) -> int:
        """A scalar integer; without a default it must be bound."""
        if default is not None and not self.has(name):
            return default
        return int(self._scalar(name))

    def number(self, name: str, default: float | None = None) -> float:
        """A scalar number; without a default it must be bound."""
        if default is not None and not self.has(name):
            return default
        return float(self._scalar(name))

    def flag(self, name: str, default: bool | None = None) -> bool:
        """A scalar truth value; without a default it must be bound."""
        if default is not None and not self.has(name):
            return default
        return bool(self._scalar(name))

    def text(self, name: str, default: str | None = None) -> str:
        """A string; without a default it must be bound."""
        if default is not None and not self.has(name):
            return default
        value = self.tensor(name)
        if value.dtype.kind != "U" or value.size != 1:
            raise BundleError(f"{self.where} expects a string for {name!r}; it has a {self._type(name)}")
        return str(value.item())

    def choice(self, name: str, allowed: Sequence[str], default: str | None = None) -> str:
        """A string out of `allowed`; without a default it must be bound."""
        value = self.text(name, default)
        if value not in allowed:
            raise BundleError(f"{self.where} expects {name!r} to be one of {', '.join(allowed)}; it is {value!r}")
        return value

    def integers(self, name: str, default: Sequence[int] | None = None) -> list[int]:
        """A vector of integers; without a default it must be bound."""
        if default is not None and not self.has(name):
            return list(default)
        value = self.tensor(name)
        if value.dtype.kind not in "iu" or value.ndim > 1:
            raise BundleError(f"{self.where} expects a vector of integers for {name!r}; it has a {self._type(name)}")
        return [int(item) for item in value.reshape(-1)]

    def flags(self, name: str, count: int) -> list[bool]:
        """A vector of `count` truth values, all false unless bound."""
        if not self.has(name):
            return [False] * count
        found = [bool(item) for item in self.tensor(name).reshape(-1)]
        if len(found) != count:
            raise BundleError(f"{self.where} expects {count} values for {name!r}; it has {len(found)}")
        return found

    def dtype(self, name: str) -> str:
        """The element type of a parameter's first value in the program."""
        kind = self._type(name)
        if isinstance(kind, TensorType):
            return kind.dtype
        raise BundleError(f"{self.where} expects a tensor for {name!r}; it has a {kind}")

    def output_dtype(self, index: int = 0) -> str:
        """The element type that a result is declared to have."""
        kind = self.outputs[index]
        if isinstance(kind, ListType):
            return kind.element.dtype
        if isinstance(kind, TensorType):
            return kind.dtype
        raise BundleError(f"{self.where} expects result {index} to be a tensor; it is declared a {kind}")

    def room(self, shape: Sequence[int], index: int = 0) -> tuple[int, ...]:
        """`shape` as plain integers, if a result of that shape is what the program declares, and not too large.

        Raises:
            BundleError: it is not.
        """
        sizes = tuple(int(size) for size in shape)
        declared = self.outputs[index] if index < len(self.outputs) else None
        if not isinstance(declared, TensorType) or not declared.fits(sizes):
            raise BundleError(
                f"{self.where} makes the shape {list(sizes)}; the program declares {declared}; write the package again"
            )
        check_room(sizes, declared.dtype, self.where)
        return sizes

    def refuse(self, reason: str) -> BundleError:
        """An error that names the operation."""
        return BundleError(f"{self.where}: {reason}; write the package again")

    def _scalar(self, name: str) -> Any:
        value = self.tensor(name)
        if value.size != 1 or value.dtype.kind == "U":
            raise BundleError(f"{self.where} expects one number for {name!r}; it has a {self._type(name)}")
        return value.item()

    def _type(self, name: str) -> ValueType:
        return self.types[name][0]
