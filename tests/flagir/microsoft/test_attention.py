"""The attention operators, in every form that the CPU has a kernel for, and the forms that are refused."""

from typing import Any

import numpy as np
import pytest
from tests.flagir.microsoft.vendor import HALF, assert_rewritten, floats, integers, scalar, vendor_model
from tests.flagir.models import Array, canonical

from flagsplit.errors import ModelError

BATCH, LENGTH, HEADS, SIZE, PAST = 2, 5, 2, 4, 3
HIDDEN = HEADS * SIZE
MASKS = ["none", "ends", "ends and starts", "keys", "queries and keys"]


def mask_of(form: str, total: int, length: int = LENGTH) -> Array | None:
    if form == "none":
        return None
    if form == "ends":
        return np.array([total, 3], np.int32)
    if form == "ends and starts":
        return np.array([total, 4, 1, 0], np.int32)
    if form == "keys":
        mask = np.ones((BATCH, total), np.int32)
        mask[1, 2:4] = 0
        return mask
    return integers(BATCH, length, total, dtype=np.int32, low=0, high=2)


def attention_inputs(mask: str = "none", past: bool = False, bias: bool = False, value: int = HIDDEN) -> list[Any]:
    total = LENGTH + (PAST if past else 0)
    return [
        floats(BATCH, LENGTH, 6),
        floats(6, 2 * HIDDEN + value, seed=1),
        floats(2 * HIDDEN + value, seed=2),
        mask_of(mask, total),
        floats(2, BATCH, HEADS, PAST, SIZE, seed=3) if past else None,
        floats(1, HEADS, LENGTH, total, seed=4) if bias else None,
    ]


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("past", [False, True])
@pytest.mark.parametrize("unidirectional", [0, 1])
def test_attention(mask: str, past: bool, unidirectional: int) -> None:
    inputs = attention_inputs(mask, past)
    how: dict[str, Any] = {"outputs": 2 if past else 1, "constants": [1, 2], "open_dims": mask != "ends and starts"}
    ops = assert_rewritten("Attention", inputs, num_heads=HEADS, unidirectional=unidirectional, **how)
    assert "Attention" in ops


@pytest.mark.parametrize("mask", ["none", "keys"])
@pytest.mark.parametrize("unidirectional", [0, 1])
def test_attention_with_more(mask: str, unidirectional: int) -> None:
    names: dict[str, Any] = {"num_heads": HEADS, "unidirectional": unidirectional}
    assert_rewritten("Attention", attention_inputs(mask, bias=True), constants=[1, 2], **names)
    assert_rewritten("Attention", attention_inputs(mask, past=True), outputs=2, scale=0.3, **names)
    wide = attention_inputs(mask, value=2 * HIDDEN)
    sizes = [HIDDEN, HIDDEN, 2 * HIDDEN]
    assert_rewritten("Attention", wide, constants=[1, 2], qkv_hidden_sizes=sizes, **names)
    assert_rewritten("Attention", attention_inputs(mask), outputs=2, mask_filter_value=-5.0, **names)


@pytest.mark.parametrize("mask", ["none", "ends", "keys"])
@pytest.mark.parametrize("past", [False, True])
@pytest.mark.parametrize("unidirectional", [0, 1])
@pytest.mark.parametrize("per_column", [False, True])
def test_q_attention(mask: str, past: bool, unidirectional: int, per_column: bool) -> None:
    total = LENGTH + (PAST if past else 0)
    inputs = [
        integers(BATCH, LENGTH, 6),
        integers(6, 3 * HIDDEN, dtype=np.int8),
        floats(3 * HIDDEN, seed=2),
        scalar(0.02),
        np.abs(floats(3 * HIDDEN, seed=5)) / 50 if per_column else scalar(0.01),
        mask_of(mask, total),
        scalar(100, np.uint8),
        np.zeros(3 * HIDDEN, np.int8) if per_column else scalar(2, np.int8),
        floats(2, BATCH, HEADS, PAST, SIZE, seed=3) if past else None,
    ]
    how: dict[str, Any] = {"outputs": 2 if past else 1, "constants": [1, 2, 3, 4, 6, 7]}
    assert_rewritten("QAttention", inputs, num_heads=HEADS, unidirectional=unidirectional, **how)


def multi_inputs(
    mask: str = "none",
    past: bool = False,
    bias: bool = False,
    scores: bool = False,
    other: int = LENGTH,
    value: int = HIDDEN,
) -> list[Any]:
    total = other + (PAST if past else 0)
    return [
        floats(BATCH, LENGTH, HIDDEN),
        floats(BATCH, other, HIDDEN, seed=1),
        floats(BATCH, other, value, seed=2),
        floats(2 * HIDDEN + value, seed=3) if bias else None,
        mask_of(mask, total),
        floats(BATCH, 1, LENGTH, total, seed=4) if scores else None,
        floats(BATCH, HEADS, PAST, SIZE, seed=5) if past else None,
        floats(BATCH, HEADS, PAST, value // HEADS, seed=6) if past else None,
    ]


@pytest.mark.parametrize("mask", ["none", "ends", "keys", "queries and keys"])
@pytest.mark.parametrize("past", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("unidirectional", [0, 1])
def test_multi_head_attention(mask: str, past: bool, bias: bool, unidirectional: int) -> None:
    inputs = multi_inputs(mask, past, bias)
    assert_rewritten(
        "MultiHeadAttention",
        inputs,
        outputs=3 if past else 1,
        num_heads=HEADS,
        unidirectional=unidirectional,
    )


@pytest.mark.parametrize("mask", ["none", "keys"])
def test_multi_head_attention_with_more(mask: str) -> None:
    op = "MultiHeadAttention"
    assert_rewritten(op, multi_inputs(mask, scores=True), num_heads=HEADS, scale=0.7)
    assert_rewritten(op, multi_inputs(mask, scores=True, past=True), num_heads=HEADS, outputs=3)
    assert_rewritten(op, multi_inputs(mask, other=7), num_heads=HEADS)
    assert_rewritten(op, multi_inputs(mask, value=2 * HIDDEN, bias=True), num_heads=HEADS, open_dims=False)
    assert_rewritten(op, multi_inputs(mask), num_heads=HEADS, outputs=3)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("scores", [False, True])
def test_keys_that_are_split_into_heads(bias: bool, scores: bool) -> None:
    inputs = multi_inputs(other=7, scores=scores, bias=bias)
    for index in (1, 2):
        inputs[index] = floats(BATCH, HEADS, 7, SIZE, seed=index)
    assert_rewritten("MultiHeadAttention", inputs, num_heads=HEADS)


def test_halves() -> None:
    inputs = [None if x is None or x.dtype != np.float32 else x.astype(np.float16) for x in multi_inputs(scores=True)]
    assert_rewritten("MultiHeadAttention", inputs, num_heads=HEADS, relative=HALF)


@pytest.mark.parametrize(
    ("op", "inputs", "attributes", "message"),
    [
        ("MultiHeadAttention", [floats(1, 2, 2, 3, 4)], {}, "packed into one tensor"),
        ("MultiHeadAttention", [floats(1, 2, 8), floats(1, 2, 2, 2, 4)], {}, "packed into one tensor"),
        ("MultiHeadAttention", multi_inputs(), {"outputs": "1001"}, "the scores among its outputs"),
        ("MultiHeadAttention", [*multi_inputs(past=True), scalar(3, np.int32)], {}, "past in a shared buffer"),
        ("Attention", attention_inputs(), {"do_rotary": 1}, "do_rotary set"),
        ("Attention", attention_inputs(past=True), {"past_present_share_buffer": 1}, "share_buffer set"),
        ("Attention", [*attention_inputs()[:3], integers(2, 1, 9, 9, dtype=np.int32)], {}, "mask of rank 4"),
        (
            "Attention",
            [*attention_inputs()[:3], integers(8, dtype=np.int32)],
            {"open_dims": False},
            "mask of 8 numbers for 2 rows",
        ),
    ],
)
def test_other_forms_are_refused(op: str, inputs: list[Any], attributes: dict[str, Any], message: str) -> None:
    proto, _ = vendor_model(op, inputs, num_heads=HEADS, **attributes)
    with pytest.raises(ModelError, match=rf"com\.microsoft\.{op} 'vendor'.*{message}.*; [a-z]+ "):
        canonical(proto)


@pytest.mark.parametrize("form", ["heads apart", "heads together"])
@pytest.mark.parametrize("positions", ["first", "all"])
@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("part", [0, 2])
def test_rotary_embedding(form: str, positions: str, interleaved: int, part: int) -> None:
    apart = form == "heads apart"
    x = floats(BATCH, HEADS, LENGTH, SIZE) if apart else floats(BATCH, LENGTH, HIDDEN)
    places = np.array([3]) if positions == "first" else integers(BATCH, LENGTH, dtype=np.int64, low=0, high=9)
    half = (part or SIZE) // 2
    inputs = [x, places, floats(9, half, seed=1), floats(9, half, seed=2)]
    names = {"rotary_embedding_dim": part, "num_heads": HEADS} if part else {}
    ops = assert_rewritten(
        "RotaryEmbedding", inputs, constants=[2, 3], interleaved=interleaved, open_dims=apart or bool(part), **names
    )
    assert ops[-1] == "RotaryEmbedding"


@pytest.mark.parametrize(
    ("attributes", "message"),
    [({"is_packed_batching": 1}, "different lengths"), ({"scale": 0.5}, "a scale"), ({}, "num_heads")],
)
def test_rotary_embedding_of_other_forms(attributes: dict[str, Any], message: str) -> None:
    inputs = [floats(BATCH, LENGTH, HIDDEN), np.array([0]), floats(9, 2), floats(9, 2)]
    proto, _ = vendor_model("RotaryEmbedding", inputs, **attributes)
    with pytest.raises(ModelError, match=message):
        canonical(proto)
