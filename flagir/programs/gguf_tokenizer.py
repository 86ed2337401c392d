"""A GGUF file's tokenizer as a tokenizer.json, the one form that programs keep byte-pair encodings in."""

from __future__ import annotations

import json
from typing import Any, Final

from flagsplit.errors import ModelError
from flagsplit.flagir.programs.weights.gguf import GgufFile

_BYTE_LEVEL: Final = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_PRE_TOKENIZERS: Final[dict[str, Any]] = {
    "gpt-2": _BYTE_LEVEL,
    "smollm": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, _BYTE_LEVEL]},
}
"""How words are cut, by llama.cpp's names for it."""
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4


def tokenizer_json(file: GgufFile) -> bytes:
    """The tokenizer of a GGUF file.

    Raises:
        ModelError: it has none, or one of another kind.
    """
    model, cut = file.text("tokenizer.ggml.model"), file.text("tokenizer.ggml.pre")
    if model != "gpt2" or cut not in _PRE_TOKENIZERS:
        known = ", ".join(_PRE_TOKENIZERS)
        raise ModelError(
            f"{file.name}: expected a tokenizer of model gpt2 that cuts words as {known}; came {model[:40]}, {cut[:40]}"
        )
    tokens, merges = file.texts("tokenizer.ggml.tokens"), file.texts("tokenizer.ggml.merges")
    kinds = file.facts.get("tokenizer.ggml.token_type")
    if not isinstance(kinds, tuple) or len(kinds) != len(tokens) or len(set(tokens)) != len(tokens):
        raise ModelError(f"{file.name}: expected {len(tokens)} different tokens, each with its type")
    added = [
        {
            "id": token,
            "content": text,
            **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False),
            "special": kind in (_UNKNOWN, _CONTROL),
        }
        for token, (text, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED)
    ]
    written = {
        "version": "1.0",
        **dict.fromkeys(("truncation", "padding", "normalizer", "post_processor")),
        "added_tokens": added,
        "pre_tokenizer": _PRE_TOKENIZERS[cut],
        "decoder": _BYTE_LEVEL,
        "model": {
            "type": "BPE",
            "vocab": {text: token for token, text in enumerate(tokens)},
            "merges": merges,
        },
    }
    return json.dumps(written, ensure_ascii=False).encode()
