"""Which bucket a size goes into. No graph is needed for that, so nothing of ONNX is loaded.

Models of fixed sizes are made in `flagsplit.flagir.specialize`, asked in `flagsplit.runtime.bucketed`.
"""

from collections.abc import Iterable

from flagsplit.errors import InputError


def smallest_holding(symbol: str, buckets: Iterable[int], size: int) -> int:
    """The smallest bucket that holds a size.

    Args:
        symbol: the dimension that they are sizes of.
        buckets: at least one.
        size: what is to go into one of them.

    Raises:
        InputError: the size is below 1 or no bucket holds it.
    """
    ascending = sorted(buckets)
    found = next((bucket for bucket in ascending if bucket >= size), None)
    if size < 1 or found is None:
        most = ascending[-1]
        raise InputError(f"expected a size of 1 to {most} for dimension {symbol!r}, came {size}; add a bucket")
    return found
