"""Byte-level byte-pair encoding, as Whisper, SmolLM2 and most language models have it: Hugging Face's tokenizer.json.

Every byte of the text is written as a printable character, words are cut, and pairs of characters merged by rank. Of
the file this takes the vocabulary, the merges, the added tokens and how words are cut; the templates around a text are
facts of a program. Kinds of tokenizers that it does not know are refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, Final

from flagsplit.apps.text.merging import merge_pairs
from flagsplit.apps.text.splitting import single_digits, words
from flagsplit.apps.text.tokenizer import Tokenizer
from flagsplit.errors import ModelError

MAX_TOKENS: Final = 4_000_000
_MAX_ITEMS: Final = 6_000_000
"""Of the file's JSON; parsed, one of two bytes may take sixty."""
_CACHED_WORDS: Final = 16_384

Cut = Callable[[str], Iterator[str]]


def _alphabet() -> dict[int, str]:
    """The character of each byte: itself where it can be seen in Latin-1, else one from U+0100 on."""
    seen = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    unseen = sorted(set(range(256)) - seen)
    return {byte: chr(byte) for byte in seen} | {byte: chr(0x100 + at) for at, byte in enumerate(unseen)}


_CHARS: Final = _alphabet()
_BYTES: Final = {char: byte for byte, char in _CHARS.items()}


class ByteLevelTokenizer(Tokenizer):
    """Of a tokenizer.json.

    Args:
        data: the file.

    Raises:
        ModelError: it is damaged, or the tokenizer is of another kind.
    """

    def __init__(self, data: bytes) -> None:
        read = _object(data)
        model, added = read.get("model"), read.get("added_tokens") or []
        if not isinstance(model, dict) or model.get("type") != "BPE" or read.get("normalizer") is not None:
            raise ModelError(
                "expected a tokenizer.json of byte-pair encoding without normalizer; it is of another kind"
            )
        if model.get("end_of_word_suffix") or model.get("continuing_subword_prefix") or model.get("byte_fallback"):
            raise ModelError("expected a tokenizer.json of byte-level encoding; it marks the ends of words or pieces")
        self._cuts, self._prefix_space = _cuts(read.get("pre_tokenizer"))
        self._ids = _vocabulary(model.get("vocab"))
        self._ranks = _merges(model.get("merges"), self._ids)
        self._whole_words = model.get("ignore_merges") is True
        unknown = model.get("unk_token")
        self._unknown = self._ids.get(unknown) if isinstance(unknown, str) else None
        self._pieces = {token: _bytes(text) for text, token in self._ids.items()}
        self.special = dict(self._add(added))
        self._tokens_of = lru_cache(_CACHED_WORDS)(self._tokens_of_word)

    def _add(self, added: Any) -> Iterator[tuple[str, int]]:
        if not isinstance(added, list) or len(added) > MAX_TOKENS:
            raise ModelError("expected the added tokens of a tokenizer.json to be a list")
        for row in added:
            match row:
                case {"id": int(token), "content": str(text), **rest} if 0 <= token < MAX_TOKENS:
                    is_special = rest.get("special") is True
                    self._pieces[token] = b"" if is_special else text.encode("utf-8", "replace")
                    if is_special:
                        yield text, token
                case _:
                    raise ModelError(f"expected an added token with its id and content, came {str(row)[:60]}")

    def encode(self, text: str) -> list[int]:
        if self._prefix_space and text and not text.startswith(" "):
            text = " " + text
        parts = [text]
        for cut in self._cuts:
            parts = [word for part in parts for word in cut(part)]
        return [token for part in parts for token in self._tokens_of(part)]

    def _tokens_of_word(self, word: str) -> tuple[int, ...]:
        # Half of a surrogate pair is no character, but can be in a string that came as JSON.
        chars = [_CHARS[byte] for byte in word.encode("utf-8", "replace")]
        if self._whole_words and (whole := self._ids.get("".join(chars))) is not None:
            return (whole,)
        found = (self._ids.get(each, self._unknown) for each in merge_pairs(chars, self._rank))
        return tuple(token for token in found if token is not None)

    def _rank(self, left: str, right: str) -> int | None:
        return self._ranks.get((left, right))

    def piece(self, token: int) -> bytes:
        return self._pieces.get(token, b"")


def _object(data: bytes) -> dict[str, Any]:
    if sum(map(data.count, (b",", b"[", b"{"))) > _MAX_ITEMS:
        raise ModelError(f"expected a tokenizer.json of at most {_MAX_ITEMS} items, came more")
    try:
        read = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"expected a tokenizer.json: {str(error)[:80]}") from error
    if not isinstance(read, dict):
        raise ModelError(f"expected a tokenizer.json, which is an object; came {type(read).__name__}")
    return read


def _cuts(pre_tokenizer: Any) -> tuple[list[Cut], bool]:
    """How a text is cut, in this order, and whether a space is put before it."""
    match pre_tokenizer:
        case {"type": "Sequence", "pretokenizers": [*steps]}:
            pass
        case _:
            steps = [pre_tokenizer]
    cuts: list[Cut] = []
    for at, step in enumerate(steps):
        match step:
            case {"type": "Digits", "individual_digits": True}:
                cuts.append(single_digits)
            case {"type": "ByteLevel"} if at == len(steps) - 1:
                if step.get("use_regex", True) is True:
                    cuts.append(words)
                return cuts, step.get("add_prefix_space", True) is True and len(steps) == 1
            case _:
                break
    raise ModelError(
        f"expected words cut as GPT-2 does it, with or without single digits; came {str(pre_tokenizer)[:80]}"
    )


def _vocabulary(vocabulary: Any) -> dict[str, int]:
    if not isinstance(vocabulary, dict) or not 0 < len(vocabulary) <= MAX_TOKENS:
        raise ModelError(f"expected a tokenizer.json with a vocabulary of at most {MAX_TOKENS} tokens")
    for text, token in vocabulary.items():
        if type(token) is not int or not 0 <= token < MAX_TOKENS:
            raise ModelError(
                f"expected the token {text[:40]!r} to be a number below {MAX_TOKENS}, came {str(token)[:40]}"
            )
    return vocabulary


def _merges(merges: Any, ids: dict[str, int]) -> dict[tuple[str, str], int]:
    if not isinstance(merges, list) or len(merges) > MAX_TOKENS:
        raise ModelError(f"expected a tokenizer.json with at most {MAX_TOKENS} merges")
    ranks: dict[tuple[str, str], int] = {}
    for rank, merge in enumerate(merges):
        match merge.split(" ") if isinstance(merge, str) else merge:
            case [str(left), str(right)] if left + right in ids:
                ranks[left, right] = rank
            case _:
                raise ModelError(f"expected a merge of two tokens into one of the vocabulary, came {str(merge)[:60]!r}")
    return ranks


def _bytes(text: str) -> bytes:
    """What a token of the vocabulary stands for."""
    found = [_BYTES.get(char) for char in text]
    # Some vocabularies hold their special tokens too, spelled as they are.
    return text.encode("utf-8", "replace") if None in found else bytes(byte for byte in found if byte is not None)
