"""The Gauss error function, which NumPy lacks: the rational approximations of the Cephes library (`ndtr.c`).

They are within 1e-15 of erf over all of its domain.
"""

from typing import Final

import numpy as np

from flagsplit.targets.mobile.mil.types import Array

_NEAR: Final = (
    9.60497373987051638749e0,
    9.00260197203842689217e1,
    2.23200534594684319226e3,
    7.00332514112805075473e3,
    5.55923013010394962768e4,
)
_NEAR_DIVISOR: Final = (
    1.0,
    3.35617141647503099647e1,
    5.21357949780152679795e2,
    4.59432382970980127987e3,
    2.26290000613890934246e4,
    4.92673942608635921086e4,
)
_FAR: Final = (
    2.46196981473530512524e-10,
    5.64189564831068821977e-1,
    7.46321056442269912687e0,
    4.86371970985681366614e1,
    1.96520832956077098242e2,
    5.26445194995477358631e2,
    9.34528527171957607540e2,
    1.02755188689515710272e3,
    5.57535335369399327526e2,
)
_FAR_DIVISOR: Final = (
    1.0,
    1.32281951154744992508e1,
    8.67072140885989742329e1,
    3.54937778887819891062e2,
    9.75708501743205489753e2,
    1.82390916687909736289e3,
    2.24633760818710981792e3,
    1.65666309194161350182e3,
    5.57535340817727675546e2,
)


def erf(x: Array) -> Array:
    """erf of each element, in the type of `x`."""
    wide = x.astype(np.float64)
    size = np.minimum(np.abs(wide), 7.0)  # beyond which erf is 1 in float64; NaN stays NaN
    square = size * size
    near = size * np.polyval(_NEAR, square) / np.polyval(_NEAR_DIVISOR, square)
    far = 1.0 - np.exp(-square) * np.polyval(_FAR, size) / np.polyval(_FAR_DIVISOR, size)
    result: Array = np.copysign(np.where(size < 1.0, near, far), wide).astype(x.dtype)
    return result
