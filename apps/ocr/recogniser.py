"""Around the PP-OCRv4 text recognizer: from a line on a page to its input, and from its output to text.

The network takes float32 [N, 3, 48, W] in -1..1 and gives, for every eighth column, a probability for each of its
characters; class 0 is the blank of connectionist temporal classification (A. Graves et al., ICML 2006). The scaling and
the padding are those that PaddleOCR trained it with. Nothing here runs the network: `page.py` is handed a function that
does, be it ONNX Runtime in this process or a session over three machines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray

from flagsplit.apps.ocr.lines import LineBox
from flagsplit.errors import InputError, ModelError

INPUT_HEIGHT_PX: Final = 48
# Trained on lines of this width; a shorter one is padded to it.
INPUT_WIDTH_MIN_PX: Final = 320
# A line eighty times as wide as it is high is squeezed rather than given memory without bound.
INPUT_WIDTH_MAX_PX: Final = 80 * INPUT_HEIGHT_PX
_METADATA_KEY: Final = "character"
# Share of the letter height left as paper above and below: the network was trained on boxes with a margin.
_MARGIN: Final = 0.18


@dataclass(frozen=True)
class Reading:
    """The text of one line; `confidence` is the mean probability of its characters, 0 where there is none."""

    text: str
    confidence: float


def characters_of(model: Path) -> tuple[str, ...]:
    """The class names of a recognizer: the blank as an empty string, the list in the model's metadata, the space.

    Raises:
        ModelError: the file is not an ONNX model or carries no list.
    """
    try:
        metadata = onnx.load(model, load_external_data=False).metadata_props
    except Exception as error:  # protobuf, onnx and the file system each raise their own
        raise ModelError(f"expected an ONNX text recognizer in {model}; it cannot be read: {error}") from error
    for entry in metadata:
        if entry.key == _METADATA_KEY:
            return ("", *entry.value.removesuffix("\n").split("\n"), " ")
    raise ModelError(f"expected a list of characters under {_METADATA_KEY!r} in the metadata of {model}; there is none")


def cut_line(gray: NDArray[np.uint8], box: LineBox) -> NDArray[np.float64]:
    """The line `box` of the page `gray` [H, W], bent straight, with a margin: gray levels [h, w]."""
    height_px = max(box.letter_height_px, 4.0)
    margin_px = max(1, round(_MARGIN * height_px))
    columns = np.arange(box.left - margin_px, box.right + margin_px, dtype=np.float64)
    first_row = box.top - box.drop_range_px[0] - margin_px + box.drop_px(columns)
    rows = first_row[None, :] + np.arange(round(height_px) + 2 * margin_px)[:, None]
    rows = np.clip(rows, 0, gray.shape[0] - 1)
    above = np.floor(rows).astype(np.int64)
    below = np.minimum(above + 1, gray.shape[0] - 1)
    column = np.clip(columns, 0, gray.shape[1] - 1).astype(np.int64)[None, :]
    part = rows - above
    line: NDArray[np.float64] = (1 - part) * gray[above, column] + part * gray[below, column]
    return line


def prepare(
    crops: Sequence[NDArray[np.uint8] | NDArray[np.float64]], *, width_px: int | None = None
) -> NDArray[np.float32]:
    """One batch for the recognizer from gray `crops` [h, w] in 0..255: [N, 3, 48, W], W that of the widest.

    `width_px` fixes W, for a network that was compiled for one shape; longer lines are squeezed into it.

    Raises:
        InputError: no crops, one that is empty or not two-dimensional, or a width out of range.
    """
    for crop in crops:
        if crop.ndim != 2 or not crop.size:
            raise InputError(f"expected gray crops [h, w]; got one of shape {list(crop.shape)}")
    if not crops:
        raise InputError("expected at least one crop; got none")
    if width_px is not None and not 1 <= width_px <= INPUT_WIDTH_MAX_PX:
        raise InputError(f"expected a width of 1 to {INPUT_WIDTH_MAX_PX} pixels; got {width_px}")
    widths = [min(_input_width(*crop.shape), width_px or INPUT_WIDTH_MAX_PX) for crop in crops]
    batch = np.zeros((len(crops), 3, INPUT_HEIGHT_PX, width_px or max(INPUT_WIDTH_MIN_PX, *widths)), dtype=np.float32)
    for slot, crop, width in zip(batch, crops, widths, strict=True):
        # Padding stays at 0, which is mid-gray: the value that the network was trained to read as nothing.
        slot[:, :, :width] = (resample(crop, INPUT_HEIGHT_PX, width) / 255.0 - 0.5) / 0.5
    return batch


def _input_width(height_px: int, width_px: int) -> int:
    return int(np.ceil(INPUT_HEIGHT_PX * width_px / height_px))


def resample(image: NDArray[np.uint8] | NDArray[np.float64], height_px: int, width_px: int) -> NDArray[np.float64]:
    """`image` [h, w] at another size, by linear interpolation, or by weighted averages where it shrinks."""
    return _resample_rows(_resample_rows(image.astype(np.float64), height_px).T, width_px).T


def _resample_rows(image: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    count = image.shape[0]
    scale = count / size
    reach = max(scale, 1.0)
    centers = np.clip((np.arange(size) + 0.5) * scale - 0.5, 0, count - 1)
    rows = np.floor(centers - reach).astype(np.int64)[:, None] + np.arange(2 * int(np.ceil(reach)) + 2)
    weights = np.maximum(1.0 - np.abs(centers[:, None] - rows) / reach, 0.0) * ((rows >= 0) & (rows < count))
    weights /= weights.sum(axis=1, keepdims=True)
    scaled: NDArray[np.float64] = np.einsum("ok,okw->ow", weights, image[np.clip(rows, 0, count - 1)])
    return scaled


def decode(probabilities: NDArray[np.float32], characters: Sequence[str]) -> tuple[Reading, ...]:
    """Greedy CTC: the best class of each step of [N, T, C], repeats merged, blanks (class 0) left out.

    Raises:
        InputError: the shape does not fit, or there are not C characters.
    """
    if probabilities.ndim != 3 or probabilities.shape[2] != len(characters):
        raise InputError(
            f"expected probabilities [N, T, {len(characters)}], one for each character; "
            f"got {list(probabilities.shape)}; take the characters from the same model"
        )
    best, value = probabilities.argmax(axis=2), probabilities.max(axis=2)
    kept = best != 0
    kept[:, 1:] &= best[:, 1:] != best[:, :-1]
    return tuple(
        Reading(
            "".join(characters[index] for index in row[keep]),
            float(certainty[keep].mean(dtype=np.float64)) if keep.any() else 0.0,
        )
        for row, certainty, keep in zip(best, value, kept, strict=True)
    )
