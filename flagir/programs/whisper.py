"""Whisper out of CTranslate2's file: samples, or the log-mel of them, to hidden states, and the decoder's two graphs.

The converter to CTranslate2 joins projections that read the same rows: queries, keys and values of self-attention, keys
and values of cross-attention. Here they are taken apart, and joined again by the builders as these see fit.
"""

from __future__ import annotations

import json
from typing import Any, Final

import numpy as np

from flagsplit.errors import ModelError
from flagsplit.flagir.programs.decoder import build_prefill, build_step
from flagsplit.flagir.programs.encoder import build_encode
from flagsplit.flagir.programs.log_mel import HOP, RATE_HZ
from flagsplit.flagir.programs.program import Program, ProgramFacts
from flagsplit.flagir.programs.spec import Conv, DecoderSpec, EncoderSpec
from flagsplit.flagir.programs.weights.ctranslate2 import Ctranslate2File
from flagsplit.flagir.programs.weights.tensors import Array, Weights

_CONVS: Final = (Conv(1, 1, "gelu"), Conv(2, 1, "gelu"))
_GELU: Final = 3
"""CTranslate2's number of the activation."""
_EPSILON: Final = 1e-5
_PROMPT: Final = ("<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>")
_END: Final = "<|endoftext|>"
_NO_SPEECH: Final = ("<|nospeech|>", "<|nocaptions|>")
"""The two names that it has had."""
_TIMESTAMP_S: Final = HOP * 2 / RATE_HZ
"""A time for each hidden state, and one for the end of the last."""


def read_whisper(file: Ctranslate2File, config: bytes, tokenizer: bytes, *, name: str, source: str) -> Program:
    """The program of a multilingual Whisper, which transcribes English without timestamps.

    Args:
        file: CTranslate2's model.bin.
        config: its config.json, for the tokens that are not to be made.
        tokenizer: its tokenizer.json.
        name: of the program.
        source: where it is from.

    Raises:
        ModelError: the files are not those of a Whisper.
    """
    weights = file.weights
    encoder, decoder = _specs(file)
    of_decoder = _decoder_weights(weights, decoder)
    frames, _ = _sizes(weights, "encoder/position_encodings/encodings", 2)
    positions, _ = _sizes(weights, "decoder/position_encodings/encodings", 2)
    facts = ProgramFacts(
        name=name,
        kind="encoder-decoder",
        source=source,
        license="MIT",
        layers=decoder.layers,
        heads=decoder.heads,
        kv_heads=decoder.kv_heads,
        head_size=decoder.head_size,
        width=decoder.width,
        vocabulary=decoder.vocabulary,
        max_positions=positions,
        input="audio",
        tokenizer="tokenizer.json",
        sample_rate_hz=RATE_HZ,
        frames_per_s=RATE_HZ / HOP / 2,
        max_input_s=frames * 2 * HOP / RATE_HZ,
        **_tokens(config, tokenizer, decoder.vocabulary - frames - 1),
    )
    return Program(
        facts,
        {
            "encode": build_encode(encoder, _encoder_weights(weights, encoder)),
            "prefill": build_prefill(decoder, of_decoder),
            "step": build_step(decoder, of_decoder),
        },
        tokenizer,
    )


def _specs(file: Ctranslate2File) -> tuple[EncoderSpec, DecoderSpec]:
    """How its networks are built."""
    weights = file.weights
    activation = _number(weights, "decoder/activation") if "decoder/activation" in weights else None
    if file.specification != "WhisperSpec" or activation != _GELU:
        raise ModelError(
            f"{weights.file}: expected a Whisper, came {file.specification[:40]} of activation {activation}"
        )
    heads = _number(weights, "decoder/num_heads")
    vocabulary, width = _sizes(weights, "decoder/embeddings/weight", 2)
    if heads <= 0 or width % heads:
        raise ModelError(f"{weights.file}: {width} elements are not those of {heads} heads")
    shared: dict[str, Any] = {
        "heads": heads,
        "kv_heads": heads,
        "head_size": width // heads,
        "width": width,
        "norm": "layer",
        "epsilon": _EPSILON,
        "mlp": "gelu",
    }
    _, bands, _ = _sizes(weights, "encoder/conv1/weight", 3)
    encoder = EncoderSpec(layers=_layers(weights, "encoder"), mel_bands=bands, convs=_CONVS, **shared)
    decoder = DecoderSpec(layers=_layers(weights, "decoder"), vocabulary=vocabulary, cross=True, **shared)
    return encoder, decoder


def _number(weights: Weights, name: str) -> int:
    array = weights.read(name)
    if array.size != 1:
        raise ModelError(f"{weights.file}: expected {name!r} to be one number, came {array.size}")
    return int(array.item())


def _sizes(weights: Weights, name: str, axes: int) -> tuple[int, ...]:
    shape = weights.shape(name)
    if len(shape) != axes:
        raise ModelError(f"{weights.file}: expected {name!r} to have {axes} axes, came {list(shape)}")
    return shape


def _layers(weights: Weights, part: str) -> int:
    count = 0
    while f"{part}/layer_{count}/ffn/linear_0/weight" in weights:
        count += 1
    return count


def _encoder_weights(weights: Weights, spec: EncoderSpec) -> dict[str, Array]:
    found = {"positions.weight": weights.read("encoder/position_encodings/encodings")}
    for index in range(len(_CONVS)):
        for part in ("weight", "bias"):
            found[f"convs.{index}.{part}"] = weights.read(f"encoder/conv{index + 1}/{part}")
    for layer in range(spec.layers):
        _layer(weights, f"encoder/layer_{layer}", f"layers.{layer}", found, cross=False)
    _norm(weights, "encoder/layer_norm", "norm", found)
    return found


def _decoder_weights(weights: Weights, spec: DecoderSpec) -> dict[str, Array]:
    found = {
        "tokens.weight": weights.read("decoder/embeddings/weight"),
        "positions.weight": weights.read("decoder/position_encodings/encodings"),
    }
    logits = weights.read("decoder/projection/weight")
    if not np.array_equal(logits, found["tokens.weight"]):
        found["logits.weight"] = logits
    for layer in range(spec.layers):
        _layer(weights, f"decoder/layer_{layer}", f"layers.{layer}", found, cross=True)
    _norm(weights, "decoder/layer_norm", "norm", found)
    return found


def _layer(weights: Weights, source: str, name: str, found: dict[str, Array], *, cross: bool) -> None:
    _norm(weights, f"{source}/self_attention/layer_norm", f"{name}.self.norm", found)
    _linear(weights, f"{source}/self_attention/linear_0", [f"{name}.self.{part}" for part in "qkv"], found)
    _linear(weights, f"{source}/self_attention/linear_1", [f"{name}.self.o"], found)
    if cross:
        _norm(weights, f"{source}/attention/layer_norm", f"{name}.cross.norm", found)
        _linear(weights, f"{source}/attention/linear_0", [f"{name}.cross.q"], found)
        _linear(weights, f"{source}/attention/linear_1", [f"{name}.cross.k", f"{name}.cross.v"], found)
        _linear(weights, f"{source}/attention/linear_2", [f"{name}.cross.o"], found)
    _norm(weights, f"{source}/ffn/layer_norm", f"{name}.mlp.norm", found)
    _linear(weights, f"{source}/ffn/linear_0", [f"{name}.mlp.up"], found)
    _linear(weights, f"{source}/ffn/linear_1", [f"{name}.mlp.down"], found)


def _norm(weights: Weights, source: str, name: str, found: dict[str, Array]) -> None:
    found[f"{name}.weight"] = weights.read(f"{source}/gamma")
    found[f"{name}.bias"] = weights.read(f"{source}/beta")


def _linear(weights: Weights, source: str, names: list[str], found: dict[str, Array]) -> None:
    """Layers that the file has as one, their outputs one after the other."""
    for part in ("weight", "bias"):
        array = weights.read(f"{source}/{part}")
        if not array.ndim or array.shape[0] % len(names):
            raise ModelError(f"{weights.file}: {source}/{part} of {list(array.shape)} is not {len(names)} layers")
        for name, each in zip(names, np.split(array, len(names)), strict=True):
            found[f"{name}.{part}"] = each


def _tokens(config: bytes, tokenizer: bytes, first_time: int) -> dict[str, Any]:
    """The facts about tokens, where those of times are the last of the vocabulary, from `first_time` on."""
    try:
        read, names = json.loads(config), {row["content"]: row["id"] for row in json.loads(tokenizer)["added_tokens"]}
        suppressed, at_begin = tuple(read["suppress_ids"]), tuple(read["suppress_ids_begin"])
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise ModelError(f"expected a Whisper's config.json and tokenizer.json; {str(error)[:80]} is wrong") from error
    if missing := [each for each in (*_PROMPT, _END) if each not in names]:
        raise ModelError(f"expected the tokenizer of a multilingual Whisper, it has no {', '.join(missing)}")
    no_timestamps = names[_PROMPT[-1]]
    return {
        "prompt": tuple(names[each] for each in _PROMPT),
        "stop_tokens": (names[_END],),
        "suppressed": suppressed,
        "begin_suppressed": at_begin,
        "no_speech_token": next((names[each] for each in _NO_SPEECH if each in names), None),
        "first_timestamp_token": first_time if no_timestamps == first_time - 1 else None,
        "timestamp_s": _TIMESTAMP_S,
        "no_timestamps_token": no_timestamps,
    }
