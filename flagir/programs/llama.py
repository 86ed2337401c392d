"""Llama and what is built like it, SmolLM2 among them, out of a GGUF file.

llama.cpp turns neighbors in a head, the models' authors an element and that half a head later: its files hold the rows
of queries and keys in another order for that, which is undone here.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from flagsplit.errors import ModelError
from flagsplit.flagir.programs.decoder import build_step
from flagsplit.flagir.programs.gguf_tokenizer import tokenizer_json
from flagsplit.flagir.programs.program import Program, ProgramFacts
from flagsplit.flagir.programs.spec import DecoderSpec, rotary_frequencies
from flagsplit.flagir.programs.weights.gguf import GgufFile
from flagsplit.flagir.programs.weights.tensors import Array

_DEFAULT_THETA: Final = 10_000.0
_LICENSES: Final = {"apache-2.0": "Apache-2.0", "mit": "MIT"}
"""SPDX identifiers of what files call their licenses."""
_WHOLE: Final = {"token_embd": "tokens", "output_norm": "norm", "output": "logits"}
_OF_LAYER: Final = {
    "attn_norm": "self.norm",
    "attn_q": "self.q",
    "attn_k": "self.k",
    "attn_v": "self.v",
    "attn_output": "self.o",
    "ffn_norm": "mlp.norm",
    "ffn_gate": "mlp.gate",
    "ffn_up": "mlp.up",
    "ffn_down": "mlp.down",
}
_ENDS: Final = ("<|im_end|>", "<|endoftext|>")
"""Tokens that end an answer, beside the one that the file names."""
_CHATML: Final = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
)


def read_llama(file: GgufFile, *, name: str, source: str) -> Program:
    """The program of a Llama-like GGUF file.

    Args:
        file: as `read_gguf` gives it.
        name: of the program.
        source: where it is from.

    Raises:
        ModelError: the file is of another architecture, or not complete.
    """
    if file.text("general.architecture") != "llama":
        raise ModelError(
            f"{file.name}: expected a model built like Llama, came {file.text('general.architecture')[:40]}"
        )
    if file.facts.get("llama.rope.scaling.type", "none") != "none" or "rope_freqs.weight" in file.weights:
        raise ModelError(f"{file.name}: it scales its rotary frequencies, which is not read; use a model that does not")
    if "llama.expert_count" in file.facts:
        raise ModelError(f"{file.name}: it is a mixture of experts, which is not read")
    heads, width = file.size("llama.attention.head_count"), file.size("llama.embedding_length")
    weights = _weights(file)
    spec = DecoderSpec(
        layers=file.size("llama.block_count"),
        heads=heads,
        kv_heads=file.size("llama.attention.head_count_kv"),
        head_size=width // heads,
        width=width,
        norm="rms",
        epsilon=file.number("llama.attention.layer_norm_rms_epsilon"),
        mlp="gated-silu",
        rotary_size=file.size("llama.rope.dimension_count"),
        vocabulary=len(weights["tokens.weight"]) if "tokens.weight" in weights else 0,
    )
    weights["rotary.frequencies"] = rotary_frequencies(
        spec.rotary_size, file.number("llama.rope.freq_base", _DEFAULT_THETA)
    )
    if beyond := [each for each in weights if each.startswith("layers.") and int(each.split(".")[1]) >= spec.layers]:
        raise ModelError(f"{file.name}: {beyond[0]!r} is of a layer that it is not said to have")
    for layer in range(spec.layers):
        for part, count in (("q", spec.heads), ("k", spec.kv_heads)):
            at = f"layers.{layer}.self.{part}.weight"
            if at in weights:
                weights[at] = _in_halves(file, weights[at], count, spec)
    return Program(_facts(file, spec, name, source), {"step": build_step(spec, weights)}, tokenizer_json(file))


def _weights(file: GgufFile) -> dict[str, Array]:
    """By the names of `spec.py`; a tensor that it does not know would be missing in the graph, so it is refused."""
    found: dict[str, Array] = {}
    for name in file.weights.names:
        match name.split("."):
            case [whole, "weight"] if whole in _WHOLE:
                found[f"{_WHOLE[whole]}.weight"] = file.weights.read(name)
            case ["blk", layer, part, ("weight" | "bias") as kind] if part in _OF_LAYER and layer.isdecimal():
                if kind == "bias" and part in ("attn_q", "attn_k"):
                    raise ModelError(f"{file.name}: it has {name!r}, which no Llama has")
                found[f"layers.{layer}.{_OF_LAYER[part]}.{kind}"] = file.weights.read(name)
            case _:
                raise ModelError(f"{file.name}: it has {name[:60]!r}, which no Llama has")
    return found


def _in_halves(file: GgufFile, rows: Array, heads: int, spec: DecoderSpec) -> Array:
    """Rows [heads * head_size, width] with the first of all pairs of a head before the second ones."""
    if rows.shape != (heads * spec.head_size, spec.width) or spec.rotary_size != spec.head_size:
        raise ModelError(f"{file.name}: expected {heads} heads of {spec.head_size} rows, all turned; came {rows.shape}")
    pairs = rows.reshape(heads, spec.head_size // 2, 2, spec.width)
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)


def _facts(file: GgufFile, spec: DecoderSpec, name: str, source: str) -> ProgramFacts:
    tokens = file.texts("tokenizer.ggml.tokens")
    if len(tokens) > spec.vocabulary:
        raise ModelError(f"{file.name}: {len(tokens)} tokens have names, the model knows {spec.vocabulary}")
    ends = {file.number(f"tokenizer.ggml.{each}_token_id", -1) for each in ("eos", "eot", "eom")}
    ends |= {tokens.index(each) for each in _ENDS if each in tokens}
    begins = (
        (int(file.number("tokenizer.ggml.bos_token_id")),) if file.facts.get("tokenizer.ggml.add_bos_token") else ()
    )
    licensed = str(file.facts.get("general.license", "unknown"))[:80]
    return ProgramFacts(
        name=name,
        kind="decoder-only",
        source=source,
        license=_LICENSES.get(licensed, licensed),
        layers=spec.layers,
        heads=spec.heads,
        kv_heads=spec.kv_heads,
        head_size=spec.head_size,
        width=spec.width,
        vocabulary=spec.vocabulary,
        max_positions=file.size("llama.context_length"),
        input="text",
        tokenizer="tokenizer.json",
        prompt=begins,
        stop_tokens=tuple(sorted(int(each) for each in ends if each >= 0)),
        template=_CHATML if "<|im_start|>" in str(file.facts.get("tokenizer.chat_template", "")) else "",
    )
