"""Built graphs against plain numpy that recomputes everything: chunks, caches, padding and batches change nothing."""

import numpy as np
import pytest
from tests.flagir.models import Array
from tests.flagir.programs import oracle
from tests.flagir.programs.driver import Engine, close, engine

from flagsplit.errors import ModelError
from flagsplit.flagir.programs.decoder import build_prefill, build_step
from flagsplit.flagir.programs.encoder import build_encode

SEEDS = range(6)
CASES = [(family, seed) for family in oracle.FAMILIES for seed in SEEDS]


def engine_of(made: oracle.Made) -> Engine:
    prefill = build_prefill(made.decoder, made.decoder_weights) if made.decoder.cross else None
    return Engine(build_step(made.decoder, made.decoder_weights), prefill)


def hidden_for(made: oracle.Made, rng: np.random.Generator) -> Array | None:
    return rng.standard_normal((int(rng.integers(1, 9)), oracle.FRAME_WIDTH)) if made.decoder.cross else None


@pytest.mark.parametrize(("family", "seed"), CASES)
def test_a_stream_in_chunks(family: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    made = oracle.FAMILIES[family](rng)
    steps = engine_of(made)
    tokens = [int(token) for token in rng.integers(0, made.decoder.vocabulary, 14)]
    hidden = hidden_for(made, rng)
    wanted = oracle.logits(made.decoder, made.decoder_weights, tokens, hidden)
    stream = steps.open(tokens, hidden)
    while stream.done < len(tokens):
        count = min(int(rng.integers(1, 6)), len(tokens) - stream.done)
        (found,) = steps.run([stream], [count])
        close(found, wanted[stream.done - 1])


@pytest.mark.parametrize(("family", "seed"), CASES)
def test_batch_mates_and_padding_change_nothing(family: str, seed: int) -> None:
    rng = np.random.default_rng(seed + 100)
    made = oracle.FAMILIES[family](rng)
    steps = engine_of(made)
    streams, hidden = [], []
    for length in (3, 9, 5):
        tokens = [int(token) for token in rng.integers(0, made.decoder.vocabulary, length + 4)]
        hidden.append(hidden_for(made, rng))
        streams.append(steps.open(tokens, hidden[-1]))
        if length > 3:
            steps.run(streams[-1:], [length - 3])
    wanted = [
        oracle.logits(made.decoder, made.decoder_weights, stream.tokens, source)
        for stream, source in zip(streams, hidden, strict=True)
    ]
    for counts, spare in (((2, 1, 3), 2), ((1, 1, 1), 0), ((1, 1, 1), 3)):
        found = steps.run(streams, counts, spare)
        close(found, np.stack([rows[each.done - 1] for rows, each in zip(wanted, streams, strict=True)]))


@pytest.mark.parametrize(("family", "seed"), [case for case in CASES if case[0] != "llama"])
def test_an_encoder(family: str, seed: int) -> None:
    rng = np.random.default_rng(seed + 200)
    made = oracle.FAMILIES[family](rng)
    assert made.encoder is not None
    assert made.encoder_weights is not None
    model = build_encode(made.encoder, made.encoder_weights)
    (source,) = model.graph.inputs
    shape = (60 + 7 * seed,) if source.name == "audio" else (oracle.BINS, 18)
    signals = rng.standard_normal((2, *shape)).astype(np.float32)
    (found,) = engine(model).run(None, {source.name or "": signals})
    close(found, np.stack([oracle.encode(made.encoder, made.encoder_weights, signal) for signal in signals]))


@pytest.mark.parametrize("family", ["moonshine", "whisper"])
def test_an_encoder_is_made_of_what_every_chip_has(family: str) -> None:
    made = oracle.FAMILIES[family](np.random.default_rng(1))
    assert made.encoder is not None
    assert made.encoder_weights is not None
    graph = build_encode(made.encoder, made.encoder_weights).graph
    of_sizes = {"Shape", "Range", "Expand", "Cast"}  # folded where the length is fixed
    plain = "Add Mul Sub Div Sqrt MatMul Conv Gelu Tanh Softmax LayerNormalization ReduceMean Cos Sin".split()
    moving = "Transpose Reshape Unsqueeze Split Concat".split()
    assert {node.op_type for node in graph} <= {*of_sizes, *plain, *moving}


def test_learned_positions_fix_the_length() -> None:
    made = oracle.whisper_like(np.random.default_rng(0))
    assert made.encoder is not None
    assert made.encoder_weights is not None
    (source,) = build_encode(made.encoder, made.encoder_weights).graph.inputs
    assert source.shape is not None
    assert list(source.shape)[1:] == [oracle.BINS, 18]


@pytest.mark.parametrize(
    ("name", "change", "wanted"),
    [
        ("layers.0.self.q.weight", None, "'layers.0.self.q.weight' .* missing"),
        ("layers.0.self.q.weight", (3, 3), "'layers.0.self.q.weight' to be"),
        ("norm.weight", (3,), "'norm.weight' to be"),
        ("layers.0.mlp.down.weight", (16, 5), "'layers.0.mlp.down.weight' to be"),
    ],
)
def test_wrong_weights_are_named(name: str, change: tuple[int, ...] | None, wanted: str) -> None:
    made = oracle.llama_like(np.random.default_rng(0))
    weights = {each: array for each, array in made.decoder_weights.items() if each != name}
    if change is not None:
        weights[name] = np.zeros(change, np.float32)
    with pytest.raises(ModelError, match=wanted):
        build_step(made.decoder, weights)
