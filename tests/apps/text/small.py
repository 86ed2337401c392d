"""A tokenizer.json with few merges."""

import json
from typing import Any

from flagsplit.apps.text.byte_level import _CHARS

MERGES = ("l l", "e ll", "h ell", "hell o", "\u0120 w", "o r", "\u00c3 \u00a9")
SPECIAL = ("<|end|>", "<|im_start|>", "<|im_end|>")


def tokenizer_json(**changes: Any) -> bytes:
    """Changes are to the model, or to the file where it has a field of that name."""
    vocabulary = {char: at for at, char in enumerate(sorted(_CHARS.values()))}
    for merge in MERGES:
        vocabulary[merge.replace(" ", "")] = len(vocabulary)
    added = [{"id": len(vocabulary) + at, "content": text, "special": True} for at, text in enumerate(SPECIAL)]
    read: dict[str, Any] = {
        "normalizer": None,
        "added_tokens": added,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": list(MERGES)},
    }
    for name, value in changes.items():
        (read if name in read else read["model"])[name] = value
    return json.dumps(read).encode()
