"""A real speech recognizer out of ONNX Runtime files: the words stay the same."""

import wave
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from tests.flagir.models import Array

from flagsplit.apps import zoo
from flagsplit.errors import PeerError
from flagsplit.flagir import (
    Skeleton,
    block_graph,
    canonicalize,
    cut_into_steps,
    extract,
    nominal_dims,
    read_model,
    save,
    violations,
)

TRANSCRIPT = "Ever tried, ever failed, no matter, try again, fail again, fail better."
RATE_HZ = 16_000
FIRST, LAST = 1, 2
TOKENS_PER_S = 6.5
LAYERS, HEADS, SIZE = 6, 8, 36

pytestmark = pytest.mark.slow


def pulled(name: str) -> Path:
    try:
        return zoo.pull(name)
    except PeerError as error:
        pytest.skip(f"offline: {error}")


@pytest.fixture(scope="module")
def encoder() -> ir.Model:
    return imported("moonshine-encoder")


@pytest.fixture(scope="module")
def decoder() -> ir.Model:
    return imported("moonshine-decoder")


def imported(name: str) -> ir.Model:
    model = read_model(pulled(name))
    start = perf_counter()
    canonicalize(model)
    assert perf_counter() - start < 15  # 2 s on an idle core
    assert violations(model) == ()
    assert {node.domain for node in ir.traversal.RecursiveGraphIterator(model.graph)} == {""}
    return model


@pytest.fixture(scope="module")
def audio() -> Array:
    with wave.open(str(pulled("beckett.wav")), "rb") as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (RATE_HZ, 1, 2)
        return np.frombuffer(file.readframes(file.getnframes()), "<i2")[None].astype(np.float32) / 32768


def session(model: ir.Model, folder: Path) -> ort.InferenceSession:
    folder.mkdir()
    save(model, folder)
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return ort.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])


def encoder_inputs(audio: Array) -> dict[str, Array]:
    return {"input_values": audio, "attention_mask": np.ones(audio.shape, np.int64)}


def words_of(data: bytes) -> Iterator[bytes]:
    """Each token after its length: one byte, or two where the first is 128 or more."""
    at = 0
    while at < len(data):
        size, at = data[at], at + 1
        if size >= 128:
            size, at = data[at] * 128 + size - 128, at + 1
        yield data[at : at + size]
        at += size


def transcribe(decoder: ort.InferenceSession, hidden: Array, samples: int) -> list[int]:
    empty = np.zeros((1, HEADS, 0, SIZE), np.float32)
    names = [value.name for value in decoder.get_inputs() if value.name.startswith("past_key_values.")]
    assert len(names) == 4 * LAYERS
    caches = dict.fromkeys(names, empty)
    tokens = [FIRST]
    for step in range(int(samples / RATE_HZ * TOKENS_PER_S)):
        outputs = decoder.run(
            None,
            {
                "input_ids": np.array([tokens[-1:]]),
                "encoder_hidden_states": hidden,
                "encoder_attention_mask": np.ones((1, samples), np.int64),
                "use_cache_branch": np.array([step > 0]),
                **caches,
            },
        )
        found = dict(zip([value.name for value in decoder.get_outputs()], outputs, strict=True))
        tokens.append(int(found["logits"][0, -1].argmax()))
        if tokens[-1] == LAST:
            break
        for name in names:
            if step == 0 or ".decoder." in name:
                caches[name] = found[name.replace("past_key_values", "present")]
    return tokens


def test_the_transcript(encoder: ir.Model, decoder: ir.Model, audio: Array, tmp_path: Path) -> None:
    (hidden,) = session(encoder, tmp_path / "encoder").run(None, encoder_inputs(audio))
    tokens = transcribe(session(decoder, tmp_path / "decoder"), hidden, audio.shape[1])
    words = list(words_of(pulled("moonshine-tokenizer").read_bytes()))
    text = b"".join(words[token] for token in tokens if token not in (FIRST, LAST)).decode()
    assert text.replace("\N{LOWER ONE EIGHTH BLOCK}", " ").strip() == TRANSCRIPT


@pytest.mark.parametrize("share", [0.2, 0.6])
def test_a_cut_encoder_answers_as_the_whole(encoder: ir.Model, audio: Array, tmp_path: Path, share: float) -> None:
    skeleton = Skeleton(encoder)
    lengths = {name: audio.shape[1] for name in skeleton.symbols if "samples" in name or "len" in name}
    graph = block_graph(encoder, nominal_dims(skeleton, lengths), skeleton)
    first = graph.blocks[: int(len(graph.blocks) * share)]
    near = {name for block in first for name in block.nodes}
    placement = {node.name or "": int(node.name not in near) for node in encoder.graph}
    steps = cut_into_steps(encoder, placement, 2)
    assert [step.tier for step in steps] == [0, 1]
    values = encoder_inputs(audio)
    for step in steps:
        part = session(extract(encoder, step.segment), tmp_path / step.segment.id)
        inputs = {name: values[name] for name in step.segment.inputs}
        values |= zip(step.segment.outputs, part.run(list(step.segment.outputs), inputs), strict=True)
    (wanted,) = session(encoder, tmp_path / "whole").run(None, encoder_inputs(audio))
    (name,) = [value.name or "" for value in encoder.graph.outputs]
    np.testing.assert_allclose(values[name], wanted, rtol=0, atol=1e-5 * float(np.abs(wanted).max()))
