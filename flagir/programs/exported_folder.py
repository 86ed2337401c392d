"""A folder as Hugging Face's exporters write it: a decoder in ONNX, its configuration and its tokenizer.

`exported.py` brings the graph into slot form; here the facts are read, from `config.json` and, where they are there,
`generation_config.json` and `tokenizer_config.json`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from flagsplit.errors import ModelError
from flagsplit.flagir.model_file import read_model
from flagsplit.flagir.programs.exported import slot_form
from flagsplit.flagir.programs.program import Program, ProgramFacts, check_graphs
from flagsplit.flagir.programs.store import MAX_TOKENIZER_BYTES, read_file

CONFIG_NAME = "config.json"
MODEL_NAMES = ("model.onnx", "decoder_model.onnx", "onnx/model.onnx")
_MAX_CONFIG_BYTES = 1 << 20
_CHATML = "<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"


def is_exported(folder: Path) -> bool:
    """Whether a folder looks like one; it may be damaged all the same."""
    return (folder / CONFIG_NAME).is_file() and _model_in(folder) is not None


def read_exported(folder: Path) -> Program:
    """The program of a decoder that was exported with its cache.

    Its license is not in such a folder: it is `NOASSERTION`.

    Args:
        folder: holds one of `MODEL_NAMES`, `config.json` and `tokenizer.json`.

    Raises:
        ModelError: a file is missing or damaged, or `slot_form` refuses the graph.
    """
    model = _model_in(folder)
    if model is None:
        raise ModelError(f"expected one of {', '.join(MODEL_NAMES)} in {folder}, none is there")
    config = _read_json(folder / CONFIG_NAME)
    if config.get("is_encoder_decoder"):
        raise ModelError(f"{folder}: only decoders without encoder are read from exports; this one has an encoder")
    tokenizer = read_file(folder / "tokenizer.json", MAX_TOKENIZER_BYTES)
    step = slot_form(read_model(model))
    more = _optional_json(folder / "generation_config.json")
    facts = _facts(folder.resolve().name, step, config, more, _optional_json(folder / "tokenizer_config.json"))
    program = Program(facts, {"step": step}, tokenizer)
    check_graphs(program)
    return program


def _model_in(folder: Path) -> Path | None:
    return next((folder / name for name in MODEL_NAMES if (folder / name).is_file()), None)


def _facts(
    name: str, step: ir.Model, config: Mapping[str, Any], generation: Mapping[str, Any], tokens: Mapping[str, Any]
) -> ProgramFacts:
    caches = [value for value in step.graph.inputs if (value.name or "").startswith("past.")]
    sizes = [dim if isinstance(dim, int) else 0 for dim in caches[0].shape or ()]
    first = config.get("bos_token_id")
    ends = generation.get("eos_token_id", config.get("eos_token_id"))
    return ProgramFacts(
        name=name,
        kind="decoder-only",
        source=f"exported {config.get('model_type', 'decoder')}"[:80],
        license="NOASSERTION",
        layers=len(caches) // 2,
        heads=_number(config, "num_attention_heads", "n_head"),
        kv_heads=sizes[1],
        head_size=sizes[3],
        width=_number(config, "hidden_size", "n_embd"),
        vocabulary=_number(config, "vocab_size"),
        max_positions=_number(config, "max_position_embeddings", "n_positions"),
        input="text",
        tokenizer="tokenizer.json",
        prompt=(first,) if tokens.get("add_bos_token") and isinstance(first, int) else (),
        stop_tokens=tuple(ends) if isinstance(ends, list) else () if ends is None else (ends,),
        template=_CHATML if "<|im_start|>" in str(tokens.get("chat_template", "")) else "",
    )


def _number(config: Mapping[str, Any], *names: str) -> int:
    found = next((config[name] for name in names if name in config), None)
    if not isinstance(found, int):
        raise ModelError(f"expected {CONFIG_NAME} to say {' or '.join(names)} as a number, came {found!r:.40}")
    return found


def _read_json(path: Path) -> dict[str, Any]:
    data = read_file(path, _MAX_CONFIG_BYTES)
    try:
        read = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"expected {path} to be JSON: {str(error)[:80]}") from error
    if not isinstance(read, dict):
        raise ModelError(f"expected {path} to be a JSON object, came {type(read).__name__}")
    return read


def _optional_json(path: Path) -> dict[str, Any]:
    return _read_json(path) if path.exists() else {}
