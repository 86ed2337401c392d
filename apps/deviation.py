"""How far what came is from what the reference gives, value by value, and whether that is too far.

Whole numbers and booleans must be equal. An encoded value (`flagsplit.flagir.codecs`) is looked at as it is decoded:
where rounding falls is the codec's matter, so it may be off by one step of the codec more than the tolerance.
`flagsplit.apps.tolerances` says what is allowed where, `flagsplit.apps.compare` has the two figures of `run --check`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from flagsplit.flagir.codecs import EncodedName, read_encoded_name
from flagsplit.targets.interface import Array

_HALF_STEP = 2.0**-10
"""What one step of half precision is of a number, at most."""


@dataclass(frozen=True)
class Tolerance:
    """What may differ.

    Attributes:
        measure: "exact", no bit; "norm", the norm of the difference over that of what is expected; "cosine", the
            cosine of the angle between the two.
        limit: the largest norm, or the smallest cosine.
    """

    measure: Literal["exact", "norm", "cosine"]
    limit: float = 0.0

    def __str__(self) -> str:
        if self.measure == "exact":
            return "bit for bit"
        return f"norm ≤ {self.limit:g}" if self.measure == "norm" else f"cosine ≥ {self.limit:g}"

    def widened(self, share: float) -> "Tolerance":
        """The same with a relative error of so much more allowed; "exact" stays."""
        if self.measure == "norm":
            return Tolerance("norm", self.limit + share)
        if self.measure == "cosine":
            angle = math.sqrt(max(0.0, 2 - 2 * self.limit)) + share
            return Tolerance("cosine", max(0.0, 1 - angle**2 / 2))
        return self


EXACT = Tolerance("exact")


@dataclass(frozen=True)
class FirstDifference:
    """The first element that differs by more than what would be allowed if all did.

    Attributes:
        index: its position, one number for each axis.
        expected, came: its values.
    """

    index: tuple[int, ...]
    expected: float | int | bool | str
    came: float | int | bool | str


@dataclass(frozen=True)
class Deviation:
    """Of one tensor.

    Attributes:
        name: of the value.
        dtype, shape: of what was expected.
        norm_relative: norm of the difference over the norm of what is expected; where that is 0, the root mean square
            of the difference. Infinite where shapes differ or one of the two is not finite and the other is.
        max_abs: largest difference of an element.
        cosine: of the angle between both; 1 for equal directions.
        differing: how many elements are not equal; a NaN equals a NaN, an infinity the same infinity.
        departs: whether that is too much.
        first: the first element that is off, if any is.
        note: what is wrong beside the figures, such as another shape.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    norm_relative: float
    max_abs: float
    cosine: float
    differing: int
    departs: bool
    first: FirstDifference | None = None
    note: str = ""

    def to_data(self) -> dict[str, Any]:
        """As JSON data."""
        first = self.first
        return {
            "name": self.name,
            "dtype": self.dtype,
            "shape": list(self.shape),
            "norm_relative": self.norm_relative,
            "max_abs": self.max_abs,
            "cosine": self.cosine,
            "differing": self.differing,
            "departs": self.departs,
            "first": first and {"index": list(first.index), "expected": first.expected, "came": first.came},
            "note": self.note,
        }


def deviations(expected: Mapping[str, Array], came: Mapping[str, Array], allowed: Tolerance) -> list[Deviation]:
    """Compare tensor by tensor; those that encode one value are compared as that value unless all must be exact.

    Args:
        expected: by the reference.
        came: has all of these names.
        allowed: what may differ.
    """
    if allowed.measure == "exact":
        return [deviation(name, array, came[name], allowed) for name, array in expected.items()]
    found, seen = list[Deviation](), set[str]()
    for name, array in expected.items():
        made = read_encoded_name(name)
        group = _group(made, expected) if made is not None else ()
        if made is None or not group:
            if name not in seen:
                found.append(deviation(name, array, came[name], allowed))
        elif made.role == "payload":
            wanted, step = _decoded(made, expected)
            share = step / (_norm(wanted) or math.sqrt(wanted.size))
            label = f"{made.value} as {made.codec}{made.rest}"
            got = _decoded(made, came)[0] if _same_forms(group, expected, came) else np.zeros(0, np.float32)
            found.append(deviation(label, wanted, got, allowed.widened(share)))
            seen.update(group)
    return found


def worst(found: list[Deviation]) -> Deviation | None:
    """The one that is farthest off, what departs before what does not."""
    return max(found, key=lambda each: (each.departs, each.norm_relative), default=None)


def deviation(name: str, expected: Array, came: Array, allowed: Tolerance) -> Deviation:
    """Compare one tensor."""
    dtype, shape = expected.dtype.name, expected.shape
    if came.shape != shape or came.dtype != expected.dtype:
        note = f"expected {dtype} {list(shape)}, came {came.dtype.name} {list(came.shape)}"
        return Deviation(name, dtype, shape, math.inf, math.inf, 0.0, expected.size, True, None, note)
    unequal = _unequal(expected, came)
    differing = int(np.count_nonzero(unequal))
    if not differing:
        return Deviation(name, dtype, shape, 0.0, 0.0, 1.0, 0, departs=False)
    if expected.dtype.kind not in "fiub":
        at = _index(unequal)
        first = FirstDifference(at, str(expected[at]), str(came[at]))
        return Deviation(name, dtype, shape, math.inf, math.inf, 0.0, differing, True, first)
    wide, got = expected.astype(np.float64), came.astype(np.float64)
    relative, gap, cosine = _figures(wide, got, unequal)
    if expected.dtype == np.float16:
        allowed = allowed.widened(_HALF_STEP)
    exact = allowed.measure == "exact" or expected.dtype.kind in "iub"
    fits = relative <= allowed.limit if allowed.measure == "norm" else cosine >= allowed.limit
    off = _off(wide, got, unequal, 0.0 if exact or allowed.measure != "norm" else allowed.limit)
    first = FirstDifference(off, expected[off].item(), came[off].item())
    note = _not_finite(wide, got)
    return Deviation(name, dtype, shape, relative, gap, cosine, differing, exact or not fits or bool(note), first, note)


def _unequal(expected: Array, came: Array) -> NDArray[np.bool_]:
    unequal = np.asarray(expected != came)
    if expected.dtype.kind == "f":
        unequal &= ~(np.isnan(expected) & np.isnan(came))
    return unequal


def _figures(
    expected: NDArray[np.float64], came: NDArray[np.float64], unequal: NDArray[np.bool_]
) -> tuple[float, float, float]:
    """Relative norm, largest difference and cosine; not finite on both sides alike counts as equal."""
    with np.errstate(invalid="ignore"):
        gaps = np.where(unequal, came - expected, 0.0)
    if not np.isfinite(gaps).all():
        return math.inf, math.inf, 0.0
    alike = np.isfinite(expected)
    a, b = np.where(alike, expected, 0.0), np.where(alike, came, 0.0)
    largest = float(np.abs(gaps).max())
    length, other = _norm(a), _norm(b)
    if not length:
        return _norm(gaps) / math.sqrt(gaps.size), largest, 0.0
    cosine = float(np.dot((a / length).ravel(), (b / other).ravel())) if other else 0.0
    return _norm(gaps) / length, largest, cosine


def _norm(array: Array) -> float:
    """The Euclidean norm, also where squares would overflow."""
    scale = float(np.abs(array).max()) if array.size else 0.0
    if not scale or not math.isfinite(scale):
        return scale
    return scale * float(np.linalg.norm((array.astype(np.float64) / scale).ravel()))


def _off(
    expected: NDArray[np.float64], came: NDArray[np.float64], unequal: NDArray[np.bool_], share: float
) -> tuple[int, ...]:
    finite = expected[np.isfinite(expected)]
    usual = _norm(finite) / math.sqrt(finite.size) if finite.size else 0.0
    with np.errstate(invalid="ignore"):
        gaps = np.abs(came - expected)
    beyond = unequal & ~(gaps <= share * usual)
    return _index(beyond if beyond.any() else unequal)


def _index(where: NDArray[np.bool_]) -> tuple[int, ...]:
    return tuple(int(at) for at in np.unravel_index(int(np.argmax(where)), where.shape))


def _not_finite(expected: NDArray[np.float64], came: NDArray[np.float64]) -> str:
    """What of a result is NaN or infinite that should not be, or the other way round."""
    for what, test in (("NaN", np.isnan), ("infinite", np.isinf)):
        count, wanted = int(np.count_nonzero(test(came))), int(np.count_nonzero(test(expected)))
        if count != wanted:
            return f"{count} elements are {what}, {wanted} expected"
    if (np.isinf(expected) & (expected != came)).any():
        return "infinite elements are of the other sign or at other places"
    if (np.isnan(expected) != np.isnan(came)).any():
        return "NaN is at other places"
    return ""


def _group(made: EncodedName, tensors: Mapping[str, Array]) -> tuple[str, ...]:
    """The tensors that encode the same value, if they are all there and of the forms that the codec makes."""
    roles = {"fp16": ("payload",), "u4_per_channel": ("payload", "scale", "zero_point", "shape")}
    names = tuple(made.with_role(role) for role in roles.get(made.codec, ("payload", "scale", "zero_point")))
    return names if made.role != "check" and all(name in tensors for name in names) else ()


def _same_forms(names: tuple[str, ...], expected: Mapping[str, Array], came: Mapping[str, Array]) -> bool:
    forms = [(expected[name].dtype, expected[name].shape) == (came[name].dtype, came[name].shape) for name in names]
    shapes = [name for name in names if expected[name].dtype == np.int64]
    return all(forms) and all(np.array_equal(expected[name], came[name]) for name in shapes)


def _decoded(made: EncodedName, tensors: Mapping[str, Array]) -> tuple[Array, float]:
    """The value, and the norm of what it changes by if every element is off by one step of the codec."""
    payload = tensors[made.with_role("payload")]
    if made.codec == "fp16":
        value = payload.astype(np.float32)
        return value, _HALF_STEP * _norm(value[np.isfinite(value)])
    scale, zero = tensors[made.with_role("scale")], tensors[made.with_role("zero_point")]
    if made.codec == "u4_per_channel":
        payload = _unpacked(payload.astype(np.uint8), tuple(int(size) for size in tensors[made.with_role("shape")]))
    lead = scale.shape + (1,) * (payload.ndim - scale.ndim)
    steps = np.broadcast_to(scale.reshape(lead).astype(np.float64), payload.shape)
    value = ((payload.astype(np.int64) - zero.reshape(lead).astype(np.int64)) * steps).astype(np.float32)
    return value, _norm(steps)


def _unpacked(payload: NDArray[np.uint8], shape: tuple[int, ...]) -> Array:
    """Byte i holds code i and, in its upper half, code i of the last ceil(n/2); see `EncodeU4`."""
    count = math.prod(shape)
    front, back = payload & 15, payload >> 4
    return np.concatenate([front, back[2 * payload.size - count :]]).reshape(shape)
