"""The spectrogram against its definition written out, and its nodes against the NumPy of it."""

import numpy as np
import onnx_ir as ir
import pytest
from tests.flagir.models import Array, session

from flagsplit.errors import InputError
from flagsplit.flagir import violations
from flagsplit.flagir.programs.log_mel import _LOUD, WINDOW, _hann, log_mel, mel_bands, write_log_mel
from flagsplit.flagir.programs.writer import REAL, GraphWriter

BANDS, STEPS = 80, 40
_RNG = np.random.default_rng(4)
_TIME = np.arange(STEPS * 160) / 16_000
SOUNDS: dict[str, Array] = {
    "nothing": np.zeros(0),
    "silence": np.zeros(2000),
    "tone": np.sin(2 * np.pi * 440 * _TIME),
    "noise": _RNG.standard_normal(3333) * 0.1,
    "whole": _RNG.standard_normal(STEPS * 160) * np.exp(-_TIME * 5),
}


def _written_out(samples: Array) -> Array:
    """Frame by frame, frequency by frequency: a frame is centered on its sample, and mirrored at the ends."""
    padded = np.zeros(STEPS * 160)
    padded[: len(samples)] = samples
    padded = np.concatenate([padded[200:0:-1], padded, padded[-2:-202:-1]])
    window = np.sin(np.pi * np.arange(400) / 400) ** 2
    power = np.zeros((201, STEPS))
    for step in range(STEPS):
        frame = padded[160 * step : 160 * step + 400] * window
        for frequency in range(201):
            power[frequency, step] = abs((frame * np.exp(-2j * np.pi * frequency * np.arange(400) / 400)).sum()) ** 2
    decades = np.log10(np.maximum(mel_bands(BANDS) @ power, 1e-10))
    return np.asarray((np.maximum(decades, decades.max() - 8) + 4) / 4)


@pytest.mark.slow
@pytest.mark.parametrize("name", SOUNDS)
def test_the_spectrogram_is_what_its_definition_says(name: str) -> None:
    came = log_mel(SOUNDS[name].astype(np.float32), BANDS, STEPS)
    assert came.dtype == np.float32
    assert came.shape == (BANDS, STEPS)
    np.testing.assert_allclose(came, _written_out(SOUNDS[name]), atol=2e-5)


def test_the_nodes_say_the_same() -> None:
    g = GraphWriter("front", {})
    model = g.model([write_log_mel(g, g.input("audio", REAL, ["batch", "samples"]), BANDS, STEPS)])
    assert violations(model) == ()
    engine = session(ir.to_proto(model))
    for samples in SOUNDS.values():
        # A batch mate that is louder: what counts as loud is each one's own affair.
        both = np.stack([samples, 10 * samples]).astype(np.float32)
        (came,) = engine.run(None, {"audio": both})
        for each, sound in zip(came, both, strict=True):
            np.testing.assert_allclose(each, log_mel(sound, BANDS, STEPS), atol=1e-4)


def test_bands() -> None:
    """Centers and heights as `librosa.filters.mel(sr=16000, n_fft=400, n_mels=80)` has them."""
    bands = mel_bands(80)
    assert bands.shape == (80, 201)
    np.testing.assert_allclose(bands[0, :4], [0, 0.02486259, 0, 0], atol=1e-8)
    np.testing.assert_allclose(bands[40, 41:46], [0, 0.00541111, 0.01473557, 0.00651819, 0], atol=1e-8)
    np.testing.assert_allclose(bands[79, 190:194], [0.00223206, 0.00269838, 0.00316471, 0.00314131], atol=1e-8)
    np.testing.assert_allclose(bands[79, 198:], [0.00089752, 0.00044876, 0], atol=1e-8)
    assert np.count_nonzero(bands[:, 0]) == 0
    assert (bands.sum(1) > 0).all()


@pytest.mark.parametrize("bands", [80, 128])
def test_no_power_is_beyond_half_precision(bands: int) -> None:
    """All energy of a frame as loud as can be in the bin that counts most."""
    energy = WINDOW * (_hann() ** 2).sum()
    assert mel_bands(bands).max() * energy * _LOUD < 65504


def test_what_is_too_long_is_refused() -> None:
    with pytest.raises(InputError, match="at most 6400 samples of one channel, came"):
        log_mel(np.zeros(STEPS * 160 + 1, np.float32), BANDS, STEPS)
    with pytest.raises(InputError, match="of one channel"):
        log_mel(np.zeros((2, 100), np.float32), BANDS, STEPS)
