"""The tokenizer of a program."""

from flagsplit.apps.text.byte_level import ByteLevelTokenizer
from flagsplit.apps.text.pieces import PieceTokenizer
from flagsplit.apps.text.tokenizer import Tokenizer
from flagsplit.errors import ConfigError
from flagsplit.flagir.programs.gguf_tokenizer import tokenizer_json
from flagsplit.flagir.programs.weights.gguf import parse_gguf


def open_tokenizer(kind: str, data: bytes) -> Tokenizer:
    """Read a tokenizer.

    Args:
        kind: "moonshine", "tokenizer.json", or "gguf" for any GGUF file, of which the facts are read.
        data: the file; `program.facts.tokenizer` and `program.tokenizer` of a program.

    Raises:
        ModelError: the file is damaged, or of a kind that is not known.
        ConfigError: there is no such kind.
    """
    if kind == "moonshine":
        return PieceTokenizer(data)
    if kind == "tokenizer.json":
        return ByteLevelTokenizer(data)
    if kind == "gguf":
        return ByteLevelTokenizer(tokenizer_json(parse_gguf(data, "tokenizer")))
    raise ConfigError(f"expected a tokenizer of kind moonshine, tokenizer.json or gguf, came {kind[:40]!r}")
