"""Checking what an application asks with, before anything is sent; and making inputs where it gave none."""

import zlib
from collections.abc import Mapping, Sequence

import numpy as np

from flagsplit.errors import InputError
from flagsplit.runtime.manifest import Tensor
from flagsplit.targets.interface import Array

STRING = "string"
"""`Tensor.dtype` of strings."""


def check_inputs(
    declared: Sequence[Tensor],
    given: Mapping[str, object],
    ranges: Mapping[str, tuple[int, int]] | None = None,
    listed: Mapping[str, Sequence[int]] | None = None,
) -> dict[str, Array]:
    """The inputs as contiguous arrays of their own, in the declared order.

    Args:
        declared: the graph inputs.
        given: one array-like per input.
        ranges: smallest and largest size of symbols, where the build was told.
        listed: the only sizes of symbols, where the build was told.

    Raises:
        InputError: a name is missing or unknown, or a dtype or shape differs; the message says which and what is
            expected.
    """
    names = [tensor.name for tensor in declared]
    missing = [name for name in names if name not in given]
    unknown = [name for name in given if name not in names]
    if missing or unknown:
        came = ", ".join(map(repr, given)) or "none"
        raise InputError(f"expected inputs {', '.join(map(repr, names))}, came {came}; rename or add them")
    symbols: dict[str, tuple[int, str]] = {}
    arrays = {tensor.name: _checked(tensor, given[tensor.name], symbols) for tensor in declared}
    for symbol, (low, high) in (ranges or {}).items():
        size, name = symbols.get(symbol, (low, ""))
        if not low <= size <= high:
            raise InputError(
                f"input {name!r}: expected {symbol} from {low} to {high}, came {size}; build for a wider range"
            )
    for symbol, sizes in (listed or {}).items():
        size, name = symbols.get(symbol, (sizes[0] if sizes else 0, ""))
        if name and size not in sizes:
            told = ", ".join(map(str, sizes))
            raise InputError(f"input {name!r}: expected {symbol} of {told}, came {size}; list it when building")
    return arrays


def _checked(tensor: Tensor, value: object, symbols: dict[str, tuple[int, str]]) -> Array:
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as error:
        raise InputError(f"input {tensor.name!r}: expected an array of {tensor.dtype}, came {error}") from None
    if tensor.dtype == STRING:
        array = _texts(tensor, array)
    elif array.dtype.name != tensor.dtype:
        raise InputError(
            f"input {tensor.name!r}: expected dtype {tensor.dtype}, came {array.dtype.name}; "
            f"convert it with .astype({tensor.dtype!r})"
        )
    text = "[" + ", ".join(map(str, tensor.shape)) + "]"
    if array.ndim != len(tensor.shape):
        raise InputError(f"input {tensor.name!r}: expected shape {text}, came {list(array.shape)}")
    for want, size in zip(tensor.shape, array.shape, strict=True):
        known, where = (want, "") if isinstance(want, int) else symbols.setdefault(want, (size, tensor.name))
        if known != size:
            also = f" ({want} is {known} in input {where!r})" if where else ""
            raise InputError(f"input {tensor.name!r}: expected shape {text}, came {list(array.shape)}{also}")
    return np.array(array, dtype=array.dtype.newbyteorder("="), order="C", copy=True)


def _texts(tensor: Tensor, array: Array) -> Array:
    """Strings as an array of Python's own, which engines take."""
    texts = array.astype(object)
    if array.dtype.kind not in "OUT" or not all(isinstance(text, str) for text in texts.flat):
        raise InputError(f"input {tensor.name!r}: expected strings, came {array.dtype.name}; give str, decoded")
    return texts


def random_inputs(declared: Sequence[Tensor], dims: Mapping[str, int], seed: int = 0) -> dict[str, Array]:
    """Seeded inputs of the declared shapes.

    Args:
        declared: the graph inputs.
        dims: a size for every symbol.
        seed: same seed, same inputs.

    Returns:
        Standard normal values for floats, 0 or 1 for integers and booleans: integers are mostly indices and masks, and
        those two are in range for every vocabulary.

    Raises:
        InputError: an input is neither a number nor a boolean, so nothing sensible can be made up.
    """
    made: dict[str, Array] = {}
    for tensor in declared:
        generator = np.random.default_rng([seed, zlib.crc32(tensor.name.encode())])
        shape = [size if isinstance(size, int) else dims.get(size, 1) for size in tensor.shape]
        kind = np.dtype(tensor.dtype) if tensor.dtype in np.sctypeDict else None
        if kind is None or kind.kind not in "fiub":
            raise InputError(f"input {tensor.name!r} is {tensor.dtype}: give it with --input, it cannot be made up")
        if kind.kind == "f":
            made[tensor.name] = generator.standard_normal(shape).astype(kind)
        else:
            made[tensor.name] = generator.integers(0, 2, shape).astype(kind)
    return made
