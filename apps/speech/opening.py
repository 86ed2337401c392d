"""The recognizer that was asked for: a program that runs here as a whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from flagsplit.apps.programs import program_folder
from flagsplit.apps.speech.program_recognizer import ProgramRecognizer
from flagsplit.apps.speech.recognizer import Recognizer
from flagsplit.apps.text import open_tokenizer
from flagsplit.errors import ConfigError
from flagsplit.flagir.programs import load_program
from flagsplit.flagir.store import WEIGHTS_NAME
from flagsplit.targets.generation.ort_step import OrtStepModel
from flagsplit.targets.onnx_engine import open_onnx

PHONE: Final = "phone"
ALL_PHONE: Final = "all-phone"


@dataclass(frozen=True)
class RecognizerChoice:
    """What recognizes speech, and where.

    Attributes:
        model: `zoo:NAME`, a folder of a program, or a bundle of one.
        plan: which tier does what; empty for the best one.
        cloud: addresses of decoder services.
        keys: the key folder; None for the user's own.
        threads: of the engine here; 0 lets it choose.
    """

    model: str = "zoo:moonshine"
    plan: str = ""
    cloud: tuple[str, ...] = ()
    keys: Path | None = None
    threads: int = 1


def open_recognizer(choice: RecognizerChoice, progress: Callable[[str], None] = lambda _line: None) -> Recognizer:
    """Open what was chosen; `progress` is told in lines what takes its time.

    Raises:
        ConfigError: there is no such model or plan, or it is not for speech.
        ModelError: the model is damaged.
        PeerError: it cannot be fetched, or a tier that is needed does not answer.
    """
    folder = program_folder(choice.model, progress=progress)
    program = load_program(folder)
    if program.facts.input == "text":
        raise ConfigError(f"expected a program that reads sound, {program.facts.name} reads text")
    tokenizer = open_tokenizer(program.facts.tokenizer, program.tokenizer)
    weights = folder / WEIGHTS_NAME
    encode = open_onnx(folder / "encode.onnx", weights if weights.is_file() else None, "fast", choice.threads)
    model = OrtStepModel(folder, slots=1, threads=choice.threads)
    return ProgramRecognizer(program.facts, tokenizer, encode, model, PHONE, ALL_PHONE)
