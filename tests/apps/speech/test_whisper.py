"""Whisper itself: phrases with times under every plan, silence, and streams that move."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.apps.speech.wav_files import pcm16

import flagsplit
from flagsplit.apps import zoo
from flagsplit.apps.decoder_service.program_source import folder_source
from flagsplit.apps.decoder_service.serve import DecoderService, DecoderSettings
from flagsplit.apps.programs import program_folder
from flagsplit.apps.speech.known import TWO_CITIES
from flagsplit.apps.speech.opening import RecognizerChoice, open_recognizer
from flagsplit.apps.speech.program_recognizer import ProgramRecognizer
from flagsplit.apps.speech.recognizer import Heard
from flagsplit.apps.speech.stream_recognizer import StreamRecognizer
from flagsplit.apps.speech.vad import RATE_HZ
from flagsplit.apps.speech.wav import WavReader
from flagsplit.apps.speech.wer import word_errors
from flagsplit.errors import PeerError
from flagsplit.runtime.generation.constraints import TIMESTAMPS
from flagsplit.runtime.generation.options import GenerationOptions
from flagsplit.runtime.generation.sequential import generate
from flagsplit.transport.security import KeyStore
from flagsplit.transport.zeromq import ZmqChannel

pytestmark = pytest.mark.slow

Samples = NDArray[np.float32]


@pytest.fixture(scope="module")
def folder() -> Path:
    """The program's, out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("FLAGSPLIT_CACHE", raising=False)
        try:
            return program_folder("zoo:whisper-base")
        except PeerError as error:
            pytest.skip(str(error))


@pytest.fixture(scope="module")
def recognizer(folder: Path) -> Iterator[ProgramRecognizer]:
    found = open_recognizer(RecognizerChoice(str(folder), times=True))
    assert isinstance(found, ProgramRecognizer)
    yield found
    found.close()


@pytest.fixture(autouse=True)
def zoo_of_the_user(own_folders: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLAGSPLIT_CACHE")


def recording(name: str) -> Samples:
    with WavReader(zoo.pull(name)) as reader:
        return np.concatenate(list(reader.blocks(RATE_HZ)))


def told(heard: list[Heard]) -> list[tuple[str, float, float]]:
    found, text = list[tuple[str, float, float]](), ""
    for each in heard:
        text += each.text
        if each.phrase is not None:
            found.append((text, each.phrase.start_s, each.phrase.end_s))
            text = ""
    return found


def test_silence_noise_and_a_tone_say_nothing(recognizer: ProgramRecognizer) -> None:
    """Noise and tones by the published rule; whoever asks for silence itself first asks a voice detector."""
    times = np.arange(10 * RATE_HZ) / RATE_HZ
    noise = np.random.default_rng(0).standard_normal(len(times))
    for sound in (0.1 * noise, 0.001 * noise, 0.3 * np.sin(times * 2 * np.pi * 440)):
        assert told(list(recognizer.recognize(sound.astype(np.float32)))) == []


def test_phrases_of_a_paragraph(folder: Path, tmp_path: Path) -> None:
    """Its first seconds have all sentences that say what it was."""
    (tmp_path / "x.wav").write_bytes(pcm16(recording("two-cities.wav")[: 17 * RATE_HZ]))
    data = flagsplit.transcribe(tmp_path / "x.wav", model=str(folder), timestamps=True).to_data()
    assert word_errors(TWO_CITIES.partition(", it was the spring")[0], data["text"]).rate == 0
    assert data["times"] == "segments by the model, words estimated"
    assert len(data["segments"]) >= 4
    times = [time for each in data["segments"] for time in (each["start_s"], each["end_s"])]
    assert times == sorted(times)
    assert all(each["avg_logprob"] > -1 and each["no_speech_prob"] < 0.6 for each in data["segments"])


def test_a_stream_that_moves_goes_on_with_the_same_tokens(recognizer: ProgramRecognizer) -> None:
    """Taken up after any of its tokens, under the rules of timestamps, drawn too."""
    encoded = recognizer.encode(recording("beckett.wav"))
    for temperature in (0.0, 0.6):
        options = GenerationOptions(temperature=temperature, constraint=TIMESTAMPS, logprobs=True, max_tokens=224)
        prompt = recognizer.facts.timestamp_prompt
        whole = [token for token, _ in recognizer.run(encoded, 0.0, prompt, options)]
        assert whole[0] >= (recognizer.facts.first_timestamp_token or 0)
        for count in (1, len(whole) - 2):
            model, so_far = recognizer._steps, (*prompt, *whole[:count])
            rest = list(generate(model, encoded, so_far, options, generated=count))
            assert rest == whole[count:]


def test_a_service_that_goes_leaves_the_phone(folder: Path, recognizer: ProgramRecognizer) -> None:
    """The window is accepted as a whole, with the times that it has where nothing goes."""
    samples = recording("beckett.wav")
    channel = ZmqChannel(security=KeyStore(None).security())
    service = DecoderService(folder_source(folder), channel, "tcp://127.0.0.1:0", DecoderSettings(slots=1, threads=1))
    choice = RecognizerChoice(str(folder), "split", (str(service.streams.address),), times=True)
    other = open_recognizer(choice)
    assert isinstance(other, StreamRecognizer)
    try:
        begun = other.run(
            other.encode(samples), 0.0, other.facts.timestamp_prompt, GenerationOptions(constraint=TIMESTAMPS)
        )
        places = [next(begun)[1]]
        service.stop()
        places += [where for _, where in begun]
        assert (places[0], places[-1]) == ("cloud", "phone")
        assert told(list(other.recognize(samples))) == told(list(recognizer.recognize(samples)))
    finally:
        other.close()
        service.stop()
