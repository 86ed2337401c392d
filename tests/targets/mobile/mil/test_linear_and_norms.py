"""Matrix products, attention, normalizations and reductions against ONNX Runtime and NumPy."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.targets.mobile.mil.oracle import close, onnx_op
from tests.targets.mobile.mil.writing import run

REDUCED = {
    "reduce_l1_norm": "ReduceL1",
    "reduce_l2_norm": "ReduceL2",
    "reduce_log_sum": "ReduceLogSum",
    "reduce_log_sum_exp": "ReduceLogSumExp",
    "reduce_max": "ReduceMax",
    "reduce_mean": "ReduceMean",
    "reduce_min": "ReduceMin",
    "reduce_prod": "ReduceProd",
    "reduce_sum": "ReduceSum",
    "reduce_sum_square": "ReduceSumSquare",
}


def _random(seed: int, *shapes: tuple[int, ...]) -> list[np.ndarray[Any, Any]]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def test_linear(tmp_path: Path) -> None:
    x, weight, bias = _random(1, (2, 3, 5), (4, 5), (4,))
    came = run(
        tmp_path, lambda mb, x: (mb.linear(x=x, weight=weight, bias=bias), mb.linear(x=x, weight=weight)), {"x": x}
    )
    close(came[0], x @ weight.T + bias)
    close(came[1], x @ weight.T)


@pytest.mark.parametrize(
    ("left", "right", "transposed"),
    [
        ((2, 3, 4), (4, 5), (False, False)),
        ((1, 3, 4), (2, 1, 5, 4), (False, True)),
        ((2, 4, 3), (2, 4, 5), (True, False)),
        ((4,), (4, 5), (False, False)),
    ],
    ids=str,
)
def test_matmul(tmp_path: Path, left: tuple[int, ...], right: tuple[int, ...], transposed: tuple[bool, bool]) -> None:
    x, y = _random(2, left, right)
    (came,) = run(
        tmp_path,
        lambda mb, x, y: mb.matmul(x=x, y=y, transpose_x=transposed[0], transpose_y=transposed[1]),
        {"x": x, "y": y},
    )
    close(came, np.matmul(*(np.swapaxes(v, -1, -2) if t else v for v, t in zip((x, y), transposed, strict=True))))


def test_einsum(tmp_path: Path) -> None:
    x, y, p, q = _random(3, (2, 3, 4, 5), (1, 5, 4, 6), (3, 1, 5), (5, 4, 6))
    came = run(
        tmp_path,
        lambda mb, x, y, p, q: (
            mb.einsum(values=(x, y), equation="nchw,nwhu->nchu"),
            mb.einsum(values=(p, q), equation="chw,whr->chr"),
        ),
        {"x": x, "y": y, "p": p, "q": q},
    )
    close(came[0], np.einsum("nchw,nwhu->nchu", x, np.broadcast_to(y, (2, 5, 4, 6))))
    close(came[1], np.einsum("chw,whr->chr", np.broadcast_to(p, (3, 4, 5)), q))


@pytest.mark.parametrize("mask", ["none", "truth", "number"])
def test_attention(tmp_path: Path, mask: str) -> None:
    q, k, v, bias = _random(4, (2, 3, 4, 8), (2, 3, 5, 8), (2, 3, 5, 6), (1, 1, 4, 5))
    kept = bias > -0.5
    kept[..., 0] = True

    def build(mb: Any, q: Any, k: Any, v: Any) -> Any:
        given = {"none": {}, "truth": {"attn_mask": kept}, "number": {"attn_mask": bias}}[mask]
        return mb.scaled_dot_product_attention(query=q, key=k, value=v, **given)

    (came,) = run(tmp_path, build, {"q": q, "k": k, "v": v}, ios=18)
    scores = np.einsum("bhle,bhse->bhls", q, k) / np.sqrt(8)
    if mask != "none":
        scores = np.where(kept, scores, -np.inf) if mask == "truth" else scores + bias
    (chances,) = onnx_op("Softmax", scores.astype(np.float32), axis=-1)
    close(came, np.einsum("bhls,bhse->bhle", chances, v))


def test_norms(tmp_path: Path) -> None:
    x, mean, gamma, beta, scale, shift = _random(5, (2, 3, 4, 5), (3,), (3,), (3,), (4, 5), (4, 5))
    variance = np.abs(gamma) + 1

    def build(mb: Any, x: Any) -> Any:
        return (
            mb.batch_norm(x=x, mean=mean, variance=variance, gamma=gamma, beta=beta, epsilon=1e-3),
            mb.batch_norm(x=x, mean=mean, variance=variance),
            mb.instance_norm(x=x, gamma=gamma, beta=beta, epsilon=1e-3),
            mb.layer_norm(x=x, axes=[2, 3], gamma=scale, beta=shift, epsilon=1e-3),
            mb.layer_norm(x=x, axes=[-1]),
            mb.local_response_norm(x=x, size=3, alpha=0.3, beta=0.6, k=1.5),
            mb.local_response_norm(x=x, size=5),
            mb.l2_norm(x=x, epsilon=1e-3),
        )

    came = run(tmp_path, build, {"x": x})
    ones, zeros = np.ones(3, np.float32), np.zeros(3, np.float32)
    expected = [
        onnx_op("BatchNormalization", x, gamma, beta, mean, variance, epsilon=1e-3),
        onnx_op("BatchNormalization", x, ones, zeros, mean, variance, epsilon=1e-5),
        onnx_op("InstanceNormalization", x, gamma, beta, epsilon=1e-3),
        onnx_op("LayerNormalization", x, scale, shift, axis=2, epsilon=1e-3),
        onnx_op("LayerNormalization", x, np.ones(5, np.float32), axis=-1, epsilon=1e-5),
        onnx_op("LRN", x, size=3, alpha=0.3, beta=0.6, bias=1.5),
        onnx_op("LRN", x, size=5, alpha=1e-4, beta=0.75, bias=1.0),
        [x / np.sqrt(np.square(x).sum((1, 2, 3), keepdims=True) + np.float32(1e-3))],
    ]
    for result, (wanted,) in zip(came, expected, strict=True):
        close(result, wanted)


def test_an_even_window_of_channels_has_more_after_than_before(tmp_path: Path) -> None:
    (x,) = _random(9, (1, 6, 2, 2))
    (came,) = run(tmp_path, lambda mb, x: mb.local_response_norm(x=x, size=4, alpha=0.4, beta=1.0, k=1.0), {"x": x})
    squares = np.stack([np.square(x[:, max(c - 1, 0) : c + 3]).sum(axis=1) for c in range(6)], axis=1)
    close(came, x / (1 + np.float32(0.1) * squares))


def test_layer_norm_over_axes_in_any_order(tmp_path: Path) -> None:
    x, scale = _random(6, (2, 3, 4), (2, 4))
    (came,) = run(tmp_path, lambda mb, x: mb.layer_norm(x=x, axes=[0, 2], gamma=scale), {"x": x})
    centered = x - x.mean((0, 2), keepdims=True)
    normal = centered / np.sqrt(np.square(centered).mean((0, 2), keepdims=True) + np.float32(1e-5))
    close(came, normal * scale[:, None, :])


@pytest.mark.parametrize("axes", [[1], [0, -1], [0, 1, 2]], ids=str)
@pytest.mark.parametrize("kept", [False, True])
def test_reductions(tmp_path: Path, axes: list[int], kept: bool) -> None:
    x = np.random.default_rng(7).uniform(0.5, 2, (2, 3, 4)).astype(np.float32)
    came = run(
        tmp_path, lambda mb, x: tuple(getattr(mb, kind)(x=x, axes=axes, keep_dims=kept) for kind in REDUCED), {"x": x}
    )
    for kind, result in zip(REDUCED.values(), came, strict=True):
        # Core ML's outputs have at least one axis.
        close(
            result, np.atleast_1d(onnx_op(kind, x, np.array(axes), keepdims=int(kept))[0]).reshape(result.shape), 1e-4
        )


def test_index_reductions(tmp_path: Path) -> None:
    (x,) = _random(8, (2, 3, 4))
    came = run(
        tmp_path,
        lambda mb, x: (
            mb.reduce_argmax(x=x, axis=1),
            mb.reduce_argmin(x=x, axis=-1, keep_dims=True),
            mb.cast(x=mb.reduce_argmax(x=x, axis=0, output_dtype="uint16"), dtype="int32"),
        ),
        {"x": x},
        ios=17,
    )
    close(came[0], x.argmax(1).astype(np.int32))
    close(came[1], x.argmin(-1, keepdims=True).astype(np.int32))
    close(came[2], x.argmax(0).astype(np.int32))
