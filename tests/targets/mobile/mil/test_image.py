"""Resizing, cropping and resampling against ONNX Runtime, and the numbers that the documentation gives."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.targets.mobile.mil.oracle import close, onnx_op
from tests.targets.mobile.mil.writing import run

from flagsplit.targets.mobile.mil.ops.image import grid


def _image(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def _onnx_resize(x: np.ndarray[Any, Any], sizes: list[int], **attributes: Any) -> np.ndarray[Any, Any]:
    (result,) = onnx_op("Resize", x, None, None, np.array([*x.shape[:2], *sizes]), **attributes)
    return result


@pytest.mark.parametrize(
    ("mode", "count", "points"),
    [
        ("UNALIGN_CORNERS", 5, [0.0, 0.1, 0.5, 0.9, 1.0]),
        ("STRICT_ALIGN_CORNERS", 5, [0.0, 0.25, 0.5, 0.75, 1.0]),
        ("ALIGN_CORNERS", 5, [0.0, 0.25, 0.5, 0.75, 1.0]),
        ("ALIGN_CORNERS", 1, [0.5]),
        ("DEFAULT", 5, [0.0, 0.4, 0.8, 1.0, 1.0]),
        ("OFFSET_CORNERS", 5, [0.1, 0.3, 0.5, 0.7, 0.9]),
        ("DEFAULT", 6, [0.0, 1 / 3, 2 / 3, 1.0, 1.0, 1.0]),
        ("OFFSET_CORNERS", 6, [1 / 12, 3 / 12, 5 / 12, 7 / 12, 9 / 12, 11 / 12]),
    ],
)
def test_grid_points_are_those_of_the_documentation(mode: str, count: int, points: list[float]) -> None:
    np.testing.assert_allclose(grid(mode, 2, count), points, atol=1e-12)


@pytest.mark.parametrize(
    ("mode", "onnx_mode"),
    [
        ("UNALIGN_CORNERS", "half_pixel"),
        ("STRICT_ALIGN_CORNERS", "align_corners"),
        ("DEFAULT", "asymmetric"),
    ],
)
@pytest.mark.parametrize("sizes", [(7, 9), (2, 3), (8, 10)], ids=str)
def test_bilinear(tmp_path: Path, mode: str, onnx_mode: str, sizes: tuple[int, int]) -> None:
    x = _image(2, 3, 4, 5)

    def build(mb: Any, x: Any) -> Any:
        return (
            mb.resize_bilinear(x=x, target_size_height=sizes[0], target_size_width=sizes[1], sampling_mode=mode),
            mb.resize(x=x, shape=sizes, resized_dims=np.uint32(2), sampling_mode=mode),
        )

    wanted = _onnx_resize(x, list(sizes), mode="linear", coordinate_transformation_mode=onnx_mode)
    for came in run(tmp_path, build, {"x": x}, ios=17):
        close(came, wanted)


def test_upsampled(tmp_path: Path) -> None:
    x = _image(1, 2, 3, 4)
    scale = {"scale_factor_height": 2, "scale_factor_width": 3}

    def build(mb: Any, x: Any) -> Any:
        return (
            mb.upsample_bilinear(x=x, align_corners=True, **scale),
            mb.upsample_bilinear(x=x, align_corners=False, **scale),
            mb.upsample_bilinear(x=x, align_corners=False, half_pixel_centers=False, **scale),
            mb.upsample_nearest_neighbor(x=x, **scale),
            mb.resize_nearest_neighbor(x=x, target_size_height=6, target_size_width=12),
            mb.resize(x=x, shape=[0, 12], resized_dims=np.uint32(2), interpolation_mode="NEAREST_NEIGHBOR"),
        )

    came = run(tmp_path, build, {"x": x}, ios=17)
    modes = ("align_corners", "half_pixel", "asymmetric")
    for result, mode in zip(came[:3], modes, strict=True):
        close(result, _onnx_resize(x, [6, 12], mode="linear", coordinate_transformation_mode=mode))
    close(came[3], x.repeat(2, axis=2).repeat(3, axis=3))
    close(came[4], x.repeat(2, axis=2).repeat(3, axis=3))
    close(came[5], x.repeat(3, axis=3))


def test_nearest_elements_of_sizes_that_are_no_multiples(tmp_path: Path) -> None:
    """The scale factor counts from the edge of each output element, the target size from its middle."""
    x = np.arange(4, dtype=np.float32).reshape(1, 1, 1, 4)

    def build(mb: Any, x: Any) -> Any:
        nearest = {"interpolation_mode": "NEAREST_NEIGHBOR", "resized_dims": np.uint32(1)}
        return (
            mb.upsample_nearest_neighbor(x=x, scale_factor_height=1.0, scale_factor_width=1.5),
            mb.resize_nearest_neighbor(x=x, target_size_height=1, target_size_width=6),
            mb.resize_nearest_neighbor(x=x, target_size_height=1, target_size_width=2),
            mb.resize(x=x, shape=[2], **nearest),
            mb.resize(x=x, shape=[2], sampling_mode="STRICT_ALIGN_CORNERS", **nearest),
        )

    came = run(tmp_path, build, {"x": x}, ios=17)
    wanted = [[0, 0, 1, 2, 2, 3], [0, 1, 1, 2, 3, 3], [1, 3], [1, 3], [0, 3]]
    assert [result.reshape(-1).tolist() for result in came] == wanted


def test_crop(tmp_path: Path) -> None:
    x = _image(2, 3, 6, 5)
    (came,) = run(tmp_path, lambda mb, x: mb.crop(x=x, crop_height=[1, 2], crop_width=[0, 1]), {"x": x})
    close(came, x[:, :, 1:4, :4])


CROPS: list[tuple[list[float], int, bool, list[float]]] = [
    ([1, 1, 2, 2], 2, False, [6, 7, 10, 11]),
    ([1, 1, 2, 2], 1, False, [8.5]),
    ([0, 0, 1 / 3, 1 / 3], 2, True, [1, 2, 5, 6]),
    ([2, 2, 1, 1], 2, False, [11, 10, 7, 6]),
]


@pytest.mark.parametrize(("box", "size", "normalized", "wanted"), CROPS, ids=str)
@pytest.mark.parametrize("ios", [15, 17])
def test_crop_resize(
    tmp_path: Path, box: list[float], size: int, normalized: bool, wanted: list[float], ios: int
) -> None:
    """The numbers are those of coremltools' own tests, which run on a Mac."""
    x = np.arange(1, 17, dtype=np.float32).reshape(1, 1, 4, 4)
    boxes = np.array([box], np.float32)
    given = {"boxes": boxes} if ios == 17 else {"roi": np.insert(boxes, 0, 0, axis=1).reshape(1, 1, 5, 1, 1)}

    def build(mb: Any, x: Any) -> Any:
        return mb.crop_resize(
            x=x,
            target_height=size,
            target_width=size,
            normalized_coordinates=normalized,
            sampling_mode="ALIGN_CORNERS",
            **given,
        )

    (came,) = run(tmp_path, build, {"x": x}, ios=ios)
    assert came.shape == ((1, 1, size, size) if ios == 17 else (1, 1, 1, size, size))
    np.testing.assert_allclose(came.reshape(-1), wanted, rtol=1e-6)


def test_crop_resize_as_a_region_of_interest_is_aligned(tmp_path: Path) -> None:
    """One sample in the middle of each bin; boxes of several images, in the other order of coordinates."""
    x = _image(2, 3, 8, 9)
    boxes = np.array([[1, 2, 6, 5], [0.5, 1, 4, 7]], np.float32)

    def build(mb: Any, x: Any) -> Any:
        return mb.crop_resize(
            x=x,
            boxes=boxes,
            box_indices=np.array([1, 0], np.int32),
            target_height=2,
            target_width=3,
            box_coordinate_mode="CORNERS_WIDTH_FIRST",
            sampling_mode="OFFSET_CORNERS",
        )

    (came,) = run(tmp_path, build, {"x": x}, ios=17)
    (wanted,) = onnx_op(
        "RoiAlign",
        x,
        boxes,
        np.array([1, 0]),
        output_height=2,
        output_width=3,
        sampling_ratio=1,
        coordinate_transformation_mode="output_half_pixel",
    )
    close(came, wanted)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("sampling", ["bilinear", "nearest"])
@pytest.mark.parametrize("padding", ["constant", "border", "mirror"])
def test_resample(tmp_path: Path, aligned: bool, sampling: str, padding: str) -> None:
    x = _image(2, 3, 5, 6)
    coordinates = np.random.default_rng(2).uniform(-1.7, 1.7, (2, 4, 3, 2)).astype(np.float32)
    # ONNX mirrors at the middle of the last element, or at its edge, by what is aligned.
    mode = ("reflection" if aligned else "symmetric") if padding == "mirror" else padding

    def build(mb: Any, x: Any, coordinates: Any) -> Any:
        return mb.resample(
            x=x,
            coordinates=coordinates,
            sampling_mode=sampling,
            padding_mode=mode,
            padding_value=0.0,
            coordinates_mode="normalized_minus_one_to_one",
            align_corners=aligned,
        )

    (came,) = run(tmp_path, build, {"x": x, "coordinates": coordinates})
    (wanted,) = onnx_op(
        "GridSample",
        x,
        coordinates,
        mode={"bilinear": "linear"}.get(sampling, sampling),
        padding_mode={"constant": "zeros", "mirror": "reflection"}.get(padding, padding),
        align_corners=int(aligned),
    )
    close(came, wanted, 1e-4)


def test_other_coordinates(tmp_path: Path) -> None:
    x = _image(1, 2, 4, 5)
    at = np.array([[[[1.0, 2.0], [3.5, 0.5]]]], np.float32)
    shares = at / np.array([4, 3], np.float32)

    def build(mb: Any, x: Any) -> Any:
        given = {"sampling_mode": "bilinear", "padding_mode": "constant", "padding_value": 5.0, "align_corners": True}
        return (
            mb.resample(x=x, coordinates=at, coordinates_mode="unnormalized", **given),
            mb.resample(x=x, coordinates=shares, coordinates_mode="normalized_zero_to_one", **given),
            mb.resample(x=x, coordinates=at + 100, coordinates_mode="unnormalized", **given),
        )

    plain, share, outside = run(tmp_path, build, {"x": x})
    wanted = np.stack([x[:, :, 2, 1], x[:, :, 0:2, 3:5].mean((2, 3))], axis=-1)[:, :, None]
    close(plain, wanted)
    close(share, wanted)
    close(outside, np.full_like(wanted, 5))


def test_affine(tmp_path: Path) -> None:
    x = _image(2, 3, 4, 5)
    matrix = np.array([[0.9, 0.2, 0.1, -0.3, 1.1, 0.05]], np.float32)

    def build(mb: Any, x: Any) -> Any:
        return mb.affine(
            x=x,
            transform_matrix=matrix,
            output_height=3,
            output_width=4,
            sampling_mode="bilinear",
            padding_mode="constant",
            padding_value=0.0,
            coordinates_mode="normalized_minus_one_to_one",
            align_corners=True,
        )

    (came,) = run(tmp_path, build, {"x": x})
    theta = np.repeat(matrix.reshape(1, 2, 3), 2, axis=0)
    (places,) = onnx_op("AffineGrid", theta, np.array([2, 3, 3, 4]), align_corners=1)
    (wanted,) = onnx_op("GridSample", x, places, mode="linear", padding_mode="zeros", align_corners=1)
    close(came, wanted)
