"""Built graphs against plain numpy that recomputes everything: chunks, caches, padding and batches change nothing."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from tests.flagir.models import Array, session
from tests.flagir.programs import oracle

from flagsplit.errors import ModelError
from flagsplit.flagir import violations
from flagsplit.flagir.programs.decoder import build_prefill, build_step
from flagsplit.flagir.programs.encoder import build_encode

GARBAGE = 7.5
SEEDS = range(6)
CASES = [(family, seed) for family in oracle.FAMILIES for seed in SEEDS]


def engine(model: ir.Model) -> ort.InferenceSession:
    assert violations(model) == ()
    return session(ir.to_proto(model))


@dataclass
class Stream:
    """A stream of tokens and what a step has to know of it."""

    tokens: list[int]
    hidden: Array | None
    cache: dict[str, Array] = field(default_factory=dict)
    cross: dict[str, Array] = field(default_factory=dict)
    done: int = 0


class Engine:
    """Runs steps of streams of any lengths as one padded batch."""

    def __init__(self, made: oracle.Made) -> None:
        self.spec = made.decoder
        self.step = engine(build_step(made.decoder, made.decoder_weights))
        self.prefill = engine(build_prefill(made.decoder, made.decoder_weights)) if made.decoder.cross else None

    def open(self, tokens: list[int], hidden: Array | None) -> Stream:
        stream = Stream(tokens, hidden)
        for i in range(self.spec.layers):
            for part in ("key", "value"):
                empty = np.zeros((self.spec.kv_heads, 0, self.spec.head_size), np.float32)
                stream.cache[f"{i}.{part}"] = empty
        if self.prefill is not None:
            assert hidden is not None
            made = self.prefill.run(None, {"hidden": hidden[None].astype(np.float32)})
            stream.cross = {value.name: array[0] for value, array in zip(self.prefill.get_outputs(), made, strict=True)}
        return stream

    def run(self, streams: Sequence[Stream], counts: Sequence[int], spare: int = 0) -> Array:
        """Logits after the next `counts[i]` tokens of each stream; `spare` more padding than is needed."""
        pairs = list(zip(streams, counts, strict=True))
        chunk = max(counts) + spare
        rows = [stream.tokens[stream.done : stream.done + count] for stream, count in pairs]
        feeds: dict[str, Array] = {
            "tokens": np.array([row + [1] * (chunk - len(row)) for row in rows], np.int64),
            "positions": np.array([np.arange(chunk) + stream.done for stream in streams], np.int64) % 32,
            "past_lengths": np.array([stream.done for stream in streams], np.int64),
            "last": np.array(counts, np.int64) - 1,
        }
        past = max(stream.done for stream in streams) + spare
        for name in streams[0].cache:
            feeds[f"past.{name}"] = np.stack([padded(stream.cache[name], past) for stream in streams])
        frames = max((next(iter(stream.cross.values())).shape[1] for stream in streams if stream.cross), default=0)
        for name in streams[0].cross:
            feeds[name] = np.stack([padded(stream.cross[name], frames + spare) for stream in streams])
        if frames:
            lengths = [next(iter(stream.cross.values())).shape[1] for stream in streams]
            feeds["cross_lengths"] = np.array(lengths, np.int64)
        found = dict(zip([value.name for value in self.step.get_outputs()], self.step.run(None, feeds), strict=True))
        for row, (stream, count) in enumerate(pairs):
            stream.done += count
            for name, old in stream.cache.items():
                stream.cache[name] = np.concatenate([old, found[f"new.{name}"][row, :, :count]], axis=1)
        return np.asarray(found["logits"])


def padded(heads: Array, length: int) -> Array:
    return np.pad(heads, ((0, 0), (0, length - heads.shape[1]), (0, 0)), constant_values=GARBAGE)


def close(found: Array, wanted: Array) -> None:
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4 * float(np.abs(wanted).max()))


def hidden_for(made: oracle.Made, rng: np.random.Generator) -> Array | None:
    return rng.standard_normal((int(rng.integers(1, 9)), oracle.FRAME_WIDTH)) if made.decoder.cross else None


@pytest.mark.parametrize(("family", "seed"), CASES)
def test_a_stream_in_chunks(family: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    made = oracle.FAMILIES[family](rng)
    steps = Engine(made)
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
    steps = Engine(made)
    streams = []
    for length in (3, 9, 5):
        tokens = [int(token) for token in rng.integers(0, made.decoder.vocabulary, length + 4)]
        streams.append(steps.open(tokens, hidden_for(made, rng)))
        if length > 3:
            steps.run(streams[-1:], [length - 3])
    wanted = [oracle.logits(made.decoder, made.decoder_weights, each.tokens, each.hidden) for each in streams]
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
