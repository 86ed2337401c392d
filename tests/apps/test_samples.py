"""Recordings of all kinds as inputs to verify a bundle on."""

from pathlib import Path

import numpy as np
import pytest
from tests.apps.speech.wav_files import chunk, fmt, riff
from tests.apps.test_program_bundle import built, made, sizes_of
from tests.flagir.models import Array

import flagsplit
from flagsplit.apps.samples import read_recording, real_sample
from flagsplit.errors import ConfigError, InputError
from flagsplit.flagir.programs.log_mel import log_mel
from flagsplit.runtime.bundle import Bundle

pytestmark = pytest.mark.slow

HZ, RATE_HZ = 440.0, 16_000


def tone(rate_hz: int, seconds: float) -> Array:
    return np.asarray(0.5 * np.sin(2 * np.pi * HZ * np.arange(round(rate_hz * seconds)) / rate_hz), np.float32)


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """Half a second in floats, 44.1 kHz, of two channels whose mean is the tone."""
    both = np.stack([2 * tone(44_100, 0.5), np.zeros(22_050, np.float32)], axis=1)
    path = tmp_path / "two channels.wav"
    path.write_bytes(riff([fmt(3, 2, 44_100, 32), chunk(b"data", both.astype("<f4").tobytes())]))
    return path


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Of a small program that reads 4000 samples of sound."""
    program = made("moonshine")
    return built(program, tmp_path_factory.mktemp("program"), options={"dims": sizes_of(program)})


def test_a_file_at_the_rate_of_a_program(bundle: Bundle, recording: Path) -> None:
    """Its channels are averaged, and it is cut to the input's length."""
    sample = real_sample(bundle, str(recording))
    assert sample.label == str(recording)
    found = sample.tensors["audio"]
    assert found.shape == (1, 4000)
    assert np.abs(found[0, 100:] - tone(RATE_HZ, 0.25)[100:]).max() < 0.01
    report = flagsplit.verify(bundle, samples=[str(recording)])
    assert report.samples == (str(recording),)
    assert not report.departs


def test_a_file_at_its_own_rate(recording: Path) -> None:
    np.testing.assert_allclose(read_recording(recording, most=1000), tone(44_100, 0.5)[:1000], atol=1e-6)
    assert len(read_recording(recording)) == 22_050


def test_a_spectrogram_where_a_program_reads_one(tmp_path: Path, recording: Path) -> None:
    program = made("whisper")
    bundle = built(program, tmp_path, options={"dims": sizes_of(program)})
    (entry,) = bundle.inputs
    found = real_sample(bundle, str(recording)).tensors[entry.name]
    _, bands, steps = found.shape
    sound = np.resize(read_recording(recording, RATE_HZ, steps * 160), steps * 160)
    np.testing.assert_array_equal(found[0], log_mel(sound, bands, steps))


def test_what_is_none(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "note.wav").write_text("hello")
    with pytest.raises(InputError, match="expected a WAV file"):
        real_sample(bundle, str(tmp_path / "note.wav"))
    with pytest.raises(ConfigError, match=r"or a WAV file, came 'gone\.wav'"):
        real_sample(bundle, "gone.wav")
