"""A made-up Whisper in CTranslate2's file is the network that its weights say."""

import json
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from tests.flagir.models import Array, session
from tests.flagir.programs import oracle
from tests.flagir.programs.weights import files

from flagsplit.errors import ModelError
from flagsplit.flagir.programs import Program, check_graphs
from flagsplit.flagir.programs.log_mel import log_mel
from flagsplit.flagir.programs.weights.ctranslate2 import read_ctranslate2
from flagsplit.flagir.programs.whisper import read_whisper

STEPS = 18
NAMES = ("<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>", "<|nocaptions|>")
CONFIG = json.dumps({"suppress_ids": [1, 2], "suppress_ids_begin": [3]}).encode()


def _tokenizer(names: tuple[str, ...] = NAMES) -> bytes:
    return json.dumps({"added_tokens": [{"id": 10 + at, "content": name} for at, name in enumerate(names)]}).encode()


def _made() -> oracle.Made:
    """The first whose heads fill a row, as Whisper's do."""
    for seed in count():
        made = oracle.whisper_like(np.random.default_rng(seed))
        if made.decoder.heads * made.decoder.head_size == made.decoder.width and made.decoder.heads > 1:
            return made
    raise AssertionError


def _joined(weights: oracle.Weights, name: str, parts: str, kind: str) -> Array:
    """Projections one after the other; that of keys has no bias, which the converter writes as zeros."""
    found = [weights.get(f"{name}.{part}.{kind}") for part in parts]
    size = len(weights[f"{name}.{parts[-1]}.weight"])
    return np.concatenate([np.zeros(size, np.float32) if each is None else each for each in found])


def _side(weights: oracle.Weights, side: str, layers: int) -> dict[str, Array]:
    out = {f"{side}/position_encodings/encodings": weights["positions.weight"]}

    def norm(name: str, source: str) -> None:
        out[f"{side}/{name}/gamma"] = weights[f"{source}.weight"]
        out[f"{side}/{name}/beta"] = weights[f"{source}.bias"]

    norm("layer_norm", "norm")
    for i in range(layers):
        at, source = f"layer_{i}", f"layers.{i}"
        norm(f"{at}/self_attention/layer_norm", f"{source}.self.norm")
        norm(f"{at}/ffn/layer_norm", f"{source}.mlp.norm")
        joined = {f"{at}/self_attention/linear_0": ("self", "qkv"), f"{at}/self_attention/linear_1": ("self", "o")}
        if side == "decoder":
            norm(f"{at}/attention/layer_norm", f"{source}.cross.norm")
            parts = enumerate(("q", "kv", "o"))
            joined |= {f"{at}/attention/linear_{index}": ("cross", part) for index, part in parts}
        for kind in ("weight", "bias"):
            for name, (part, of) in joined.items():
                out[f"{side}/{name}/{kind}"] = _joined(weights, f"{source}.{part}", of, kind)
            for index, part in enumerate(("up", "down")):
                out[f"{side}/{at}/ffn/linear_{index}/{kind}"] = weights[f"{source}.mlp.{part}.{kind}"]
    return out


def _tensors(made: oracle.Made) -> dict[str, Array]:
    assert made.encoder is not None
    assert made.encoder_weights is not None
    tensors = _side(made.encoder_weights, "encoder", made.encoder.layers)
    tensors |= _side(made.decoder_weights, "decoder", made.decoder.layers)
    for index in range(2):
        for kind in ("weight", "bias"):
            tensors[f"encoder/conv{index + 1}/{kind}"] = made.encoder_weights[f"convs.{index}.{kind}"]
    tensors["decoder/embeddings/weight"] = made.decoder_weights["tokens.weight"]
    tensors["decoder/num_heads"] = np.array(made.decoder.heads, np.int16)
    tensors["decoder/activation"] = np.array(3, np.int8)
    return tensors


def _read(tensors: dict[str, Array], path: Path, config: bytes = CONFIG, tokenizer: bytes = _tokenizer()) -> Program:
    path.write_bytes(
        files.ctranslate2(
            tensors, {"decoder/projection/weight": "decoder/embeddings/weight"}, specification="WhisperSpec"
        )
    )
    return read_whisper(read_ctranslate2(path), config, tokenizer, name="made-up", source="here")


def _run(model: ir.Model, **inputs: Array) -> dict[str, Array]:
    engine = session(ir.to_proto(model))
    return dict(zip([value.name for value in engine.get_outputs()], engine.run(None, inputs), strict=True))


def test_a_whisper_is_read(tmp_path: Path) -> None:
    made = _made()
    assert made.encoder is not None
    assert made.encoder_weights is not None
    program = _read(_tensors(made), tmp_path / "x")
    check_graphs(program)
    facts = program.facts
    assert (facts.prompt, facts.stop_tokens) == ((11, 12, 13, 14), (10,))
    assert (facts.suppressed, facts.begin_suppressed, facts.no_speech_token) == ((1, 2), (3,), 15)
    assert (facts.frames_per_s, facts.max_input_s, facts.max_positions) == (
        50,
        STEPS / 100,
        len(made.decoder_weights["positions.weight"]),
    )
    audio = (np.random.default_rng(1).standard_normal(1234) * 0.1).astype(np.float32)
    hidden = _run(program.graphs["encode"], audio=audio[None])["hidden"]
    wanted = oracle.encode(made.encoder, made.encoder_weights, log_mel(audio, oracle.BINS, STEPS))
    np.testing.assert_allclose(hidden[0], wanted, atol=1e-3 * float(np.abs(wanted).max()))
    tokens = [3, 1, 4, 1, 5]
    past = np.zeros((1, facts.kv_heads, 0, facts.head_size), np.float32)
    found = _run(
        program.graphs["step"],
        tokens=np.array([tokens]),
        positions=np.arange(5)[None],
        past_lengths=np.array([0]),
        last=np.array([4]),
        cross_lengths=np.array([hidden.shape[1]]),
        **dict.fromkeys(facts.past_names, past),
        **_run(program.graphs["prefill"], hidden=hidden),
    )
    wanted = oracle.logits(made.decoder, made.decoder_weights, tokens, hidden[0])[-1]
    np.testing.assert_allclose(found["logits"][0], wanted, atol=1e-4 * float(np.abs(wanted).max()))


def test_the_times_are_the_last_tokens(tmp_path: Path) -> None:
    made = _made()
    frames, vocabulary = STEPS // 2, len(made.decoder_weights["tokens.weight"])
    first = vocabulary - frames - 1
    ids = {"<|notimestamps|>": first - 1}
    rows = [{"id": ids.get(name, at), "content": name} for at, name in enumerate(NAMES)]
    facts = _read(_tensors(made), tmp_path / "x", tokenizer=json.dumps({"added_tokens": rows}).encode()).facts
    assert (facts.first_timestamp_token, facts.timestamp_s, facts.no_timestamps_token) == (first, 0.02, first - 1)
    assert facts.timestamp_prompt == (1, 2, 3)
    assert _read(_tensors(made), tmp_path / "x").facts.first_timestamp_token is None


def _without(name: str) -> dict[str, Any]:
    return {"tensors": {each: array for each, array in _tensors(_made()).items() if each != name}}


def _with(**tensors: Array) -> dict[str, Any]:
    return {"tensors": {**_tensors(_made()), **{name.replace("__", "/"): each for name, each in tensors.items()}}}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_without("encoder/conv1/bias"), "expected a tensor 'encoder/conv1/bias'"),
        (_without("decoder/activation"), "expected a Whisper, came WhisperSpec of activation None"),
        (_with(decoder__activation=np.array(0, np.int8)), "of activation 0"),
        (_with(decoder__num_heads=np.array(0, np.int16)), "are not those of 0 heads"),
        (_with(decoder__num_heads=np.array(7, np.int16)), "are not those of 7 heads"),
        (_with(decoder__num_heads=np.zeros(3, np.int16)), "expected 'decoder/num_heads' to be one number"),
        (_with(decoder__embeddings__weight=np.zeros(3, np.float32)), "to have 2 axes"),
        (_with(encoder__conv1__weight=np.zeros(3, np.float32)), "to have 3 axes"),
        (_with(encoder__layer_0__self_attention__linear_0__bias=np.zeros(7, np.float32)), "is not 3 layers"),
        ({"config": b"{}"}, "'suppress_ids' is wrong"),
        ({"config": b"["}, "is wrong"),
        ({"config": b'{"suppress_ids": ["a"], "suppress_ids_begin": []}'}, "'a' is no token"),
        ({"tokenizer": b"{}"}, "'added_tokens' is wrong"),
        ({"tokenizer": _tokenizer(NAMES[:3])}, r"it has no <\|transcribe\|>, <\|notimestamps\|>"),
    ],
    ids=str,
)
def test_what_is_no_whisper_is_refused(change: dict[str, Any], reason: str, tmp_path: Path) -> None:
    given: dict[str, Any] = {"tensors": _tensors(_made()), **change}
    with pytest.raises(ModelError, match=reason):
        _read(given.pop("tensors"), tmp_path / "x", **given)


def test_logits_of_their_own(tmp_path: Path) -> None:
    made = _made()
    own = replace(made, decoder_weights={**made.decoder_weights, "logits.weight": files.noise(19, 12)})
    path = tmp_path / "x"
    tensors = {**_tensors(own), "decoder/projection/weight": own.decoder_weights["logits.weight"]}
    path.write_bytes(files.ctranslate2(tensors, specification="WhisperSpec"))
    program = read_whisper(read_ctranslate2(path), CONFIG, _tokenizer(), name="x", source="x")
    assert "logits.weight" in program.graphs["step"].graph.initializers
