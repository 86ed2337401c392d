"""The codecs by name, and the tensors that each makes of a value.

A codec takes float32. Those of a range per channel give one to each index of the first two axes of a tensor of rank 3
and more (a channel of one picture, a token of one text), to each row of a matrix, and one to the whole of a vector or
a scalar: what is encoded together never depends on its neighbors in the batch, and a range is never that of one
element alone.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from flagsplit.errors import ModelError
from flagsplit.flagir.types import ValueType

NO_CODEC = "none"
"""The name under which a value is sent as it is."""

Dim = int | str
TensorForm = tuple[ir.DataType, tuple[Dim, ...]]
"""Element type and shape, symbols allowed."""


@dataclass(frozen=True)
class Codec:
    """A codec.

    Attributes:
        name: as plans name it.
        functions: the suffix of its functions, `Encode…` and `Decode…`.
        axis: for a rank, the number of leading axes that tell ranges apart; None if the functions take no axis.
        forms: the encoded tensors by role, in the order of the functions' parameters.
    """

    name: str
    functions: str
    axis: Callable[[int], int] | None
    forms: Callable[[Sequence[Dim], int], dict[str, TensorForm]]


def codec_names() -> tuple[str, ...]:
    """All codecs, "none" first and then from the most faithful to the smallest."""
    return (NO_CODEC, *_CODECS)


def codecs_for(kind: ValueType) -> tuple[str, ...]:
    """The codecs that take a value of this type."""
    return codec_names() if kind.dtype == ir.DataType.FLOAT else (NO_CODEC,)


def codec(name: str) -> Codec:
    """A codec by its name, "none" excepted.

    Raises:
        ModelError: there is none of that name.
    """
    if name not in _CODECS:
        raise ModelError(f"expected one of the codecs {', '.join(codec_names())}, came {name!r:.40}")
    return _CODECS[name]


def encoded_types(name: str, kind: ValueType) -> Mapping[str, ValueType]:
    """The tensors that travel instead of a value, by role.

    Args:
        name: one of `codec_names`.
        kind: the value's type.

    Returns:
        `payload` always; `scale` and `zero_point`, of the shape of the leading axes, where there are ranges; `shape`
        where the payload does not have the value's own. "none" gives the value itself as `payload`.

    Raises:
        ModelError: there is no such codec, or it does not take this element type.
    """
    if name == NO_CODEC:
        return {"payload": kind}
    return {
        role: ValueType(dtype, tuple(dim for dim in dims if isinstance(dim, int)))
        for role, (dtype, dims) in encoded_forms(codec(name), kind.dtype, kind.shape).items()
    }


def encoded_bytes(name: str, kind: ValueType) -> int:
    """Bytes of all the tensors that travel instead of a value; raises as `encoded_types` does."""
    return sum(made.size_bytes for made in encoded_types(name, kind).values())


def encoded_forms(chosen: Codec, dtype: ir.DataType | None, dims: Sequence[Dim]) -> dict[str, TensorForm]:
    """As `encoded_types`, for shapes that may have symbols.

    Raises:
        ModelError: the codec does not take this element type.
    """
    if dtype != ir.DataType.FLOAT:
        came = "no tensor" if dtype is None else dtype.name
        raise ModelError(f"codec {chosen.name!r} expects FLOAT, came {came}; send the value with codec 'none'")
    return chosen.forms(dims, chosen.axis(len(dims)) if chosen.axis is not None else 0)


def _whole(_rank: int) -> int:
    return 0


def _channels(rank: int) -> int:
    return 2 if rank > 2 else max(rank - 1, 0)


def _fp16(dims: Sequence[Dim], _axis: int) -> dict[str, TensorForm]:
    return {"payload": (ir.DataType.FLOAT16, tuple(dims))}


def _u8(dims: Sequence[Dim], axis: int) -> dict[str, TensorForm]:
    return {"payload": (ir.DataType.UINT8, tuple(dims)), **_ranges(dims, axis)}


def _u4(dims: Sequence[Dim], axis: int) -> dict[str, TensorForm]:
    sizes = [dim for dim in dims if isinstance(dim, int)]
    packed: Dim = -(-math.prod(sizes) // 2) if len(sizes) == len(dims) else "half_of_" + "_".join(map(str, dims))
    shape = (ir.DataType.INT64, (len(dims),))
    return {"payload": (ir.DataType.UINT8, (packed,)), **_ranges(dims, axis), "shape": shape}


def _ranges(dims: Sequence[Dim], axis: int) -> dict[str, TensorForm]:
    lead = tuple(dims[:axis])
    return {"scale": (ir.DataType.FLOAT, lead), "zero_point": (ir.DataType.UINT8, lead)}


_CODECS = {
    made.name: made
    for made in (
        Codec("fp16", "Fp16", None, _fp16),
        Codec("u8_per_channel", "U8", _channels, _u8),
        Codec("u8", "U8", _whole, _u8),
        Codec("u4_per_channel", "U4", _channels, _u4),
    )
}
