"""What the tests of reading a page share: printed pages made on the spot, the real page and the real recognizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from flagsplit.apps import zoo
from flagsplit.apps.ocr import characters_of, first_page
from flagsplit.errors import PeerError

Page = NDArray[np.uint8]
Print = Callable[..., Page]
Recognizer = tuple[Callable[[dict[str, NDArray[Any]]], dict[str, NDArray[Any]]], tuple[str, ...]]

TEXT = (
    "The quick brown fox jumps over the lazy dog",
    "Pack my box with five dozen liquor jugs.",
    "Sphinx of black quartz, judge my vow - 12345",
    "A",
    'ok: i.e. "quoted", (1 + 2) = 3; and so on...',
    "Waltz, bad nymph, for quick jigs vex",
)


def print_page(
    size_px: int = 20,
    *,
    lines: Sequence[str] = TEXT,
    ink: int = 20,
    paper: int = 235,
    pitch: float = 1.6,
    angle: float = 0.0,
    noise: float = 0.0,
    shade: float = 0.0,
) -> Page:
    """A page with `lines` set in Pillow's own font; `shade` is how much darker its left edge is, as a share."""
    width, height = 30 * size_px, int(size_px * (pitch * len(lines) + 3))
    image = Image.new("L", (width, height), paper)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size=size_px)
    for number, line in enumerate(lines):
        draw.text((size_px, int(size_px * (1.2 + pitch * number))), line, font=font, fill=ink)
    if angle:
        image = image.rotate(angle, resample=Image.Resampling.BICUBIC, fillcolor=paper)
    page = np.asarray(image, dtype=np.float64) * np.linspace(1 - shade, 1, width)
    page += np.random.default_rng(0).normal(0, noise, page.shape)
    return np.clip(page, 0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def printed() -> Print:
    return print_page


@pytest.fixture(scope="session")
def page() -> Page:
    """scikit-image's page.png."""
    try:
        return first_page()
    except PeerError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def recognizer() -> Recognizer:
    """The real recognizer under plain ONNX Runtime, and its characters."""
    try:
        model = zoo.pull("ppocr-rec")
    except PeerError as error:
        pytest.skip(str(error))
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return dict(zip(names, session.run(names, inputs), strict=True))

    return run, characters_of(model)
