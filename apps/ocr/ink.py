"""Which pixels of a scanned page are ink.

The page is compared with its own blurred self, so that a shadow or the darker fold of a book does not count as ink, and
the threshold follows the contrast nearby, so that a dim corner is read like a bright one. Works for dark print on light
paper and for the reverse, without being told which. `components.py` takes the mask apart, `lines.py` makes lines of it.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from flagsplit.errors import InputError

# An A4 page at 600 dots per inch has 35 million pixels; the float planes of a larger one would crowd out the model.
PIXELS_MAX: Final = 50_000_000
# Below this many gray levels it is paper grain and JPEG blocks, even where the noise estimate is nil.
_CONTRAST_MIN: Final = 12.0
_NOISE_SIGMAS: Final = 4.0
_SPREADS: Final = 0.5


def ink_mask(gray: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Where `gray` [H, W] has ink: darker than its surroundings, or lighter on a page that is printed light on dark.

    Raises:
        InputError: not a two-dimensional uint8 image, or too large a one.
    """
    if gray.ndim != 2 or gray.dtype != np.uint8:
        raise InputError(f"expected a page as uint8 [H, W]; got {gray.dtype} {list(gray.shape)}; convert it to gray")
    if gray.size > PIXELS_MAX:
        raise InputError(f"expected a page of at most {PIXELS_MAX:,} pixels; got {gray.size:,}; scale it down")
    if min(gray.shape) < 3:
        return np.zeros(gray.shape, dtype=np.bool_)
    page = gray.astype(np.float64)
    window_px = max(15, min(gray.shape) // 4)
    difference = page - _local_mean(page, window_px)
    # Ink covers less of a page than paper does, so it is the long tail of the differences, on whichever side that lies.
    darkness = difference if (difference**3).sum() > 0 else -difference
    spread = np.sqrt(np.maximum(_local_mean(difference**2, window_px), 0.0))
    floor = max(_CONTRAST_MIN, _NOISE_SIGMAS * _noise_sigma(page))
    mask: NDArray[np.bool_] = darkness > np.maximum(_SPREADS * spread, floor)
    return mask


def _local_mean(page: NDArray[np.float64], window_px: int) -> NDArray[np.float64]:
    """Mean over a square around each pixel, by an integral image: the same time for any window."""
    reach = min(window_px // 2, min(page.shape) - 1)
    size = 2 * reach + 1
    total = np.pad(np.pad(page, reach, mode="reflect"), ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1)
    window = total[size:, size:] - total[:-size, size:] - total[size:, :-size] + total[:-size, :-size]
    mean: NDArray[np.float64] = window / size**2
    return mean


def _noise_sigma(page: NDArray[np.float64]) -> float:
    """Standard deviation of the pixel noise, in gray levels, from a difference that cancels any slope of the light.

    The kernel is that of J. Immerkaer, "Fast noise variance estimation", CVIU 64(2), 1996; the median in place of the
    mean makes it blind to letters.
    """
    bent = page[:, :-2] - 2 * page[:, 1:-1] + page[:, 2:]
    bent = bent[:-2] - 2 * bent[1:-1] + bent[2:]
    return float(np.median(np.abs(bent))) / 0.6745 / 6.0
