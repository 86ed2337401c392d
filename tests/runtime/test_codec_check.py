"""What codecs cannot carry is told from what they made: exact for NaN and infinities, whatever is around them."""

import random

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flagsplit.runtime.codec_check import check_encoded
from flagsplit.targets.interface import Array

LIMIT = 2.0**127
RANGED = ("u8", "u8_per_channel", "u4_per_channel")


def ranges(codec: str, low: list[float], high: list[float]) -> dict[str, Array]:
    """Scale and zero point of these ranges, as the functions make them (`flagsplit.flagir.codecs.functions`)."""
    levels = np.float32(15 if codec == "u4_per_channel" else 255)
    bottom = np.clip(np.array(low, np.float32), np.float32(-LIMIT), np.float32(0))
    top = np.clip(np.array(high, np.float32), np.float32(0), np.float32(LIMIT))
    scale = np.maximum(top / levels - bottom / levels, np.float32(2.0**-126))
    zero_point = np.round(-(bottom / levels / scale * levels)).astype(np.uint8)
    return {f"v.{codec}.scale": np.asarray(scale), f"v.{codec}.zero_point": np.asarray(zero_point)}


@settings(deadline=None)
@given(st.lists(st.integers(0, 65535), max_size=40), st.integers(1, 30_000), st.booleans())
def test_half_precision_is_exact(patterns: list[int], repeat: int, reverse: bool) -> None:
    bits = np.repeat(np.array(patterns, np.uint16), repeat if len(patterns) < 5 else 1)
    half = bits.view(np.float16)
    half = half[::-1] if reverse else half
    bad = int(np.count_nonzero(~np.isfinite(half)))
    reason = check_encoded({"v.fp16.payload": half})
    assert (reason is None) == (bad == 0)
    assert reason is None or f"'v' cannot travel as fp16: {bad} of its {half.size} numbers" in reason


def test_every_half_is_seen_and_in_every_place() -> None:
    for pattern in range(0, 65536, 7):
        half = np.array([pattern], np.uint16).view(np.float16)
        assert (check_encoded({"v.fp16.payload": half}) is None) == bool(np.isfinite(half[0]))
    rng = random.Random(1)
    for size in (1, 2, 31, 1 << 18, (1 << 18) + 1, 600_001):
        half = np.full((1, size), 65504, np.float16)
        half[0, ::2] = -65504
        assert check_encoded({"v.fp16.payload": half}) is None
        for at in (0, size - 1, rng.randrange(size)):
            for value in (np.inf, -np.inf, np.nan, -np.nan):
                kept, half[0, at] = half[0, at], value
                assert check_encoded({"v.fp16.payload": half}) is not None
                half[0, at] = kept


@pytest.mark.parametrize("codec", RANGED)
def test_ranges_that_were_cut(codec: str) -> None:
    for low, high in ((-1.0, 2.0), (0.0, 0.0), (-1e38, 1e38), (-1.4e38, 1.4e38), (0.0, 1.5e38), (5e-45, 1e-44)):
        assert check_encoded(ranges(codec, [0.0, low], [1.0, high])) is None
    for low, high in ((0.0, np.inf), (-np.inf, 0.0), (-np.inf, np.inf), (-1.0, LIMIT * 1.01), (-3e38, 1.0)):
        reason = check_encoded(ranges(codec, [0.0, low], [1.0, high]))
        assert reason == f"value 'v' cannot travel as {codec}: 1 of its 2 ranges reach 2^127, where they are cut"


@settings(deadline=None)
@given(
    st.sampled_from(RANGED),
    st.lists(st.tuples(*[st.floats(-(2.0**127.5), 2.0**127.5)] * 2).map(sorted), min_size=1, max_size=6),
)
def test_no_cut_range_is_missed_and_none_is_made_up(codec: str, ends: list[list[float]]) -> None:
    reason = check_encoded(ranges(codec, [low for low, _ in ends], [high for _, high in ends]))
    farthest = max(max(abs(low) if low < 0 else 0.0, max(high, 0.0)) for low, high in ends)
    step = 2 * LIMIT / (15 if codec == "u4_per_channel" else 255)
    if farthest > LIMIT:
        assert reason is not None
    if farthest < LIMIT - 1.5 * step:
        assert reason is None


@pytest.mark.parametrize("codec", RANGED)
def test_what_was_counted(codec: str) -> None:
    good = ranges(codec, [0.0], [1.0])
    assert check_encoded({**good, f"v.{codec}.check": np.array(0)}) is None
    name = f"a.b.{codec}.check.after_0123456789ab"
    reason = check_encoded({**good, name: np.array(3)})
    assert reason == f"value 'a.b' cannot travel as {codec}: 3 of its numbers are NaN or infinite"


def test_other_tensors_are_passed_over() -> None:
    nan: Array = np.full(3, np.nan, np.float32)
    outputs: dict[str, Array] = {
        "y": nan,
        "y.after_0123456789ab": nan,
        "v.u8.at_1": nan,
        "v.fp16.payload": nan,
        "w.fp16.payload": nan.astype(ml_dtypes.bfloat16),
        "v.u8.check": nan,
        "v.u8.scale": np.zeros((0, 2), np.float32),
        "v.fp16.payload_1": np.zeros((0,), np.float16),
    }
    assert check_encoded(outputs) is None
    assert check_encoded({}) is None
