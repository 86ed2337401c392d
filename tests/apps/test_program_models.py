"""Real models as programs: what they hear and answer, token by token."""

import wave
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from tests.flagir.models import Array

from flagsplit.apps import zoo
from flagsplit.apps.programs import open_program, program_folder
from flagsplit.apps.text import Message, chat_tokens, open_tokenizer
from flagsplit.errors import PeerError
from flagsplit.flagir.programs import ProgramFacts

pytestmark = pytest.mark.slow

# As `transformers` 5.23 has them with the same weights: the greatest logit of each step, of which the differences to
# ours were at most 7e-5 of 71 for Whisper and 7e-5 of 38 for SmolLM2.
HEARD = "Never tried, ever failed. No matter. Try again. Fail again. Fail better."
DICKENS = "It was the best of times, it was the worst of times."


class Model:
    """A program run by the plainest loop, from its folder."""

    def __init__(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("FLAGSPLIT_CACHE", raising=False)
        try:
            self.folder = program_folder(f"zoo:{name}")
        except PeerError as error:
            pytest.skip(str(error))
        program = open_program(self.folder)
        self.facts: ProgramFacts = program.facts
        self.tokenizer = open_tokenizer(program.facts.tokenizer, program.tokenizer)

    @cache  # noqa: B019 a model lives as long as its test
    def engine(self, graph: str) -> ort.InferenceSession:
        return ort.InferenceSession(self.folder / f"{graph}.onnx", providers=["CPUExecutionProvider"])

    def run(self, graph: str, **inputs: Array) -> dict[str, Array]:
        engine = self.engine(graph)
        return dict(zip([each.name for each in engine.get_outputs()], engine.run(None, inputs), strict=True))

    def answer(self, prompt: Sequence[int], most: int, **cross: Array) -> list[int]:
        empty = np.zeros((1, self.facts.kv_heads, 0, self.facts.head_size), np.float32)
        past = dict.fromkeys(self.facts.past_names, empty)
        tokens: list[int] = []
        chunk, done = list(prompt), 0
        while len(tokens) < most:
            count = len(chunk)
            inputs = {"tokens": np.array([chunk]), "positions": np.arange(done, done + count)[None]}
            inputs |= {"past_lengths": np.array([done]), "last": np.array([count - 1])}
            made = self.run("step", **inputs, **past, **cross)
            logits = made["logits"][0]
            logits[[*self.facts.suppressed, *(() if tokens else self.facts.begin_suppressed)]] = -np.inf
            chunk, done = [int(logits.argmax())], done + count
            if chunk[0] in self.facts.stop_tokens:
                break
            tokens += chunk
            pairs = zip(self.facts.past_names, self.facts.new_names, strict=True)
            past = {old: np.concatenate([past[old], made[new]], axis=2) for old, new in pairs}
        return tokens


def _sound(path: Path) -> Array:
    """Mono at 16 kHz; of 48 kHz every third sample, after a mean over three."""
    with wave.open(str(path)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, file.getnchannels()).mean(1)
        step = file.getframerate() // 16_000
    mean: Array = samples[: len(samples) // step * step].reshape(-1, step).mean(1) / 32768
    return mean.astype(np.float32)


def test_what_whisper_hears(monkeypatch: pytest.MonkeyPatch) -> None:
    whisper = Model("whisper-base", monkeypatch)
    for name, seconds, text in (("beckett.wav", 10, HEARD), ("two-cities.wav", 5, DICKENS)):
        audio = _sound(zoo.pull(name))[: seconds * 16_000]
        hidden = whisper.run("encode", audio=audio[None])["hidden"]
        assert hidden.shape == (1, 1500, 512)
        cross = whisper.run("prefill", hidden=hidden)
        tokens = whisper.answer(whisper.facts.prompt, 24, cross_lengths=np.array([1500]), **cross)
        assert whisper.tokenizer.decode(tokens).strip().startswith(text)


def test_what_smollm2_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model("smollm2", monkeypatch)
    encode, decode = model.tokenizer.encode, model.tokenizer.decode
    assert decode(model.answer(encode("The capital of France is"), 2)) == " Paris."
    asked = [Message("user", "What is the capital of France?")]
    assert decode(model.answer(chat_tokens(model.tokenizer, asked), 12)) == "The capital of France is Paris."
