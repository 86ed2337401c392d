"""Small programs made up at random, on disk, and what a plain computation gives for their streams."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
from tests.flagir.programs import oracle

from flagsplit.flagir.programs import Program, ProgramFacts, load_program, save_program
from flagsplit.flagir.programs.decoder import build_prefill, build_step
from flagsplit.flagir.programs.encoder import build_encode
from flagsplit.flagir.programs.split import split_step
from flagsplit.flagir.programs.store import FACTS_NAME
from flagsplit.flagir.store import save_all
from flagsplit.targets.interface import Array


@dataclass(frozen=True)
class Small:
    """A program in a folder.

    Attributes:
        folder: where it is.
        facts: of it.
        made: its weights.
    """

    folder: Path
    facts: ProgramFacts
    made: oracle.Made

    def context(self, seed: int, frames: int) -> dict[str, Array] | None:
        """Hidden states made up; None without an encoder."""
        if not self.made.decoder.cross:
            return None
        numbers = np.random.default_rng(seed).standard_normal((1, frames, self.facts.width))
        return {"hidden": numbers.astype(np.float32)}

    def logits(self, tokens: Sequence[int], context: Mapping[str, Array] | None) -> Array:
        """Of the last token, computed anew for all tokens in float64."""
        hidden = None if context is None else context["hidden"][0]
        return np.asarray(oracle.logits(self.made.decoder, self.made.decoder_weights, tokens, hidden)[-1])


def save_later_part(small: Small, layers: int, folder: Path) -> ort.InferenceSession:
    """Save the parts of a program cut after some layers, `later.onnx` the second; the first one opened."""
    first, second = split_step(load_program(small.folder), layers)
    save_all({"first.onnx": first, "later.onnx": second}, folder)
    (folder / FACTS_NAME).write_bytes(small.facts.to_json())
    return ort.InferenceSession(str(folder / "first.onnx"))


def rows_of(first: ort.InferenceSession, tokens: Sequence[int]) -> Array:
    """What the first part gives for tokens, float32 [n, width]."""
    count = len(tokens)
    given: dict[str, Array] = {
        "tokens": np.array([tokens], np.int64),
        "positions": np.arange(count)[None],
        "past_lengths": np.zeros(1, np.int64),
        "last": np.array([count - 1]),
    }
    inputs = {
        value.name: given[value.name]
        if value.name in given
        else np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32)
        for value in first.get_inputs()
    }
    return np.asarray(first.run(["rows"], inputs)[0][0])


def small_program(folder: Path, family: str, seed: int) -> Small:
    """A program of one of the oracle's families, saved."""
    made = oracle.FAMILIES[family](np.random.default_rng(seed))
    spec = made.decoder
    graphs = {"step": build_step(spec, made.decoder_weights)}
    if made.encoder is not None and made.encoder_weights is not None:
        graphs["encode"] = build_encode(made.encoder, made.encoder_weights)
        graphs["prefill"] = build_prefill(spec, made.decoder_weights)
    facts = ProgramFacts(
        name=family,
        kind="encoder-decoder" if spec.cross else "decoder-only",
        source="made up",
        license="Apache-2.0",
        layers=spec.layers,
        heads=spec.heads,
        kv_heads=spec.kv_heads,
        head_size=spec.head_size,
        width=oracle.FRAME_WIDTH if spec.cross else spec.width,
        vocabulary=spec.vocabulary,
        max_positions=32,
        input="text" if not spec.cross else "audio" if family == "moonshine" else "log-mel",
        tokenizer="gguf",
        prompt=(1,),
        stop_tokens=(2,),
    )
    save_program(Program(facts, graphs, b"words"), folder)  # type: ignore[arg-type]
    return Small(folder, facts, made)
