"""Constants, branches, loops, lists, states and class labels."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from flagsplit.targets.mobile.mil.arguments import Arguments, Operator, Result
from flagsplit.targets.mobile.mil.ops.elementwise import CAST_TYPES
from flagsplit.targets.mobile.mil.types import STORAGE, Array, ListType, check_room

_MAX_LIST_LENGTH: Final = 1 << 16


def const(a: Arguments) -> Result:
    """The value that is stored."""
    value: Any = a.one("val")
    return value


def cond(a: Arguments) -> Result:
    """What the first block gives if `pred` holds, else what the second gives."""
    results: Any = a.run_block(0 if a.flag("pred") else 1, ())
    return results


def while_loop(a: Arguments) -> Result:
    """The second block run on its own results as long as the first gives true."""
    values: Any = a.all("loop_vars")
    while True:
        (go_on,) = a.run_block(0, values)
        if not isinstance(go_on, np.ndarray) or go_on.dtype != np.bool_ or go_on.size != 1:
            raise a.refuse("expected its condition to give one truth value")
        if not go_on.item():
            return values
        values = a.run_block(1, values)


def _element(a: Arguments) -> ListType:
    declared = a.outputs[0]
    if not isinstance(declared, ListType):
        raise a.refuse(f"expected its result to be a list; it is declared a {declared}")
    return declared


def make_list(a: Arguments) -> Result:
    """A list of zeros of the stated shape; a size that is not known is 0 until an element is written."""
    length = a.integer("init_length", 1)
    if not 0 <= length <= _MAX_LIST_LENGTH:
        raise a.refuse(f"expected a length of at most {_MAX_LIST_LENGTH}; it is {length}")
    dtype = CAST_TYPES[a.choice("dtype", tuple(CAST_TYPES), "fp32")]
    element = _element(a).element
    shape = tuple(size or 0 for size in element.shape)
    check_room((length, *shape), dtype, a.where)
    return [np.zeros(shape, STORAGE[dtype])] * length


def list_length(a: Arguments) -> Result:
    """How many elements a list has."""
    return np.array(len(a.list_of("ls")), np.int32)


def list_read(a: Arguments) -> Result:
    """The element at an index."""
    values, index = a.list_of("ls"), a.integer("index")
    if not 0 <= index < len(values):
        raise a.refuse(f"index {index} lies outside of a list of {len(values)}")
    return values[index]


def list_gather(a: Arguments) -> Result:
    """The elements at some indices, as one tensor."""
    values, indices = a.list_of("ls"), a.integers("indices")
    if any(not 0 <= index < len(values) for index in indices):
        raise a.refuse(f"indices {indices} lie outside of a list of {len(values)}")
    return np.stack([values[index] for index in indices])


def list_write(a: Arguments) -> Result:
    """A list with one element replaced."""
    return _written(a, {a.integer("index"): a.tensor("value")})


def list_scatter(a: Arguments) -> Result:
    """A list with some elements replaced by the slices of a tensor."""
    return _written(a, dict(zip(a.integers("indices"), a.tensor("value"), strict=True)))


def _written(a: Arguments, changes: Mapping[int, Array]) -> list[Array]:
    values = list(a.list_of("ls"))
    if min(changes, default=0) < 0 or max(changes, default=0) >= _MAX_LIST_LENGTH:
        raise a.refuse(f"expected indices from 0 to {_MAX_LIST_LENGTH}; they are {sorted(changes)}")
    longest = max(changes, default=-1) + 1
    if longest > len(values):
        # Lists grow as they are written to.
        values += [np.zeros_like(next(iter(changes.values())))] * (longest - len(values))
    for index, value in changes.items():
        values[index] = np.asarray(value)
    return values


def read_state(a: Arguments) -> Result:
    """What a state holds."""
    return a.state("input").value


def write_state(a: Arguments) -> Result:
    """Puts a value into a state; there is no result."""
    state, data = a.state("input"), a.tensor("data")
    if data.shape != state.value.shape or data.dtype != state.value.dtype:
        raise a.refuse(f"a value of shape {list(data.shape)} does not fit a state of {list(state.value.shape)}")
    state.value = data
    return ()


def classify(a: Arguments) -> Result:
    """The class of the largest probability, and the probabilities in the order of the classes."""
    probabilities, classes = a.tensor("probabilities").reshape(-1), a.list_of("classes")
    if len(classes) != probabilities.size:
        raise a.refuse(f"expected {probabilities.size} classes; it has {len(classes)}")
    return np.asarray(classes[int(np.argmax(probabilities))]), probabilities


OPERATORS: Final[Mapping[str, Operator]] = {
    "classify": classify,
    "cond": cond,
    "const": const,
    "list_gather": list_gather,
    "list_length": list_length,
    "list_read": list_read,
    "list_scatter": list_scatter,
    "list_write": list_write,
    "make_list": make_list,
    "read_state": read_state,
    "while_loop": while_loop,
    "write_state": write_state,
}
