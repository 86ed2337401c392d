from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from flagsplit.apps.ocr import LineBox, find_lines
from flagsplit.apps.ocr.ink import PIXELS_MAX
from flagsplit.errors import InputError

Page = NDArray[np.uint8]
Print = Callable[..., Page]

# Measured by eye on the image, enlarged: rows of the letters in the middle of each line, and its columns.
PAGE_LINES = [
    ("Region-based segmentation", 13, 34, 7, 292),
    ("Let us first", 51, 63, 6, 376),
    ("background. These", 69, 84, 6, 376),
    ("unambiguously", 87, 102, 6, 376),
    ("the markers are", 104, 119, 6, 376),
    ("histogram", 118, 137, 7, 170),
    (">>> markers", 170, 190, 19, 240),
]


def inside(line: LineBox, page: Page) -> bool:
    height, width = (int(side) for side in page.shape)
    return 0 <= line.top < line.bottom <= height and 0 <= line.left < line.right <= width


@pytest.mark.parametrize("size_px", [10, 12, 16, 24, 40, pytest.param(80, marks=pytest.mark.slow)])
def test_every_line_at_any_size(printed: Print, size_px: int) -> None:
    page = printed(size_px)
    lines = find_lines(page)
    assert len(lines) == 6
    for number, line in enumerate(lines):
        first = size_px * (1.2 + 1.6 * number)
        assert first - 1 <= line.top < line.bottom <= first + 1.4 * size_px
        assert abs(line.left - size_px) <= 0.2 * size_px + 2
    assert all(inside(line, page) for line in lines)


@pytest.mark.parametrize(
    "look",
    [
        {"ink": 240, "paper": 20},
        {"ink": 240, "paper": 20, "shade": 0.6},
        {"ink": 120, "paper": 150},
        {"noise": 8.0},
        {"noise": 20.0},
        {"shade": 0.6},
        {"shade": 0.6, "noise": 5.0, "ink": 60, "paper": 200},
        {"pitch": 1.1},
        {"angle": 1.0},
        {"angle": 2.0},
        {"angle": -3.0},
        {"angle": 4.0, "pitch": 1.25},
    ],
    ids=str,
)
def test_every_line_in_order_however_it_looks(printed: Print, look: dict[str, Any]) -> None:
    lines = find_lines(printed(20, **look))
    assert len(lines) == 6
    # The fourth is a single letter, which tells whether the order is right.
    assert lines[3].width < 20 < min(line.width for line in (*lines[:3], *lines[4:]))


def test_ink_edges_are_the_box_edges(printed: Print) -> None:
    page = printed(24, lines=["Hamburgefonstiv"])
    rows, columns = np.nonzero(page < 120)
    (line,) = find_lines(page)
    assert abs(line.top - rows.min()) <= 1
    assert abs(line.bottom - rows.max() - 1) <= 1
    assert abs(line.left - columns.min()) <= 1
    assert abs(line.right - columns.max() - 1) <= 1


def test_punctuation_at_the_end_belongs_to_the_line(printed: Print) -> None:
    bare, ended = (find_lines(printed(24, lines=[text]))[0] for text in ("so on", "so on..."))
    assert ended.right > bare.right + 10


@pytest.mark.parametrize(
    ("name", "page"),
    [
        ("white", np.full((120, 160), 255, np.uint8)),
        ("black", np.zeros((120, 160), np.uint8)),
        ("slope of light", np.tile(np.linspace(40, 250, 160), (120, 1)).astype(np.uint8)),
        ("paper grain", np.random.default_rng(0).normal(200, 10, (300, 300)).clip(0, 255).astype(np.uint8)),
        ("nothing but noise", np.random.default_rng(0).integers(0, 256, (300, 300), dtype=np.uint8)),
        ("too small", np.zeros((2, 3), np.uint8)),
        ("one row", np.zeros((1, 50), np.uint8)),
        ("empty", np.zeros((0, 0), np.uint8)),
    ],
)
def test_no_lines_on_a_page_without_text(name: str, page: Page) -> None:
    assert find_lines(page) == ()


def test_specks_and_rules_are_no_lines(printed: Print) -> None:
    page = printed(20)
    page[2:4, 20:500] = 20
    page[::37, ::41] = 20
    page[page.shape[0] - 12 : page.shape[0] - 10, 60:400] = 90
    assert len(find_lines(page)) == 6


def test_columns_are_told_apart_and_read_by_rows(printed: Print) -> None:
    left, right = printed(20, lines=["one", "two"]), printed(20, lines=["uno", "due"])
    lines = find_lines(np.concatenate([left, right], axis=1))
    assert [(line.top > 50, line.left > 600) for line in lines] == [
        (False, False),
        (False, True),
        (True, False),
        (True, True),
    ]


def test_a_skewed_line_says_how_it_runs(printed: Print) -> None:
    (line,) = find_lines(printed(20, angle=2.0, lines=["The quick brown fox jumps over the lazy dog"]))
    # Turned counterclockwise, so that the line climbs towards the right: it lies lower at the left.
    slope = 2 * line.tilt_px / line.width
    assert slope == pytest.approx(-np.tan(np.radians(2.0)), rel=0.15)
    assert line.letter_height_px < 0.75 * line.height


def test_page_png_has_its_seven_lines_and_the_cut_off_one(page: Page) -> None:
    lines = find_lines(page)
    assert len(lines) == 8
    for line, (_, top, bottom, left, right) in zip(lines, PAGE_LINES, strict=False):
        assert min(line.bottom, bottom) - max(line.top, top) > 0.7 * (bottom - top)
        assert abs(line.left - left) <= 3
        assert abs(line.right - right) <= 5
    assert lines[7].bottom == page.shape[0]


def test_page_png_as_a_negative_has_the_same_lines(page: Page) -> None:
    for line, negative in zip(find_lines(page), find_lines(255 - page), strict=True):
        assert abs(line.top - negative.top) <= 1
        assert abs(line.bottom - negative.bottom) <= 1


@pytest.mark.parametrize("page", [np.zeros((9, 9)), np.zeros((3, 9, 9), np.uint8), np.zeros(9, np.uint8)])
def test_what_is_not_a_gray_page_is_refused(page: Page) -> None:
    with pytest.raises(InputError, match=r"expected a page as uint8 \[H, W\]"):
        find_lines(page)


def test_a_huge_page_is_refused_before_it_is_copied() -> None:
    page = np.broadcast_to(np.uint8(0), (PIXELS_MAX // 1000 + 1, 1000))
    with pytest.raises(InputError, match="scale it down"):
        find_lines(page)


def crumbs(size: int) -> Page:
    """Noise in blocks of 3 by 3 pixels, so that it passes for letters."""
    noise = np.where(np.random.default_rng(0).random((size, size)) < 0.1, 0, 255).astype(np.uint8)
    return np.kron(noise, np.ones((3, 3), np.uint8))


def test_crumbs_make_no_box_off_the_page() -> None:
    page = crumbs(150)
    assert all(inside(line, page) for line in find_lines(page))


@pytest.mark.slow
def test_a_page_of_nothing_but_crumbs_is_refused_rather_than_sorted_for_minutes() -> None:
    with pytest.raises(InputError, match="pieces of ink"):
        find_lines(crumbs(800))
