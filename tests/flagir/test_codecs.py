"""Codecs: what each makes of a tensor, and how far it is off."""

import numpy as np
import onnx_ir as ir
import pytest
from tests.flagir.coded_graphs import CODECS, FLOAT
from tests.flagir.coding import assert_near, there_and_back

from flagsplit.errors import ModelError
from flagsplit.flagir import ValueType
from flagsplit.flagir.codecs import codec_names, codecs_for, encoded_bytes, encoded_types

LIMIT = 2.0**127


SHAPES = [(), (1,), (7,), (3, 5), (4, 1), (1, 9), (2, 3, 5), (1, 4, 7, 3), (2, 3, 2, 1, 3)]
EMPTY = [(0,), (0, 3), (3, 0), (2, 0, 3), (2, 3, 0), (0, 2, 3, 4)]


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("shape", SHAPES + EMPTY, ids=str)
def test_shapes(name: str, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(len(shape))
    for scale, shift in ((1.0, 0.0), (1e-3, 5.0), (40.0, -100.0), (1e30, 0.0) if name != "fp16" else (100.0, 3.0)):
        array = np.asarray(rng.standard_normal(shape) * scale + shift, np.float32)
        made, back = there_and_back(name, array)
        assert back.shape == shape
        assert back.dtype == np.float32
        assert_near(name, back, array)
        types = encoded_types(name, ValueType(FLOAT, shape))
        assert {role: (ValueType(kind.dtype, kind.shape)) for role, kind in types.items()} == {
            role: ValueType(ir.DataType.from_numpy(each.dtype), each.shape) for role, each in made.items()
        }
        assert encoded_bytes(name, ValueType(FLOAT, shape)) == sum(each.nbytes for each in made.values())


@pytest.mark.parametrize("name", CODECS)
def test_what_returns_exactly(name: str) -> None:
    for number in (0.0, -7.0, 1.0, 64.0):
        array = np.full((2, 3, 4), number, np.float32)
        np.testing.assert_allclose(there_and_back(name, array)[1], array, rtol=1e-6)
    relu = np.maximum(np.random.default_rng(1).standard_normal((1, 4, 50)), 0).astype(np.float32)
    assert (there_and_back(name, relu)[1][relu == 0] == 0).all()


@pytest.mark.parametrize("name", CODECS)
def test_twice_is_once(name: str) -> None:
    array = np.random.default_rng(2).standard_normal((2, 5, 11)).astype(np.float32)
    once = there_and_back(name, array)[1]
    np.testing.assert_allclose(there_and_back(name, once)[1], once, atol=1e-6)


def test_half_precision_passes_what_is_not_finite() -> None:
    array = np.array([[np.nan, np.inf, -np.inf, 65504, 65519, 65520, 1e-8, -0.0]], np.float32)
    back = there_and_back("fp16", array)[1]
    np.testing.assert_array_equal(back, [[np.nan, np.inf, -np.inf, 65504, 65504, np.inf, 0, -0.0]])
    assert np.signbit(back[0, -1])


@pytest.mark.parametrize("name", ["u8", "u8_per_channel", "u4_per_channel"])
def test_what_is_not_finite(name: str) -> None:
    """NaN becomes 0, an infinity the end of a range that reaches to 2^127; other rows are as without them."""
    array = np.array([[1, np.nan, 2, -1], [np.inf, 1, 0, np.nan], [0, -np.inf, 0, 0], [3, 2, 1, 0]], np.float32)
    back = there_and_back(name, array)[1]
    assert (back[np.isnan(array)] == 0).all()
    assert np.isfinite(back).all()
    assert abs(back[1, 0] / LIMIT - 1) < 0.1
    assert abs(back[2, 1] / LIMIT + 1) < 0.1
    if name != "u8":
        np.testing.assert_array_equal(back[3], there_and_back(name, array[3:])[1][0])
        np.testing.assert_array_equal(back[0], there_and_back(name, np.nan_to_num(array[:1]))[1][0])
        np.testing.assert_array_equal(back[1, 1:], 0)
        np.testing.assert_array_equal(back[2, [0, 2, 3]], 0)


@pytest.mark.parametrize("name", ["u8", "u8_per_channel", "u4_per_channel"])
def test_the_largest_and_the_smallest_numbers(name: str) -> None:
    large = np.array([[3.4e38, -3.4e38, 1e38, 0]], np.float32)
    back = there_and_back(name, large)[1]
    assert np.isfinite(back).all()
    assert (np.abs(back) <= LIMIT * 1.1).all()
    assert_near(name, back, np.clip(large, -LIMIT, LIMIT))
    small = np.array([[1e-40, -3e-39, 2e-38, 0]], np.float32)
    assert_near(name, there_and_back(name, small)[1], small)
    sums_to_infinity = np.full((1, 64), 1e38, np.float32)
    np.testing.assert_allclose(there_and_back(name, sums_to_infinity)[1], sums_to_infinity, rtol=1e-6)


@pytest.mark.parametrize("name", ["u8_per_channel", "u4_per_channel"])
def test_ranges_do_not_depend_on_the_neighbors(name: str) -> None:
    rng = np.random.default_rng(3)
    spread = np.array([1, 10, 100, 0.1], np.float32).reshape(4, 1, 1, 1)
    batch = rng.standard_normal((4, 3, 6, 5)).astype(np.float32) * spread
    together = there_and_back(name, batch)[1]
    for index in range(4):
        np.testing.assert_array_equal(together[index : index + 1], there_and_back(name, batch[index : index + 1])[1])


def test_the_table() -> None:
    picture = ValueType(FLOAT, (1, 64, 56, 56))
    elements = picture.elements
    assert codec_names() == ("none", "fp16", "u8_per_channel", "u8", "u4_per_channel")
    assert {name: encoded_bytes(name, picture) for name in codec_names()} == {
        "none": 4 * elements,
        "fp16": 2 * elements,
        "u8_per_channel": elements + 64 * 5,
        "u8": elements + 5,
        "u4_per_channel": elements // 2 + 64 * 5 + 4 * 8,
    }
    assert encoded_types("none", picture) == {"payload": picture}
    assert encoded_types("u4_per_channel", ValueType(FLOAT, (3, 3)))["payload"].shape == (5,)
    assert codecs_for(picture) == codec_names()
    assert codecs_for(ValueType(ir.DataType.INT64, (3,))) == ("none",)
    with pytest.raises(ModelError, match="codec 'u8' expects FLOAT, came INT64"):
        encoded_types("u8", ValueType(ir.DataType.INT64, (3,)))
    with pytest.raises(ModelError, match=r"one of the codecs none, fp16, .*, came 'zip'"):
        encoded_bytes("zip", picture)
