"""The normalizations."""

from typing import Any

import numpy as np
import pytest
from tests.flagir.microsoft.vendor import HALF, assert_rewritten, floats, integers, vendor_model
from tests.flagir.models import canonical

from flagsplit.errors import ModelError

TYPES = [(np.float32, 1e-5), (np.float16, HALF)]
HIDDEN = 16


def some(dtype: Any, *which: str) -> list[Any]:
    """Input, skip, gamma, and those of beta and bias that are named."""
    rest = [floats(HIDDEN, dtype=dtype, seed=seed) if name in which else None for seed, name in ((3, "b"), (4, "c"))]
    return [
        floats(2, 5, HIDDEN, dtype=dtype),
        floats(2, 5, HIDDEN, dtype=dtype, seed=1),
        floats(HIDDEN, dtype=dtype, seed=2),
        *rest,
    ]


@pytest.mark.parametrize(("dtype", "relative"), TYPES)
@pytest.mark.parametrize("optional", ["", "b", "c", "bc"])
@pytest.mark.parametrize("outputs", ["1", "1001"])
def test_skip_layer_normalization(dtype: Any, relative: float, optional: str, outputs: str) -> None:
    inputs = some(dtype, *optional)
    ops = assert_rewritten("SkipLayerNormalization", inputs, relative=relative, outputs=outputs, epsilon=1e-5)
    assert ops[-1] == "LayerNormalization"


@pytest.mark.parametrize("shape", [(1, 5, HIDDEN), (5, HIDDEN)])
def test_a_skip_that_is_broadcast(shape: tuple[int, ...]) -> None:
    inputs = some(np.float32, "b", "c")
    inputs[1] = floats(*shape, seed=1)
    assert_rewritten("SkipLayerNormalization", inputs)


@pytest.mark.parametrize(("dtype", "relative"), TYPES)
@pytest.mark.parametrize("optional", ["", "b"])
@pytest.mark.parametrize("outputs", ["1", "1001"])
def test_skip_simplified(dtype: Any, relative: float, optional: str, outputs: str) -> None:
    inputs = some(dtype, *optional)[:4]
    op = "SkipSimplifiedLayerNormalization"
    assert "RMSNormalization" in assert_rewritten(op, inputs, relative=relative, outputs=outputs, epsilon=1e-6)


@pytest.mark.parametrize("opset", [13, 17, 21, 23])
@pytest.mark.parametrize("axis", [None, -1, 2, 1])
def test_simplified(axis: int | None, opset: int) -> None:
    x, scale = floats(2, 5, HIDDEN), floats(*((5, HIDDEN) if axis == 1 else (HIDDEN,)))
    attributes = {} if axis is None else {"axis": axis}
    ops = assert_rewritten("SimplifiedLayerNormalization", [x, scale], domain="", opset=opset, **attributes)
    assert ops == ["RMSNormalization"]


@pytest.mark.parametrize("outputs", ["11"])
def test_statistics_of_training_are_refused(outputs: str) -> None:
    inputs = [floats(2, 5, HIDDEN), floats(HIDDEN)]
    proto, _ = vendor_model("SimplifiedLayerNormalization", inputs, domain="", outputs=outputs)
    with pytest.raises(
        ModelError, match=r"com\.microsoft\.SimplifiedLayerNormalization 'vendor'.*statistics of a training"
    ):
        canonical(proto)


@pytest.mark.parametrize("opset", [11, 16])
def test_layer_normalization_before_the_standard_had_it(opset: int) -> None:
    inputs = [floats(2, 5, HIDDEN), floats(HIDDEN, seed=1), floats(HIDDEN, seed=2)]
    ops = assert_rewritten("LayerNormalization", inputs, domain="", opset=opset, axis=-1, epsilon=1e-3)
    assert ops == ["LayerNormalization"]


@pytest.mark.parametrize("optional", ["", "segments", "mask", "positions", "segments, mask, positions"])
@pytest.mark.parametrize("outputs", ["11", "111"])
def test_embed_layer_normalization(optional: str, outputs: str) -> None:
    def ids(high: int, name: str, seed: int) -> Any:
        return integers(2, 5, dtype=np.int32, low=0, high=high, seed=seed) if name in optional or not name else None

    segments = ids(3, "segments", 1)
    inputs = [
        ids(20, "", 0),
        segments,
        floats(20, HIDDEN),
        floats(9, HIDDEN, seed=1),
        None if segments is None else floats(3, HIDDEN, seed=2),
        floats(HIDDEN, seed=3),
        floats(HIDDEN, seed=4),
        ids(2, "mask", 2),
        ids(9, "positions", 3),
    ]
    attributes: dict[str, Any] = {"mask_index_type": 1} if "mask" in optional else {}
    assert_rewritten("EmbedLayerNormalization", inputs, constants=[2, 3, 4, 5, 6], outputs=outputs, **attributes)
