"""Operators that move, select and make elements, against ONNX Runtime, NumPy and loops."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.targets.mobile.mil.oracle import close, onnx_op
from tests.targets.mobile.mil.writing import run

from flagsplit.errors import BundleError


def _counted(*shape: int) -> np.ndarray[Any, Any]:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def test_shapes(tmp_path: Path) -> None:
    x = _counted(2, 3, 4)

    def build(mb: Any, x: Any) -> Any:
        long = mb.expand_dims(x=x, axes=[0, -1])
        return (
            mb.reshape(x=x, shape=[4, -1]),
            mb.reshape(x=x, shape=[0, -1, 2]),
            long,
            mb.squeeze(x=long, axes=[0]),
            mb.squeeze(x=long),
            mb.transpose(x=x, perm=[2, 0, -2]),
            mb.flatten2d(x=x, axis=2),
            mb.reverse(x=x, axes=[0, -1]),
            mb.reverse(x=x),
            mb.shape(x=x),
        )

    came = run(tmp_path, build, {"x": x})
    expected = [
        x.reshape(4, 6),
        x.reshape(2, 6, 2),
        x[None, ..., None],
        x[..., None],
        x,
        x.transpose(2, 0, 1),
        x.reshape(6, 4),
        x[::-1, :, ::-1],
        x[::-1, ::-1, ::-1],
        np.array([2, 3, 4], np.int32),
    ]
    for result, wanted in zip(came, expected, strict=True):
        close(result, wanted)


def test_since_ios_17_zeros_of_a_shape_count_from_the_last_axis(tmp_path: Path) -> None:
    x = _counted(2, 50)
    (came,) = run(tmp_path, lambda mb, x: mb.reshape(x=x, shape=[1, 0, -1, 0]), {"x": x}, ios=17)
    close(came, x.reshape(1, 1, 2, 50))


def test_reshape_like(tmp_path: Path) -> None:
    x, y = _counted(2, 3, 20), _counted(4, 5)
    (came,) = run(
        tmp_path,
        lambda mb, x, y: mb.reshape_like(x=x, ref_tensors=(x, y), begins=(0, 0), ends=(2, 0), end_masks=(False, True)),
        {"x": x, "y": y},
        ios=16,
    )
    close(came, x.reshape(2, 3, 4, 5))


def test_blocks_of_pixels(tmp_path: Path) -> None:
    x, y = _counted(2, 8, 3, 2), _counted(2, 3, 4, 6)

    def build(mb: Any, x: Any, y: Any) -> Any:
        return (
            mb.depth_to_space(x=x, block_size=2),
            mb.pixel_shuffle(x=x, upscale_factor=2),
            mb.space_to_depth(x=y, block_size=2),
            mb.pixel_unshuffle(x=y, downscale_factor=np.uint32(2)),
        )

    deep, shuffled, wide, unshuffled = run(tmp_path, build, {"x": x, "y": y}, ios=16)
    close(deep, onnx_op("DepthToSpace", x, blocksize=2, mode="DCR")[0])
    close(shuffled, onnx_op("DepthToSpace", x, blocksize=2, mode="CRD")[0])
    close(wide, onnx_op("SpaceToDepth", y, blocksize=2)[0])
    close(onnx_op("DepthToSpace", unshuffled, blocksize=2, mode="CRD")[0], y)


def test_space_to_batch_and_back(tmp_path: Path) -> None:
    x = _counted(2, 3, 4, 5)

    def build(mb: Any, x: Any) -> Any:
        batched = mb.space_to_batch(x=x, block_shape=[2, 3], paddings=[[1, 1], [0, 1]])
        return batched, mb.batch_to_space(x=batched, block_shape=[2, 3], crops=[[1, 1], [0, 1]])

    batched, back = run(tmp_path, build, {"x": x})
    whole = np.pad(x, ((0, 0), (0, 0), (1, 1), (0, 1)))
    for row in range(2):
        for column in range(3):
            at = (row * 3 + column) * 2
            close(batched[at : at + 2], whole[:, :, row::2, column::3])
    close(back, x)


def test_reverse_sequence(tmp_path: Path) -> None:
    x = _counted(4, 3, 2)
    lengths = np.array([1, 4, 2], np.int32)
    (came,) = run(
        tmp_path,
        lambda mb, x, lengths: mb.reverse_sequence(x=x, lengths=lengths, seq_axis=0, batch_axis=1),
        {"x": x, "lengths": lengths},
    )
    close(came, onnx_op("ReverseSequence", x, lengths.astype(np.int64), time_axis=0, batch_axis=1)[0])


def test_slices(tmp_path: Path) -> None:
    x = _counted(4, 5, 6)
    update = -_counted(2, 5, 3)

    def build(mb: Any, x: Any) -> Any:
        return (
            mb.slice_by_index(x=x, begin=[1, 0, 5], end=[3, 9, 0], stride=[1, 2, -2]),
            mb.slice_by_index(x=x, begin=[-3, 1, 0], end=[-1, 1, 4], end_mask=[False, True, False]),
            mb.slice_by_index(
                x=x,
                begin=[1, 1, -1],
                end=[0, 0, 0],
                begin_mask=[False, True, False],
                end_mask=[False, True, False],
                squeeze_mask=[True, False, True],
            ),
            mb.slice_by_size(x=x, begin=[1, 0, 2], size=[2, -1, 3]),
            mb.sliding_windows(x=x, axis=1, size=3, stride=2),
            mb.slice_update(x=x, update=update, begin=[1, 0, 2], end=[3, 5, 5]),
        )

    came = run(tmp_path, build, {"x": x}, ios=18)
    updated = x.copy()
    updated[1:3, :, 2:5] = update
    expected = [
        x[1:3, 0:9:2, 5:0:-2],
        x[-3:-1, 1:, 0:4],
        x[1, :, -1],
        x[1:3, :, 2:5],
        np.stack([x[:, 0:3], x[:, 2:5]], axis=1),
        updated,
    ]
    for result, wanted in zip(came, expected, strict=True):
        close(result, wanted)


def test_put_together_and_cut(tmp_path: Path) -> None:
    x, y = _counted(2, 3, 6), -_counted(2, 3, 6)

    def build(mb: Any, x: Any, y: Any) -> Any:
        return (
            mb.concat(values=(x, y, x), axis=1),
            mb.concat(values=(x, y), axis=-2, interleave=True),
            mb.stack(values=(x, y), axis=1),
            *mb.split(x=x, axis=-1, split_sizes=[1, 3, 2]),
            *mb.split(x=x, axis=2, num_splits=3),
            mb.tile(x=x, reps=[2, 1, 3]),
        )

    came = run(tmp_path, build, {"x": x, "y": y})
    expected = [
        np.concatenate([x, y, x], axis=1),
        np.stack([x, y], axis=2).reshape(2, 6, 6),
        np.stack([x, y], axis=1),
        x[..., :1],
        x[..., 1:4],
        x[..., 4:],
        x[..., :2],
        x[..., 2:4],
        x[..., 4:],
        np.tile(x, (2, 1, 3)),
    ]
    for result, wanted in zip(came, expected, strict=True):
        close(result, wanted)


@pytest.mark.parametrize("mode", ["constant", "reflect", "replicate"])
def test_pad(tmp_path: Path, mode: str) -> None:
    x = _counted(2, 3, 4, 5)
    given = {"constant_val": 7.0} if mode == "constant" else {}
    (came,) = run(tmp_path, lambda mb, x: mb.pad(x=x, pad=[1, 2, 3, 0], mode=mode, **given), {"x": x})
    pads = np.array([0, 0, 1, 3, 0, 0, 2, 0])
    value = np.array(7, np.float32) if mode == "constant" else None
    close(came, onnx_op("Pad", x, pads, value, mode={"replicate": "edge"}.get(mode, mode))[0])


def test_made(tmp_path: Path) -> None:
    x = np.random.default_rng(1).integers(-2, 3, (3, 4)).astype(np.float32)
    indices = np.array([[0, 2], [1, 3]], np.int32)

    def build(mb: Any, x: Any, indices: Any) -> Any:
        size = mb.reshape(x=mb.slice_by_index(x=mb.shape(x=x), begin=[1], end=[2]), shape=[1])
        end = mb.squeeze(x=size)
        return (
            mb.band_part(x=x, lower=1, upper=0),
            mb.band_part(x=x, lower=-1, upper=1),
            mb.fill(shape=size, value=3.0),
            mb.fill_like(ref_tensor=x, value=2.0),
            mb.range_1d(start=1, end=end, step=2),
            mb.one_hot(indices=indices, one_hot_vector_size=4, on_value=2.0, off_value=-1.0),
            mb.one_hot(indices=indices, one_hot_vector_size=4, axis=1),
            mb.cumsum(x=x, axis=1),
            mb.cumsum(x=x, axis=0, exclusive=True, reverse=True),
            mb.non_zero(x=x),
        )

    came = run(tmp_path, build, {"x": x, "indices": indices}, ios=16)
    eye = np.eye(4, dtype=np.int32)[indices]
    expected = [
        np.tril(np.triu(x, -1)),
        np.tril(x, 1),
        np.full(4, 3, np.float32),
        np.full((3, 4), 2, np.float32),
        np.array([1, 3], np.int32),
        (eye * 3 - 1).astype(np.float32),
        eye.swapaxes(1, 2),
        onnx_op("CumSum", x, np.array(1))[0],
        onnx_op("CumSum", x, np.array(0), exclusive=1, reverse=1)[0],
        np.argwhere(x).astype(np.int32),
    ]
    for result, wanted in zip(came, expected, strict=True):
        close(result, wanted)


def test_sorted(tmp_path: Path) -> None:
    x = np.random.default_rng(2).permutation(24).astype(np.float32).reshape(2, 3, 4)

    def build(mb: Any, x: Any) -> Any:
        return (
            mb.argsort(x=x, axis=1),
            mb.argsort(x=x, ascending=True),
            *mb.topk(x=x, k=2, axis=1),
            *mb.topk(x=x, k=3, ascending=True),
        )

    came = run(tmp_path, build, {"x": x})
    most = onnx_op("TopK", x, np.array([2]), axis=1, outputs=2)
    least = onnx_op("TopK", x, np.array([3]), axis=-1, largest=0, outputs=2)
    expected = [
        np.argsort(-x, axis=1).astype(np.int32),
        np.argsort(x).astype(np.int32),
        most[0],
        most[1].astype(np.int32),
        least[0],
        least[1].astype(np.int32),
    ]
    for result, wanted in zip(came, expected, strict=True):
        close(result, wanted)


def test_of_equal_elements_the_first_comes_first(tmp_path: Path) -> None:
    x = np.array([[1, 3, 3, 2, 3, 1]], np.float32)
    down, up = run(tmp_path, lambda mb, x: (mb.argsort(x=x), mb.argsort(x=x, ascending=True)), {"x": x})
    assert down.tolist() == [[1, 2, 4, 3, 0, 5]]
    assert up.tolist() == [[0, 5, 3, 1, 2, 4]]


def test_gathered(tmp_path: Path) -> None:
    x = _counted(3, 4, 5)
    at = np.array([[2, 0], [1, 2]], np.int32)
    along = np.random.default_rng(3).integers(0, 4, (3, 2, 5)).astype(np.int32)
    rows = np.array([[[0, 3], [2, 1]]], np.int32)

    def build(mb: Any, x: Any, at: Any, along: Any, rows: Any) -> Any:
        return (
            mb.gather(x=x, indices=at, axis=0),
            mb.gather(x=x, indices=at, axis=-1),
            mb.gather_along_axis(x=x, indices=along, axis=1),
            mb.gather_nd(x=x, indices=rows),
        )

    came = run(tmp_path, build, {"x": x, "at": at, "along": along, "rows": rows}, ios=16)
    expected = [
        onnx_op("Gather", x, at, axis=0),
        onnx_op("Gather", x, at, axis=2),
        onnx_op("GatherElements", x, along, axis=1),
        onnx_op("GatherND", x, rows.astype(np.int64)),
    ]
    for result, (wanted,) in zip(came, expected, strict=True):
        close(result, wanted)


def test_gathered_in_batches(tmp_path: Path) -> None:
    x = _counted(2, 3, 4, 5)
    at = np.array([[1, 3, 0], [2, 2, 1]], np.int32)
    rows = np.array([[[2, 1]], [[0, 3]]], np.int32)

    def build(mb: Any, x: Any, at: Any, rows: Any) -> Any:
        return (
            mb.gather(x=x, indices=at, axis=2, batch_dims=1),
            mb.gather_nd(x=x, indices=rows, batch_dims=1),
        )

    taken, picked = run(tmp_path, build, {"x": x, "at": at, "rows": rows}, ios=17)
    close(taken, np.stack([x[item][:, at[item]] for item in range(2)]))
    close(picked, onnx_op("GatherND", x, rows.astype(np.int64), batch_dims=1)[0])


@pytest.mark.parametrize(
    ("mode", "reduction"), [("update", "none"), ("add", "add"), ("mul", "mul"), ("max", "max"), ("min", "min")]
)
def test_scattered(tmp_path: Path, mode: str, reduction: str) -> None:
    rng = np.random.default_rng(4)
    data = rng.integers(1, 9, (3, 4)).astype(np.float32)
    along = np.array([[2, 0, 1, 1], [0, 2, 2, 0]], np.int32)
    updates = rng.integers(1, 9, (2, 4)).astype(np.float32)
    rows = np.array([[0, 3], [2, 1]], np.int32)
    points = np.array([5, -6], np.float32)
    lines = np.array([2, 0], np.int32)

    def build(mb: Any, data: Any, along: Any, updates: Any, rows: Any, points: Any, lines: Any) -> Any:
        return (
            mb.scatter_along_axis(data=data, indices=along, updates=updates, axis=0, mode=mode),
            mb.scatter_nd(data=data, indices=rows, updates=points, mode=mode),
            mb.scatter(data=data, indices=lines, updates=updates, axis=0, mode=mode),
        )

    given = {"data": data, "along": along, "updates": updates, "rows": rows, "points": points, "lines": lines}
    came = run(tmp_path, build, given)
    expected = [
        onnx_op("ScatterElements", data, along, updates, axis=0, reduction=reduction),
        onnx_op("ScatterND", data, rows.astype(np.int64), points, reduction=reduction),
        onnx_op("ScatterND", data, lines.astype(np.int64)[:, None], updates, reduction=reduction),
    ]
    for result, (wanted,) in zip(came, expected, strict=True):
        close(result, wanted)


def test_scattered_by_difference_and_quotient(tmp_path: Path) -> None:
    data, updates, lines = _counted(3, 2) + 1, np.full((2, 2), 2, np.float32), np.array([1, 1], np.int32)

    def build(mb: Any, data: Any, updates: Any, lines: Any) -> Any:
        return tuple(mb.scatter(data=data, indices=lines, updates=updates, mode=mode) for mode in ("sub", "div"))

    less, parts = run(tmp_path, build, {"data": data, "updates": updates, "lines": lines})
    close(less, data - np.array([[0], [4], [0]], np.float32))
    close(parts, data / np.array([[1], [4], [1]], np.float32))


@pytest.mark.parametrize("ios", [16, 17])
def test_negative_indices_are_undefined_since_ios_17(tmp_path: Path, ios: int) -> None:
    x, at = _counted(3, 2), np.array([-1, 0], np.int32)

    def take() -> np.ndarray[Any, Any]:
        return run(tmp_path, lambda mb, x, at: mb.gather(x=x, indices=at), {"x": x, "at": at}, ios=ios)[0]

    if ios == 16:
        close(take(), x[[-1, 0]])
    else:
        with pytest.raises(BundleError, match=r"gather.*index of -1"):
            take()


def test_an_index_beyond_the_end_is_refused(tmp_path: Path) -> None:
    x, at = _counted(3, 2), np.array([3, 0], np.int32)
    with pytest.raises(BundleError, match="outside of size 3"):
        run(tmp_path, lambda mb, x, at: mb.gather(x=x, indices=at), {"x": x, "at": at})
