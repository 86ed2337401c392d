"""Exported encoder-decoders: their three graphs, against plain numpy."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from tests.flagir.models import Array, parse
from tests.flagir.programs import oracle
from tests.flagir.programs.driver import Engine, answers, close, engine
from tests.flagir.programs.exports import KV, SIZE, VOCABULARY, WIDTH, exported, wanted
from tests.flagir.programs.made import program_of

from flagsplit.errors import ModelError
from flagsplit.flagir.programs import Program
from flagsplit.flagir.programs.exported import slot_form
from flagsplit.flagir.programs.exported_encoder import encode_form, prefill_form
from flagsplit.flagir.programs.link import link

LAYERS = 2

FIRST_STEP = """
g (int64[b, s] input_ids, float[b, f, 8] encoder_hidden_states)
=> (float[b, s, 11] logits, {outputs}) {{
    words = Gather(table, input_ids)
    logits = MatMul(words, head)
    {layers}
}}
"""

CROSS_KEYS = """
    flat_{pair} = MatMul(encoder_hidden_states, w_{pair})
    wide_{pair} = Reshape(flat_{pair}, heads)
    present_{pair} = Transpose<perm = [0, 2, 1, 3]>(wide_{pair})
"""

ENCODER = """
g (float[b, n] input_values, int64[b, n] attention_mask) => (float[b, f, 8] last_hidden_state) {
    floats = Cast<to = 1>(attention_mask)
    heard = Mul(input_values, floats)
    last_hidden_state = Reshape(heard, cut)
}
"""


def with_weights(text: str, weights: dict[str, Array]) -> ir.Model:
    proto = parse(text, opset=18)
    for name, array in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return ir.from_proto(proto)


def first_step(change: Callable[[str], str] = lambda text: text) -> tuple[ir.Model, dict[str, Array]]:
    pairs = [f"{i}_{part}" for i in range(LAYERS) for part in ("key", "value")]
    text = FIRST_STEP.format(
        outputs=", ".join(f"float[b, 2, f, 4] present_{pair}" for pair in pairs),
        layers="".join(CROSS_KEYS.format(pair=pair) for pair in pairs),
    )
    rng = np.random.default_rng(9)
    weights: dict[str, Array] = {
        name: rng.standard_normal(shape).astype(np.float32) * 0.5
        for name, shape in (
            ("table", (VOCABULARY, WIDTH)),
            ("head", (WIDTH, VOCABULARY)),
            *((f"w_{pair}", (WIDTH, WIDTH)) for pair in pairs),
        )
    }
    weights["heads"] = np.array([0, 0, KV, SIZE])
    model = with_weights(change(text), weights)
    for value in model.graph.outputs:
        name, *rest = (value.name or "").split("_")
        if rest:
            value.name = ".".join((name, rest[0], "encoder", rest[1]))
    return model, weights


def encoder(text: str = ENCODER) -> ir.Model:
    return with_weights(text, {"cut": np.array([0, -1, WIDTH])})


def crosses_of(weights: dict[str, Array], hidden: Array) -> list[Array]:
    """Keys and values [heads, frames, size], layer by layer."""
    pairs = [f"{i}_{part}" for i in range(LAYERS) for part in ("key", "value")]
    return [(hidden @ weights[f"w_{pair}"]).reshape(-1, KV, SIZE).transpose(1, 0, 2) for pair in pairs]


def test_batches_with_inputs_of_other_lengths() -> None:
    model, weights = exported(LAYERS, cross=True)
    first, of_cross = first_step()
    steps = Engine(slot_form(model), prefill_form(first))
    rng = np.random.default_rng(0)
    hidden = [rng.standard_normal((length, WIDTH)).astype(np.float32) for length in (3, 7, 1)]
    asked = [[int(token) for token in rng.integers(0, VOCABULARY, length)] for length in (8, 5, 9)]
    streams = [steps.open(tokens, rows) for tokens, rows in zip(asked, hidden, strict=True)]
    for counts, spare in (((3, 1, 6), 0), ((2, 2, 1), 2), ((1, 1, 1), 0)):
        found = steps.run(streams, counts, spare)
        for row, stream, rows in zip(found, streams, hidden, strict=True):
            close(row, wanted(weights, stream.tokens, crosses_of(of_cross, rows))[stream.done - 1])


def test_a_program_of_the_three() -> None:
    model, weights = exported(LAYERS, cross=True)
    first, of_cross = first_step()
    base = program_of(oracle.moonshine_like(np.random.default_rng(0)), [1]).facts
    sizes = {"layers": LAYERS, "heads": KV, "kv_heads": KV, "head_size": SIZE, "width": WIDTH, "vocabulary": VOCABULARY}
    facts = replace(base, **sizes, stop_tokens=(VOCABULARY - 1,), suppressed=(VOCABULARY - 1,))  # type: ignore[arg-type]
    graphs = {"encode": encode_form(encoder()), "prefill": prefill_form(first), "step": slot_form(model)}
    audio = np.random.default_rng(1).standard_normal(WIDTH * 5).astype(np.float32)
    found = answers(engine(link(Program(facts, graphs, b""), 6)), {"audio": audio[None]})["tokens"]  # type: ignore[arg-type]
    crosses = crosses_of(of_cross, audio.reshape(-1, WIDTH))
    tokens = [1]
    for _ in range(6):
        tokens.append(int(wanted(weights, tokens, crosses)[-1][:-1].argmax()))
    assert found.tolist() == [tokens[1:]]


@pytest.mark.parametrize(
    ("kind", "shape", "name"), [("input_values", (1, 16), "audio"), ("input_features", (1, 4, 4), "log_mel")]
)
def test_an_encoder(kind: str, shape: tuple[int, ...], name: str) -> None:
    text = ENCODER.replace("input_values", kind)
    if len(shape) == 3:
        text = text.replace("float[b, n]", "float[b, 4, n]").replace(
            "heard = Mul(input_features, floats)",
            "wide = Unsqueeze(floats, one)\n    heard = Mul(input_features, wide)",
        )
    model = with_weights(text, {"cut": np.array([1, -1, WIDTH]), "one": np.array([1])})
    source = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    found = answers(engine(encode_form(model)), {name: source})
    np.testing.assert_array_equal(found["hidden"], source.reshape(1, -1, WIDTH))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("input_values", "sound", "input_values or input_features"),
        ("last_hidden_state", "states", "to states"),
        ("int64[b, n] attention_mask", "int64[b, n] attention_mask, float[b, n] more", "'more' of the encoder"),
    ],
)
def test_other_encoders_are_refused(old: str, new: str, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        encode_form(encoder(ENCODER.replace(old, new)))


def test_other_first_steps_are_refused() -> None:
    with pytest.raises(ModelError, match=r"outputs present\.0\.encoder\.key"):
        prefill_form(exported()[0])
    model, _ = first_step(lambda text: text.replace("MatMul(encoder_hidden_states, w_1_key)", "MatMul(words, w_1_key)"))
    with pytest.raises(ModelError, match="they need encoder_hidden_states, input_ids"):
        prefill_form(model)


def test_the_batch_may_be_that_of_the_tokens() -> None:
    """As tracing writes it; any other size of the tokens would be refused."""

    def sized(text: str) -> str:
        sizes = "batch = Shape<start = 0, end = 1>(input_ids)\n    now = Concat<axis = 0>(batch, rest)"
        reshape = "wide_0_key = Reshape(flat_0_key, {})"
        return text.replace(reshape.format("heads"), f"{sizes}\n    {reshape.format('now')}")

    model, weights = first_step(sized)
    rest = ir.Value(name="rest", const_value=ir.Tensor(np.array([-1, KV, SIZE]), name="rest"))
    (old,) = {value for node in model.graph for value in node.inputs if value is not None and value.name == "rest"}
    old.replace_all_uses_with(rest)
    model.graph.register_initializer(rest)
    hidden = np.random.default_rng(0).standard_normal((2, 3, WIDTH)).astype(np.float32)
    found = answers(engine(prefill_form(model)), {"hidden": hidden})
    close(found["cross.0.key"], np.stack([crosses_of(weights, rows)[0] for rows in hidden]))


def test_open_frames_need_a_mask() -> None:
    def unmasked(text: str) -> str:
        return text.replace("Cast<to = 9>(encoder_attention_mask)", "Cast<to = 9>(attention_mask)")

    with pytest.raises(ModelError, match="reads no 'encoder_attention_mask'"):
        slot_form(exported(LAYERS, change=unmasked, cross=True)[0])
    step = slot_form(exported(LAYERS, change=lambda text: unmasked(text).replace(" f, 4]", " 6, 4]"), cross=True)[0])
    frames = [value.shape for value in step.graph.inputs if (value.name or "").startswith("cross.")]
    assert all(shape is not None and shape[2] == 6 for shape in frames)
