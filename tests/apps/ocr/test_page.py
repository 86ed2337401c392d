from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from flagsplit.apps import zoo
from flagsplit.apps.ocr import find_lines, load_gray, read_page
from flagsplit.apps.ocr.ink import PIXELS_MAX
from flagsplit.apps.ocr.page import recut
from flagsplit.errors import ConfigError, InputError, PeerError

Page = NDArray[np.uint8]
Print = Callable[..., Page]
Tensors = dict[str, NDArray[Any]]
Recognizer = tuple[Callable[[Tensors], Tensors], tuple[str, ...]]

# Read by eye off the image. The line below the last is cut off by the edge of the photograph.
PAGE_TEXT = (
    "Region-based segmentation",
    "Let us first determine markers of the coins and the",
    "background. These markers are pixels that we can label",
    "unambiguously as either object or background. Here,",
    "the markers are found at the two extreme parts of the",
    "histogram of grey values:",
    ">>> markers = np.zeros_like(coins)",
)


def edits(one: str, other: str) -> int:
    """Levenshtein distance."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        previous, row[0] = row[0], i
        for j, b in enumerate(other, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (a != b))
    return row[-1]


def error_rate(read: Sequence[str], truth: Sequence[str]) -> float:
    return sum(edits(a, b) for a, b in zip(read, truth, strict=True)) / sum(map(len, truth))


def texts(page: Page, recognizer: Recognizer, batch_lines: int = 1) -> list[str]:
    return [reading.text for _, reading in read_page(page, *recognizer, batch_lines=batch_lines)]


@pytest.mark.slow
def test_page_png_is_read(page: Page, recognizer: Recognizer) -> None:
    read = texts(page, recognizer)
    assert read[0] == "Region-based segmentation"
    assert error_rate(read[:7], PAGE_TEXT) < 0.03


@pytest.mark.slow
def test_page_png_is_read_in_batches_and_as_a_negative(page: Page, recognizer: Recognizer) -> None:
    assert error_rate(texts(page, recognizer, batch_lines=3)[:7], PAGE_TEXT) < 0.03
    assert error_rate(texts(255 - page, recognizer)[:7], PAGE_TEXT) < 0.03


@pytest.mark.slow
def test_page_png_is_read_at_one_width(page: Page, recognizer: Recognizer) -> None:
    read = [reading.text for _, reading in read_page(page, *recognizer, width_px=960)]
    assert error_rate(read[:7], PAGE_TEXT) < 0.05


@pytest.mark.slow
def test_the_second_page_is_read_without_a_mistake(page: Page, recognizer: Recognizer) -> None:
    second = recut(page)
    assert second.shape == (284, 768)
    assert texts(second, recognizer) == [*PAGE_TEXT[1:6], PAGE_TEXT[0]]
    np.testing.assert_array_equal(second, recut(page))


@pytest.mark.slow
@pytest.mark.parametrize(
    "look", [{}, {"angle": 3.0}, {"angle": -2.0}, {"ink": 240, "paper": 20, "shade": 0.5}], ids=str
)
def test_a_printed_page_is_read(printed: Print, recognizer: Recognizer, look: dict[str, Any]) -> None:
    lines = ["The quick brown fox jumps over", "the lazy dog, and Pack my box", "with five dozen liquor jugs."]
    assert error_rate(texts(printed(28, lines=lines, **look), recognizer), lines) < 0.05


@pytest.mark.slow
def test_handwriting_in_perspective_gives_little_and_no_error(recognizer: Recognizer) -> None:
    try:
        page = load_gray(zoo.pull("text.png"))
    except PeerError as error:
        pytest.skip(str(error))
    # Formulas between ruled lines, seen from the side: there is no line of print to find, and no long one is made up.
    for line, reading in read_page(page, *recognizer):
        assert 0 <= line.top < line.bottom <= page.shape[0]
        assert len(reading.text) < 8


def test_a_blank_page_runs_nothing() -> None:
    def run(inputs: Tensors) -> Tensors:
        raise AssertionError("nothing to run")

    assert list(read_page(np.full((50, 50), 200, np.uint8), run, ("", "a"))) == []


@pytest.mark.parametrize("batch_lines", [0, 1, 4, 99])
def test_lines_come_in_order_whatever_the_batch(printed: Print, batch_lines: int) -> None:
    page = printed(20)
    sizes: list[int] = []

    def run(inputs: Tensors) -> Tensors:
        batch = inputs["x"]
        sizes.append(len(batch))
        return {"y": np.tile(np.array([[[0.1, 0.9]]], np.float32), (len(batch), 5, 1))}

    readings = list(read_page(page, run, ("", "a"), batch_lines=batch_lines))
    assert tuple(line for line, _ in readings) == find_lines(page)
    assert {reading.text for _, reading in readings} == {"a"}
    assert sum(sizes) == 6
    assert max(sizes) == min(max(batch_lines, 1), 6)


def test_readings_come_one_by_one(printed: Print) -> None:
    calls: list[int] = []

    def run(inputs: Tensors) -> Tensors:
        calls.append(1)
        return {"y": np.ones((1, 1, 2), np.float32)}

    next(read_page(printed(20), run, ("", "a")))
    assert len(calls) == 1


def test_a_second_output_is_refused(printed: Print) -> None:
    with pytest.raises(InputError, match="expected one output"):
        list(read_page(printed(20), lambda _: {}, ("", "a")))


def test_an_image_is_loaded_as_gray_and_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 10), (255, 255, 255)).save(tmp_path / "a.jpg", exif=exif)
    page = load_gray(tmp_path / "a.jpg")
    assert page.shape == (30, 10)
    assert page.dtype == np.uint8


def test_what_is_not_an_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no image")
    for name in ("a.png", "missing.png"):
        with pytest.raises(ConfigError, match="expected an image"):
            load_gray(tmp_path / name)


def test_an_image_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    Image.new("1", (PIXELS_MAX // 5000 + 1, 5000)).save(tmp_path / "bomb.png")
    with pytest.raises(InputError, match="expected at most"):
        load_gray(tmp_path / "bomb.png")


def test_without_pillow_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ConfigError, match=r"flagsplit\[demo\]"):
        load_gray(tmp_path / "a.png")
