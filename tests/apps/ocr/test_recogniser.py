from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from flagsplit.apps.ocr import LineBox, characters_of, cut_line, decode, prepare
from flagsplit.apps.ocr.recogniser import INPUT_WIDTH_MAX_PX, resample
from flagsplit.errors import InputError, ModelError

CHARACTERS = ("", "a", "b", " ")


def steps(*classes: int, certainty: float = 0.9) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    rest = (1 - certainty) / (len(CHARACTERS) - 1)
    out = np.full((1, len(classes), len(CHARACTERS)), rest, np.float32)
    out[0, np.arange(len(classes)), classes] = certainty
    return out


@pytest.mark.parametrize(
    ("classes", "text"),
    [
        ((1, 1, 2), "ab"),
        ((1, 0, 1), "aa"),
        ((0, 1, 1, 0, 0, 1, 2, 2, 0), "aab"),
        ((1, 3, 2), "a b"),
        ((0, 0, 0), ""),
    ],
)
def test_ctc_merges_repeats_and_drops_blanks(classes: tuple[int, ...], text: str) -> None:
    (reading,) = decode(steps(*classes), CHARACTERS)
    assert reading.text == text
    assert reading.confidence == pytest.approx(0.9 if text else 0.0)


def test_confidence_counts_each_character_once() -> None:
    probabilities = np.concatenate(
        [steps(1, certainty=0.8), steps(1, 0, certainty=0.99), steps(2, certainty=0.6)], axis=1
    )
    assert decode(probabilities, CHARACTERS)[0].confidence == pytest.approx(0.7)


def test_a_batch_is_decoded_line_by_line() -> None:
    assert [r.text for r in decode(np.concatenate([steps(1, 2), steps(2, 2)]), CHARACTERS)] == ["ab", "b"]


@pytest.mark.parametrize("shape", [(2, 4), (1, 2, 5), (1, 2, 3)])
def test_an_output_that_does_not_fit_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="take the characters from the same model"):
        decode(np.zeros(shape, np.float32), CHARACTERS)


@pytest.mark.parametrize(
    ("height", "width", "expected"), [(20, 50, 320), (48, 480, 480), (24, 480, 960), (10, 101, 485), (1, 5000, 3840)]
)
def test_input_width_follows_the_aspect(height: int, width: int, expected: int) -> None:
    batch = prepare([np.full((height, width), 255, np.uint8)])
    assert batch.shape == (1, 3, 48, expected)
    assert batch.dtype == np.float32
    assert expected <= INPUT_WIDTH_MAX_PX


def test_the_width_can_be_fixed() -> None:
    crops = [np.full((48, 100), 255, np.uint8), np.full((48, 999), 255, np.uint8)]
    batch = prepare(crops, width_px=640)
    assert batch.shape == (2, 3, 48, 640)
    np.testing.assert_array_equal(batch[0, :, :, 100:], 0.0)
    np.testing.assert_allclose(batch[1], 1.0, atol=1e-6)
    for width_px in (0, -1, INPUT_WIDTH_MAX_PX + 1):
        with pytest.raises(InputError, match="expected a width"):
            prepare(crops, width_px=width_px)


def test_values_are_scaled_to_one_and_padding_is_zero() -> None:
    batch = prepare([np.full((48, 100), 255, np.uint8), np.zeros((48, 400), np.uint8)])
    assert batch.shape == (2, 3, 48, 400)
    np.testing.assert_allclose(batch[0, :, :, :100], 1.0, atol=1e-6)
    np.testing.assert_array_equal(batch[0, :, :, 100:], 0.0)
    np.testing.assert_allclose(batch[1], -1.0, atol=1e-6)


@pytest.mark.parametrize("crops", [[], [np.zeros((0, 5), np.uint8)], [np.zeros((3, 4, 5), np.uint8)]])
def test_what_is_not_a_crop_is_refused(crops: list[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]) -> None:
    with pytest.raises(InputError, match="expected"):
        prepare(crops)


def test_resampling_keeps_an_image_of_the_same_size_and_the_mean_of_a_smaller_one() -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 60)).astype(np.float64)
    np.testing.assert_allclose(resample(image, 40, 60), image)
    assert resample(image, 10, 15).mean() == pytest.approx(image.mean(), rel=0.02)
    ramp = np.arange(8.0)[None, :]
    np.testing.assert_allclose(resample(ramp, 1, 16)[0, 1:-1], np.arange(0.25, 7.0, 0.5))


def test_a_bent_line_is_cut_out_straight() -> None:
    page = np.full((60, 200), 255, np.uint8)
    box = LineBox(15, 45, 10, 190, tilt_px=6.0, bow_px=-4.0)
    low, _ = box.drop_range_px
    columns = np.arange(10, 190)
    center = box.top - low + box.letter_height_px / 2 + box.drop_px(columns.astype(np.float64))
    for shift in (-1, 0, 1):
        page[center.round().astype(int) + shift, columns] = 0
    line = cut_line(page, box)
    darkest = line[:, 10:-10].argmin(axis=0)
    assert int(np.ptp(darkest)) <= 2
    assert abs(int(np.median(darkest)) - line.shape[0] // 2) <= 2


def test_a_line_at_the_edge_of_the_page_is_cut_out_all_the_same() -> None:
    line = cut_line(np.full((20, 40), 7, np.uint8), LineBox(0, 20, 0, 40, tilt_px=3.0))
    np.testing.assert_array_equal(line, 7.0)


def model_with(path: Path, **metadata: str) -> Path:
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    model = onnx.helper.make_model(onnx.helper.make_graph([], "g", [value], [value]))
    onnx.helper.set_model_props(model, metadata)
    onnx.save(model, path)
    return path


def test_characters_come_with_a_blank_before_and_a_space_after(tmp_path: Path) -> None:
    # A line separator is a character here, not the end of a row.
    model = model_with(tmp_path / "m.onnx", character="a\n\u2028\n疗\n")
    assert characters_of(model) == ("", "a", "\u2028", "疗", " ")


def test_a_model_without_characters_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is none"):
        characters_of(model_with(tmp_path / "m.onnx", other="x"))


def test_what_is_not_a_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"\xff\xff not a model")
    with pytest.raises(ModelError, match="cannot be read"):
        characters_of(tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="cannot be read"):
        characters_of(tmp_path / "missing.onnx")
