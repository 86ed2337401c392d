from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from flagsplit.apps.ocr.components import find_components


def flood(mask: NDArray[np.bool_]) -> list[tuple[int, int, int, int, int]]:
    """The plain way: (top, bottom, left, right, area) of each component by walking from pixel to pixel."""
    left_over = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    found = []
    while left_over:
        queue = [left_over.pop()]
        seen = []
        while queue:
            y, x = queue.pop()
            seen.append((y, x))
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left_over
            left_over -= near
            queue.extend(near)
        rows, columns = [y for y, _ in seen], [x for _, x in seen]
        found.append((min(rows), max(rows) + 1, min(columns), max(columns) + 1, len(seen)))
    return sorted(found)


def boxes(mask: NDArray[np.bool_]) -> list[tuple[int, int, int, int, int]]:
    c = find_components(mask)
    return sorted(zip(*(part.tolist() for part in (c.top, c.bottom, c.left, c.right, c.area_px)), strict=True))


@pytest.mark.parametrize("share", [0.05, 0.2, 0.4, 0.6, 0.95])
@pytest.mark.parametrize("shape", [(1, 40), (40, 1), (17, 23), (30, 30)])
def test_same_as_a_flood_fill_on_random_masks(shape: tuple[int, int], share: float) -> None:
    for seed in range(5):
        mask = np.random.default_rng(seed).random(shape) < share
        assert boxes(mask) == flood(mask)


def test_a_spiral_is_one_component() -> None:
    mask = np.zeros((9, 9), dtype=np.bool_)
    mask[0, :] = mask[:, 8] = mask[8, 2:] = mask[2:, 2] = mask[2, 2:7] = mask[2:7, 6] = mask[6, 4:7] = True
    assert boxes(mask) == [(0, 9, 0, 9, int(mask.sum()))]


def test_corners_touch() -> None:
    assert boxes(np.eye(4, dtype=np.bool_)) == [(0, 4, 0, 4, 4)]


def test_the_end_of_a_row_does_not_touch_the_start_of_the_next() -> None:
    mask = np.zeros((2, 5), dtype=np.bool_)
    mask[0, 4] = mask[1, 0] = True
    assert len(find_components(mask)) == 2


def test_nothing_and_everything() -> None:
    assert len(find_components(np.zeros((4, 5), dtype=np.bool_))) == 0
    assert boxes(np.ones((4, 5), dtype=np.bool_)) == [(0, 4, 0, 5, 20)]
