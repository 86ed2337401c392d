"""Convolutions and pools against ONNX Runtime."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.targets.mobile.mil.oracle import close, onnx_op
from tests.targets.mobile.mil.writing import run

from flagsplit.errors import BundleError

CONVS: list[dict[str, Any]] = [
    {"x": (2, 4, 9, 8), "w": (6, 4, 3, 2)},
    {"x": (1, 3, 11, 10), "w": (4, 3, 3, 3), "strides": [2, 3], "pad_type": "custom", "pad": [1, 2, 0, 3]},
    {"x": (1, 6, 9, 9), "w": (6, 1, 3, 3), "groups": 6, "pad_type": "custom", "pad": [1, 1, 1, 1]},
    {"x": (2, 6, 9, 7), "w": (12, 1, 3, 3), "groups": 6, "strides": [2, 1]},
    {"x": (2, 8, 7, 7), "w": (6, 4, 3, 3), "groups": 2, "dilations": [2, 1]},
    {"x": (1, 4, 6, 6), "w": (5, 4, 1, 1), "strides": [2, 2]},
    {"x": (2, 3, 17), "w": (4, 3, 5), "dilations": [3]},
    {"x": (1, 2, 5, 6, 7), "w": (3, 2, 2, 3, 3), "pad_type": "custom", "pad": [1, 0, 0, 1, 1, 1]},
    {"x": (1, 3, 10, 11), "w": (2, 3, 4, 3), "strides": [3, 2], "pad_type": "same"},
    {"x": (1, 3, 10, 11), "w": (2, 3, 4, 2), "strides": [3, 2], "pad_type": "same_lower"},
]
AUTO_PAD = {"same": "SAME_UPPER", "same_lower": "SAME_LOWER"}


def _onnx_pads(pad: list[int]) -> list[int]:
    return [*pad[::2], *pad[1::2]]


def _attributes(case: dict[str, Any]) -> dict[str, Any]:
    attributes: dict[str, Any] = {key: case[key] for key in ("strides", "dilations") if key in case}
    if "groups" in case:
        attributes["group"] = case["groups"]
    if "pad" in case:
        attributes["pads"] = _onnx_pads(case["pad"])
    if case.get("pad_type") in AUTO_PAD:
        attributes["auto_pad"] = AUTO_PAD[case["pad_type"]]
    return attributes


@pytest.mark.parametrize("case", CONVS, ids=str)
def test_conv(tmp_path: Path, case: dict[str, Any]) -> None:
    rng = np.random.default_rng(1)
    x, w = (rng.standard_normal(case[key]).astype(np.float32) for key in "xw")
    b = rng.standard_normal(w.shape[0]).astype(np.float32)
    parameters = {"pad_type": "valid"} | {key: value for key, value in case.items() if key not in "xw"}
    (came,) = run(tmp_path, lambda mb, x: mb.conv(x=x, weight=w, bias=b, **parameters), {"x": x}, ios=16)
    close(came, onnx_op("Conv", x, w, b, **_attributes(case))[0])


def test_conv_lays_out_its_columns_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flagsplit.targets.mobile.mil.ops.conv._MAX_COLUMN_ELEMENTS", 500)
    test_conv(tmp_path, CONVS[1])


TRANSPOSED: list[dict[str, Any]] = [
    {"x": (2, 4, 5, 6), "w": (4, 3, 3, 2)},
    {"x": (1, 4, 5, 6), "w": (4, 3, 3, 3), "strides": [2, 3], "pad_type": "custom", "pad": [1, 0, 2, 1]},
    {"x": (1, 6, 5, 4), "w": (6, 2, 3, 3), "groups": 3, "strides": [2, 2], "dilations": [2, 1]},
    {"x": (2, 4, 7), "w": (4, 2, 4), "strides": [2], "pad_type": "custom", "pad": [1, 1]},
    {"x": (1, 2, 3, 4, 3), "w": (2, 2, 2, 2, 3), "strides": [2, 1, 2]},
    {"x": (1, 4, 5, 6), "w": (4, 3, 4, 3), "strides": [2, 2], "pad_type": "same"},
]


@pytest.mark.parametrize("case", TRANSPOSED, ids=str)
def test_conv_transpose(tmp_path: Path, case: dict[str, Any]) -> None:
    rng = np.random.default_rng(2)
    x, w = (rng.standard_normal(case[key]).astype(np.float32) for key in "xw")
    b = rng.standard_normal(w.shape[1] * case.get("groups", 1)).astype(np.float32)
    parameters = {"pad_type": "valid"} | {key: value for key, value in case.items() if key not in "xw"}
    (came,) = run(tmp_path, lambda mb, x: mb.conv_transpose(x=x, weight=w, bias=b, **parameters), {"x": x}, ios=16)
    attributes = _attributes(case)
    if case.get("pad_type") == "same":
        attributes["output_shape"] = [size * 2 for size in x.shape[2:]]
    close(came, onnx_op("ConvTranspose", x, w, b, **attributes)[0])


def test_conv_transpose_reaches_a_stated_shape(tmp_path: Path) -> None:
    """As PyTorch's output_padding is written: symmetric pads, and one more row and column."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal((1, 4, 5, 6)).astype(np.float32)
    w = rng.standard_normal((4, 3, 3, 3)).astype(np.float32)
    (came,) = run(
        tmp_path,
        lambda mb, x: mb.conv_transpose(
            x=x, weight=w, strides=[2, 2], pad_type="custom", pad=[1, 1, 1, 1], output_shape=[1, 3, 10, 12]
        ),
        {"x": x},
    )
    expected = onnx_op("ConvTranspose", x, w, strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1])
    close(came, expected[0])


POOLS: list[dict[str, Any]] = [
    {"x": (2, 3, 9, 8), "kernel_sizes": [3, 2]},
    {"x": (1, 3, 9, 8), "kernel_sizes": [3, 3], "strides": [2, 2], "pad_type": "custom", "pad": [1, 0, 1, 1]},
    {"x": (1, 3, 10, 8), "kernel_sizes": [3, 3], "strides": [2, 2], "ceil_mode": True},
    {
        "x": (1, 3, 10, 7),
        "kernel_sizes": [3, 3],
        "strides": [2, 3],
        "pad_type": "custom",
        "pad": [1, 1, 1, 1],
        "ceil_mode": True,
    },
    {"x": (1, 3, 10, 7), "kernel_sizes": [4, 3], "strides": [3, 2], "pad_type": "same"},
    {"x": (1, 3, 10, 7), "kernel_sizes": [4, 3], "strides": [3, 2], "pad_type": "same_lower"},
    {"x": (1, 3, 17), "kernel_sizes": [4], "strides": [3]},
    {"x": (1, 2, 6, 7, 5), "kernel_sizes": [2, 3, 2], "strides": [1, 2, 2]},
]


@pytest.mark.parametrize("case", POOLS, ids=str)
def test_pools(tmp_path: Path, case: dict[str, Any]) -> None:
    rng = np.random.default_rng(4)
    x = rng.standard_normal(case["x"]).astype(np.float32) - 2
    parameters = {"pad_type": "valid"} | {key: value for key, value in case.items() if key != "x"}

    def build(mb: Any, x: Any) -> Any:
        return (
            mb.max_pool(x=x, **parameters),
            mb.avg_pool(x=x, exclude_padding_from_average=True, **parameters),
            mb.avg_pool(x=x, exclude_padding_from_average=False, **parameters),
        )

    most, inner, whole = run(tmp_path, build, {"x": x}, ios=16)
    attributes = _attributes(case) | {"kernel_shape": case["kernel_sizes"], "ceil_mode": int("ceil_mode" in case)}
    close(most, onnx_op("MaxPool", x, **attributes)[0])
    close(inner, onnx_op("AveragePool", x, count_include_pad=0, **attributes)[0])
    close(whole, onnx_op("AveragePool", x, count_include_pad=1, **attributes)[0])


def test_l2_pool_is_the_root_of_the_sum_of_squares(tmp_path: Path) -> None:
    x = np.arange(12, dtype=np.float32).reshape(1, 1, 3, 4)
    (came,) = run(
        tmp_path, lambda mb, x: mb.l2_pool(x=x, kernel_sizes=[3, 2], strides=[1, 2], pad_type="valid"), {"x": x}
    )
    close(came, np.sqrt(np.array([[[[0 + 1 + 16 + 25 + 64 + 81, 4 + 9 + 36 + 49 + 100 + 121]]]], np.float32)))


def test_a_window_beyond_the_input_is_refused(tmp_path: Path) -> None:
    """Without pads, the documented size in ceil mode counts it; what it gives is not documented."""
    x = np.ones((1, 1, 6), np.float32)
    with pytest.raises(BundleError, match="last window lies beyond x"):
        run(
            tmp_path,
            lambda mb, x: mb.max_pool(x=x, kernel_sizes=[2], strides=[3], pad_type="valid", ceil_mode=True),
            {"x": x},
        )
