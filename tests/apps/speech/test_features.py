"""What a model is given of a sound: of the lengths that it takes, nothing of the sound left out."""

from dataclasses import replace

import numpy as np
import pytest

from flagsplit.apps.speech.features import SoundInput, sound_input
from flagsplit.errors import ConfigError
from flagsplit.flagir.programs import ProgramFacts
from flagsplit.flagir.programs.log_mel import log_mel

FACTS = ProgramFacts(
    name="made",
    kind="encoder-decoder",
    source="",
    license="MIT",
    layers=1,
    heads=1,
    kv_heads=1,
    head_size=2,
    width=2,
    vocabulary=8,
    max_positions=9,
    input="audio",
    tokenizer="moonshine",
    prompt=(1,),
    stop_tokens=(2,),
)
SOUND = np.linspace(-1, 1, 700, dtype=np.float32)


def test_any_length() -> None:
    found = sound_input(FACTS, "audio", [1, "samples"])
    assert found.max_samples == 0
    np.testing.assert_array_equal(found.tensors(SOUND)["audio"], SOUND[None])
    limited = sound_input(FACTS, "audio", [1, "samples"], limits=(800, 16_000))
    assert limited.max_samples == 16_000
    assert limited.tensors(SOUND)["audio"].shape == (1, 800)
    assert limited.tensors(np.repeat(SOUND, 2))["audio"].shape == (1, 1_400)


def test_certain_lengths() -> None:
    """Silence follows up to the next one."""
    found = sound_input(FACTS, "audio", [1, "samples"], sizes=[1_000, 600, 800])
    assert found.max_samples == 1_000
    tensor = found.tensors(SOUND)["audio"]
    assert tensor.shape == (1, 800)
    np.testing.assert_array_equal(tensor[0, :700], SOUND)
    assert not tensor[0, 700:].any()
    assert sound_input(FACTS, "audio", [1, 900]).tensors(SOUND)["audio"].shape == (1, 900)


def test_a_spectrogram() -> None:
    found = sound_input(replace(FACTS, input="log-mel"), "log_mel", [1, 80, 6])
    assert found == SoundInput("log_mel", (6,), bands=80)
    assert found.max_samples == 960
    np.testing.assert_array_equal(found.tensors(SOUND)["log_mel"], log_mel(SOUND, 80, 6)[None])
    assert SoundInput("log_mel", bands=80).tensors(SOUND)["log_mel"].shape == (1, 80, 5)


def test_a_program_that_reads_text() -> None:
    text = replace(FACTS, kind="decoder-only", input="text", prompt=())
    with pytest.raises(ConfigError, match="made reads text"):
        sound_input(text, "prompt", [1, "tokens"])
