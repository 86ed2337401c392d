"""Read a whole page: load it, find its lines, run the recognizer on each.

`read_page` does not care where the network runs: it is handed a function from named inputs to named outputs. The two
demo pages come from scikit-image's page.png, a photograph of a printed page in uneven light, which the zoo fetches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from flagsplit.apps import zoo
from flagsplit.apps.ocr.ink import PIXELS_MAX
from flagsplit.apps.ocr.lines import LineBox, find_lines
from flagsplit.apps.ocr.recogniser import Reading, cut_line, decode, prepare, resample
from flagsplit.errors import ConfigError, InputError

Tensors = dict[str, NDArray[Any]]

INPUT_NAME: Final = "x"
# Rows of page.png that lie in the white above its body text and below it.
_BODY_TOP: Final = 42
_BODY_BOTTOM: Final = 142
_SEAM_ROWS: Final = 4
_SECOND_PAGE_SCALE: Final = 2


def read_page(
    gray: NDArray[np.uint8],
    run: Callable[[Tensors], Tensors],
    characters: Sequence[str],
    *,
    input_name: str = INPUT_NAME,
    batch_lines: int = 1,
    width_px: int | None = None,
) -> Iterator[tuple[LineBox, Reading]]:
    """Every line of `gray` [H, W] with what it says, in reading order, as soon as it is read.

    `run` takes {input_name: float32 [N, 3, 48, W]} and gives one output, float32 [N, T, C]. A line in which the network
    sees no characters comes with an empty reading. More `batch_lines` save messages where a link is slow to turn round;
    `width_px` fixes W for a network that was compiled for one shape.

    Raises:
        InputError: `gray` is not a page, or the output does not fit `characters`.
    """
    lines = find_lines(gray)
    for first in range(0, len(lines), max(batch_lines, 1)):
        batch = lines[first : first + max(batch_lines, 1)]
        outputs = run({input_name: prepare([cut_line(gray, line) for line in batch], width_px=width_px)})
        if len(outputs) != 1:
            raise InputError(f"expected one output of a text recognizer; got {sorted(outputs)}")
        yield from zip(batch, decode(next(iter(outputs.values())), characters), strict=True)


def load_gray(path: Path) -> NDArray[np.uint8]:
    """The image in `path` as gray levels [H, W], turned the way that its EXIF tag says.

    Raises:
        ConfigError: Pillow is not installed, or the file is missing or not an image.
        InputError: more pixels than `find_lines` takes.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise ConfigError("loading an image needs Pillow; install it with: pip install 'flagsplit[demo]'") from error
    try:
        # Opening reads the header alone, so an image bomb is refused before it is unpacked.
        with Image.open(path) as image:
            if image.width * image.height > PIXELS_MAX:
                raise InputError(f"expected at most {PIXELS_MAX:,} pixels; {path} has {image.width} x {image.height}")
            return np.array(ImageOps.exif_transpose(image).convert("L"), dtype=np.uint8)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ConfigError(f"expected an image in {path}; it cannot be read: {error}") from error


def first_page(*, cache: Path | None = None) -> NDArray[np.uint8]:
    """scikit-image's page.png [191, 384]: seven lines of print and a cut-off eighth, bowed, in uneven light."""
    return load_gray(zoo.pull("page.png", cache=cache))


def second_page(*, cache: Path | None = None) -> NDArray[np.uint8]:
    """Another page of real print, always the same: the body of page.png above its title, at twice the size."""
    return recut(first_page(cache=cache))


def recut(page: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The second page, made from the first one."""
    body, title = page[_BODY_TOP:_BODY_BOTTOM].astype(np.float64), page[:_BODY_TOP].astype(np.float64)
    # The light on the title is brought to that on the end of the body, or the seam would be an edge across the page.
    columns = np.arange(page.shape[1])
    gain = body[-_SEAM_ROWS:].mean(axis=0) / np.maximum(title[:_SEAM_ROWS].mean(axis=0), 1.0)
    gain = np.polynomial.Polynomial.fit(columns, gain, 3)(columns)
    stacked = np.concatenate([body, title * gain])
    large = resample(stacked, stacked.shape[0] * _SECOND_PAGE_SCALE, stacked.shape[1] * _SECOND_PAGE_SCALE)
    return np.clip(large, 0, 255).round().astype(np.uint8)
