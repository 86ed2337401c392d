"""A made-up Llama in a GGUF file is the network that its weights say."""

import json
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
from flagsplit.flagir.programs.llama import read_llama
from flagsplit.flagir.programs.weights.gguf import read_gguf

_TENSORS = {
    "self.q": "attn_q",
    "self.k": "attn_k",
    "self.v": "attn_v",
    "self.o": "attn_output",
    "self.norm": "attn_norm",
}
_TENSORS |= {"mlp.norm": "ffn_norm", "mlp.up": "ffn_up", "mlp.gate": "ffn_gate", "mlp.down": "ffn_down"}
TEXTS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "a", "b", "ab")


def _made(*, logits: bool) -> oracle.Made:
    """The first whose heads fill a row, with more of them than of keys."""
    for seed in count():
        made = oracle.llama_like(np.random.default_rng(seed))
        spec = made.decoder
        fits = spec.heads * spec.head_size == spec.width and spec.heads > spec.kv_heads > 1
        if fits and ("logits.weight" in made.decoder_weights) == logits:
            return made
    raise AssertionError


def _neighbors(rows: Array, heads: int) -> Array:
    """Rows as llama.cpp's converter orders them."""
    return np.ascontiguousarray(rows.reshape(heads, 2, -1, rows.shape[1]).swapaxes(1, 2)).reshape(rows.shape)


def _tensors(made: oracle.Made) -> dict[str, Array]:
    weights, spec = made.decoder_weights, made.decoder
    out = {"token_embd.weight": weights["tokens.weight"], "output_norm.weight": weights["norm.weight"]}
    if "logits.weight" in weights:
        out["output.weight"] = weights["logits.weight"]
    for i in range(spec.layers):
        for part, name in _TENSORS.items():
            array = weights[f"layers.{i}.{part}.weight"]
            if part in ("self.q", "self.k"):
                array = _neighbors(array, spec.heads if part == "self.q" else spec.kv_heads)
            out[f"blk.{i}.{name}.weight"] = array
    return out


def _facts(made: oracle.Made) -> dict[str, Any]:
    spec = made.decoder
    return {
        "general.architecture": "llama",
        "general.license": "apache-2.0",
        "llama.block_count": spec.layers,
        "llama.context_length": 64,
        "llama.embedding_length": spec.width,
        "llama.attention.head_count": spec.heads,
        "llama.attention.head_count_kv": spec.kv_heads,
        "llama.attention.layer_norm_rms_epsilon": spec.epsilon,
        "llama.rope.freq_base": 100.0,
        "llama.rope.dimension_count": spec.head_size,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": TEXTS,
        "tokenizer.ggml.token_type": [3, 3, 3, 1, 1, 1],
        "tokenizer.ggml.merges": ("a b",),
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": "{{ '<|im_start|>' }}",
    }


def _read(facts: dict[str, Any], tensors: dict[str, Array], path: Path) -> Program:
    path.write_bytes(files.gguf({name: value for name, value in facts.items() if value is not None}, tensors))
    return read_llama(read_gguf(path), name="made-up", source="here")


@pytest.mark.parametrize("logits", [False, True])
def test_a_llama_is_read(logits: bool, tmp_path: Path) -> None:
    made = _made(logits=logits)
    program = _read(_facts(made), _tensors(made), tmp_path / "x")
    check_graphs(program)
    facts = program.facts
    assert (facts.prompt, facts.stop_tokens, facts.license) == ((), (0, 2), "Apache-2.0")
    assert facts.template.endswith("<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n")
    tokens = [3, 1, 4, 1, 5, 9, 2, 6]
    engine = session(ir.to_proto(program.graphs["step"]))
    past = np.zeros((1, facts.kv_heads, 0, facts.head_size), np.float32)
    (found,) = engine.run(
        ["logits"],
        {
            "tokens": np.array([tokens]),
            "positions": np.arange(8)[None],
            "past_lengths": np.array([0]),
            "last": np.array([7]),
            **dict.fromkeys(facts.past_names, past),
        },
    )
    wanted = oracle.logits(made.decoder, made.decoder_weights, tokens, None)[-1]
    np.testing.assert_allclose(found[0], wanted, atol=1e-4 * float(np.abs(wanted).max()))


def test_its_tokenizer(tmp_path: Path) -> None:
    made = _made(logits=False)
    program = _read(_facts(made), _tensors(made), tmp_path / "x")
    read = json.loads(program.tokenizer)
    assert read["model"]["vocab"] == {text: token for token, text in enumerate(TEXTS)}
    assert [each["content"] for each in read["added_tokens"] if each["special"]] == list(TEXTS[:3])
    assert [each["type"] for each in read["pre_tokenizer"]["pretokenizers"]] == ["Digits", "ByteLevel"]


def test_a_model_that_begins_with_a_token(tmp_path: Path) -> None:
    made = _made(logits=False)
    begin = {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.bos_token_id": 1, "tokenizer.chat_template": None}
    facts = _read(_facts(made) | begin, _tensors(made), tmp_path / "x").facts
    assert (facts.prompt, facts.template) == ((1,), "")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"general.architecture": "qwen2"}, "built like Llama, came qwen2"),
        ({"llama.rope.scaling.type": "yarn"}, "scales its rotary frequencies"),
        ({"llama.expert_count": 8}, "a mixture of experts"),
        ({"llama.block_count": None}, "expected a number for 'llama.block_count', came None"),
        ({"llama.block_count": 9}, "is missing"),
        ({"llama.attention.head_count": 3}, "3 heads cannot share 2"),
        ({"llama.attention.head_count": 8}, "an even part of 2 elements"),
        ({"llama.rope.dimension_count": 2}, "all turned; came"),
        ({"tokenizer.ggml.pre": "qwen2"}, "cuts words as gpt-2, smollm; came gpt2, qwen2"),
        ({"tokenizer.ggml.token_type": [1, 1]}, "expected 6 different tokens, each with its type"),
        ({"tokenizer.ggml.tokens": tuple(map(str, range(99)))}, "99 tokens have names, the model knows 23"),
        ({"tokenizer.ggml.eos_token_id": 99}, "99 is no token"),
    ],
    ids=str,
)
def test_facts_that_do_not_fit_are_refused(change: dict[str, Any], reason: str, tmp_path: Path) -> None:
    made = _made(logits=False)
    with pytest.raises(ModelError, match=reason):
        _read(_facts(made) | change, _tensors(made), tmp_path / "x")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("rope_freqs.weight", "scales its rotary frequencies"),
        ("blk.0.attn_q.bias", "which no Llama has"),
        ("blk.0.ffn_gate_exps.weight", "which no Llama has"),
        ("blk.x.attn_q.weight", "which no Llama has"),
        ("blk.9.attn_q.weight", "is of a layer that it is not said to have"),
    ],
)
def test_tensors_that_do_not_belong_are_refused(name: str, reason: str, tmp_path: Path) -> None:
    made = _made(logits=False)
    with pytest.raises(ModelError, match=reason):
        _read(_facts(made), _tensors(made) | {name: files.noise(4)}, tmp_path / "x")
