"""Decoders as exporters write them, by hand: learned positions, no norms, perhaps an encoder; and what they compute."""

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
from tests.flagir.models import Array, parse

KV, SIZE, WIDTH, VOCABULARY = 2, 4, 8, 11

LAYER = """
    flat_q_{i} = MatMul(x_{i}, wq_{i})
    flat_k_{i} = MatMul(x_{i}, wk_{i})
    flat_v_{i} = MatMul(x_{i}, wv_{i})
    wide_q_{i} = Reshape(flat_q_{i}, heads)
    wide_k_{i} = Reshape(flat_k_{i}, heads)
    wide_v_{i} = Reshape(flat_v_{i}, heads)
    q_{i} = Transpose<perm = [0, 2, 1, 3]>(wide_q_{i})
    k_{i} = Transpose<perm = [0, 2, 1, 3]>(wide_k_{i})
    v_{i} = Transpose<perm = [0, 2, 1, 3]>(wide_v_{i})
    present_{i}_key = Concat<axis = -2>(past_{i}_key, k_{i})
    present_{i}_value = Concat<axis = 2>(past_{i}_value, v_{i})
    turned_{i} = Transpose<perm = [0, 1, 3, 2]>(present_{i}_key)
    scores_{i} = MatMul(q_{i}, turned_{i})
    scaled_{i} = Mul(scores_{i}, scale)
    masked_{i} = Add(scaled_{i}, mask)
    parts_{i} = Softmax<axis = -1>(masked_{i})
    mixed_{i} = MatMul(parts_{i}, present_{i}_value)
    back_{i} = Transpose<perm = [0, 2, 1, 3]>(mixed_{i})
    joined_{i} = Reshape(back_{i}, rows)
    out_{i} = MatMul(joined_{i}, wo_{i})
    y_{i} = Add(x_{i}, out_{i})
"""

CROSS = """
    flat_c_{i} = MatMul(y_{i}, wc_{i})
    wide_c_{i} = Reshape(flat_c_{i}, heads)
    c_{i} = Transpose<perm = [0, 2, 1, 3]>(wide_c_{i})
    cross_t_{i} = Transpose<perm = [0, 1, 3, 2]>(cross_{i}_key)
    cross_s_{i} = MatMul(c_{i}, cross_t_{i})
    cross_m_{i} = Add(cross_s_{i}, frames_mask)
    cross_p_{i} = Softmax<axis = -1>(cross_m_{i})
    cross_x_{i} = MatMul(cross_p_{i}, cross_{i}_value)
    cross_b_{i} = Transpose<perm = [0, 2, 1, 3]>(cross_x_{i})
    cross_j_{i} = Reshape(cross_b_{i}, rows)
    x_{j} = Add(y_{i}, cross_j_{i})
"""

FRAMES_MASK = """
    given_f = Cast<to = 9>(encoder_attention_mask)
    given_f4 = Unsqueeze(given_f, middle)
    frames_mask = Where(given_f4, nought, minus)
"""

SAME = """
    x_{j} = Identity(y_{i})
"""

BODY = """
g (int64[b, s] input_ids, int64[b, t] attention_mask{inputs}, {pasts})
=> (float[b, s, 11] logits, {presents}) {{
    words = Gather(table, input_ids)
    {places}
    places = Gather(positions_table, position_ids)
    x_0 = Add(words, places)
    shape_p = Shape<start = 2, end = 3>(past_0_key)
    shape_s = Shape<start = 1, end = 2>(input_ids)
    both = Add(shape_p, shape_s)
    p = Squeeze(shape_p)
    all = Squeeze(both)
    keys = Range(zero, all, one)
    queries = Range(p, all, one)
    queries_2 = Unsqueeze(queries, last_axis)
    causal = LessOrEqual(keys, queries_2)
    given = Cast<to = 9>(attention_mask)
    given_4 = Unsqueeze(given, middle)
    allowed = And(causal, given_4)
    mask = Where(allowed, nought, minus)
    {layers}
    logits = MatMul(x_{count}, head)
}}
"""


def exported(
    layers: int = 2,
    places: str = "",
    inputs: str = ", int64[b, s] position_ids",
    change: Callable[[str], str] = lambda text: text,
    *,
    cross: bool = False,
) -> tuple[ir.Model, dict[str, Array]]:
    """A decoder and its weights."""
    pairs = [f"{i}_{part}" for i in range(layers) for part in ("key", "value")]
    body = BODY.format(
        inputs=inputs,
        places=places,
        pasts=", ".join(
            [f"float[b, 2, p, 4] past_{pair}" for pair in pairs]
            + [f"float[b, 2, f, 4] cross_{pair}" for pair in pairs if cross]
            + ["int64[b, f] encoder_attention_mask"] * cross
        ),
        presents=", ".join(f"float[b, 2, t, 4] present_{pair}" for pair in pairs),
        layers=FRAMES_MASK * cross
        + "".join((LAYER + (CROSS if cross else SAME)).format(i=i, j=i + 1) for i in range(layers)),
        count=layers,
    )
    proto = parse(change(body), opset=18)
    rng = np.random.default_rng(layers)
    weights = {
        "table": rng.standard_normal((VOCABULARY, WIDTH)),
        "positions_table": rng.standard_normal((40, WIDTH)),
        "head": rng.standard_normal((WIDTH, VOCABULARY)),
        **{f"w{part}_{i}": rng.standard_normal((WIDTH, WIDTH)) * 0.4 for i in range(layers) for part in "qkvoc"},
        "scale": np.array(0.5),
        "nought": np.array(0.0),
        "minus": np.array(-1e9),
    }
    whole = {
        "heads": [0, 0, KV, SIZE],
        "rows": [0, 0, WIDTH],
        "zero": 0,
        "one": 1,
        "last_axis": [1],
        "middle": [1, 2],
    }
    for name, array in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array, np.float32), name))
    for name, numbers in whole.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(numbers, np.int64), name))
    model = ir.from_proto(proto)
    for value in (*model.graph.inputs, *model.graph.outputs):
        kind, *rest = (value.name or "").split("_")
        of = ["encoder" if kind == "cross" else "decoder"] if cross else []
        if kind in ("past", "present", "cross") and rest[0].isdecimal():
            whole_cache = "present" if kind == "present" else "past_key_values"
            value.name = ".".join([whole_cache, rest[0], *of, rest[1]])
    return model, weights


def wanted(weights: dict[str, Array], tokens: list[int], crosses: list[Array] | None = None) -> Array:
    """Logits of every token; `crosses` are keys and values of cross-attention, layer by layer."""
    rows = weights["table"][tokens] + weights["positions_table"][: len(tokens)]
    for i in range(sum(name.startswith("wq_") for name in weights)):
        q, k, v = ((rows @ weights[f"w{part}_{i}"]).reshape(-1, KV, SIZE).transpose(1, 0, 2) for part in "qkv")
        scores = np.where(np.tri(len(rows), dtype=bool), q @ k.transpose(0, 2, 1) * 0.5, -np.inf)
        parts = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = parts / parts.sum(-1, keepdims=True) @ v
        rows = rows + mixed.transpose(1, 0, 2).reshape(len(rows), -1) @ weights[f"wo_{i}"]
        if crosses:
            keys, values = crosses[2 * i : 2 * i + 2]
            asked = (rows @ weights[f"wc_{i}"]).reshape(-1, KV, SIZE).transpose(1, 0, 2)
            parts = np.exp(asked @ keys.transpose(0, 2, 1))
            mixed = parts / parts.sum(-1, keepdims=True) @ values
            rows = rows + mixed.transpose(1, 0, 2).reshape(len(rows), -1)
    return np.asarray(rows @ weights["head"])
