"""The detector on real speech, and the gate behind it."""

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.apps.speech.conftest import Pulled

from flagsplit.apps.speech.vad import BLOCK, RATE_HZ, Gate, VoiceDetector, open_detector
from flagsplit.apps.speech.wav import WavReader


def probabilities(pulled: Pulled, samples: NDArray[np.float32]) -> list[float]:
    pulled("silero-vad")
    engine = open_detector()
    try:
        detector = VoiceDetector(engine)
        return [detector.push(samples[at : at + BLOCK]) for at in range(0, len(samples) - BLOCK, BLOCK)]
    finally:
        engine.close()


@pytest.mark.slow
def test_speech_and_pauses_of_a_recording(pulled: Pulled) -> None:
    """beckett.wav has six phrases of about a second, with pauses of about one between them."""
    with WavReader(pulled("beckett.wav")) as reader:
        samples = np.concatenate(list(reader.blocks(RATE_HZ)))
    gate = Gate()
    speech = [gate.push(each) for each in probabilities(pulled, samples)]
    begins = [at * BLOCK / RATE_HZ for at in range(1, len(speech)) if speech[at] and not speech[at - 1]]
    assert begins == pytest.approx([0.4, 1.9, 3.5, 4.9, 6.6, 8.2], abs=0.15)
    assert not any(speech[-10:])


@pytest.mark.slow
def test_noise_and_tones_are_no_speech(pulled: Pulled) -> None:
    rng = np.random.default_rng(0)
    times = np.arange(2 * RATE_HZ) / RATE_HZ
    for sound in (np.zeros(len(times)), 0.1 * rng.standard_normal(len(times)), 0.3 * np.sin(2 * np.pi * 440 * times)):
        assert max(probabilities(pulled, sound.astype(np.float32))) < 0.5


def test_the_gate_does_not_flutter() -> None:
    gate = Gate(0.5, 0.35)
    found = [gate.push(each) for each in (0.2, 0.49, 0.5, 0.4, 0.36, 0.34, 0.4, 0.49, 0.9)]
    assert found == [False, False, True, True, True, False, False, False, True]
