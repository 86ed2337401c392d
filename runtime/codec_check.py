"""Whether what a segment encoded could be encoded: a look at its outputs after each run, before any of them travels.

A lossy codec takes numbers that are finite and within its range; what it makes of others is defined, but is no longer
near the value. Half precision shows that itself. The 8-bit and 4-bit codecs show a range that was cut, and hide NaN:
segments count it beside the Encode (`flagsplit.flagir.codecs.checks`). Bundles built before that have no such count;
in them NaN under these codecs passes unseen.

What follows from a bad answer, such as another plan for the request, is the caller's matter.
"""

from collections.abc import Mapping
from typing import Final

import numpy as np

from flagsplit.flagir.codecs import EncodedName, read_encoded_name
from flagsplit.targets.interface import Array

_LARGEST_END: Final = 2.0**127
"""Where the ranges of the 8-bit and 4-bit codecs end (`docs/flagir.md`)."""

_BLOCK: Final = 1 << 18
"""Numbers looked at in one go: half a megabyte, which stays in the cache between the two passes over it."""

_HALF_INFINITY: Final = 0x7C00
_HALF_SIGN: Final = 0x8000


def check_encoded(outputs: Mapping[str, Array]) -> str | None:
    """Why a value that a segment encoded must not travel so; None if all may.

    Args:
        outputs: all that the segment made, by name; what is not encoded is passed over.

    Returns:
        A sentence that names the value, the codec and how many numbers, or which range, it is about. Exact for NaN and
        infinities; a range of an 8-bit or 4-bit codec counts as cut when it ends within a step of 2^127.
    """
    for name, array in outputs.items():
        made = read_encoded_name(name)
        if made is None:
            continue
        wrong = None
        if made.codec == "fp16" and made.role == "payload" and array.dtype == np.float16:
            wrong = _in_half_precision(array)
        elif made.role == "check" and array.dtype == np.int64 and array.size == 1:
            count = int(array.reshape(-1)[0])
            wrong = f"{count} of its numbers are NaN or infinite" if count else None
        elif made.role == "scale" and array.dtype == np.float32 and array.size:
            wrong = _in_ranges(made, array, outputs.get(made.with_role("zero_point")))
        if wrong:
            return f"value {made.value!r} cannot travel as {made.codec}: {wrong}"
    return None


def _in_half_precision(payload: Array) -> str | None:
    bits = payload.reshape(-1).view(np.uint16)
    if not any(_has_exception(bits[start : start + _BLOCK]) for start in range(0, bits.size, _BLOCK)):
        return None
    count = np.count_nonzero(bits & _HALF_INFINITY == _HALF_INFINITY)
    return f"{count} of its {bits.size} numbers are NaN, infinite, or 65520 and more in magnitude"


def _has_exception(bits: np.ndarray[tuple[int], np.dtype[np.uint16]]) -> bool:
    """Whether a half-precision number is NaN or infinite.

    Those are the largest of either sign: as unsigned numbers the negative ones come last, as signed ones the positive.
    Two maxima are ten times faster than looking at exponents, and need no memory.
    """
    return bool(bits.max() >= _HALF_SIGN | _HALF_INFINITY) or bool(bits.view(np.int16).max() >= _HALF_INFINITY)


def _in_ranges(made: EncodedName, scale: Array, zero_point: Array | None) -> str | None:
    levels = 15 if made.codec == "u4_per_channel" else 255
    limit = _LARGEST_END * (1 - 1 / levels)
    if float(scale.max()) * levels < limit:
        return None
    codes = levels if zero_point is None else np.maximum(zero_point, levels - zero_point.astype(np.int64))
    ends = scale.astype(np.float64) * codes
    count = np.count_nonzero(~(ends < limit))
    return f"{count} of its {ends.size} ranges reach 2^127, where they are cut" if count else None
