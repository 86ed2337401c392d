"""Whisper's spectrogram in what phones run: fp16 keeps the eight decades that count, of a voice however quiet."""

import numpy as np
import pytest
from numpy.typing import NDArray

import flagsplit
from flagsplit.flagir.programs.log_mel import log_mel, write_log_mel
from flagsplit.flagir.programs.writer import REAL, GraphWriter
from flagsplit.targets.catalogue import missing_sdk
from flagsplit.targets.interface import LoadOptions

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_folders")]

BANDS, STEPS = 80, 50
_BOUNDS = {"coreml": 4e-3, "litert": 1e-4, "qnn": 4e-3}
"""Of the mean difference; values are about -1 to 1."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> flagsplit.Bundle:
    folder = tmp_path_factory.mktemp("log-mel")
    g = GraphWriter("front", {})
    model = g.model([write_log_mel(g, g.input("audio", REAL, ["batch", "samples"]), BANDS, STEPS)])
    flagsplit.build(
        model,
        "phone,cloud",
        folder / "front.flagsplit",
        dims={"batch": 1, "samples": STEPS * 160},
        devices={"phone": "galaxy-s24"},
        targets={"phone": [name for name in _BOUNDS if not missing_sdk(name)]},
        sla={"keep_on": {"inputs": "phone"}},
    )
    return flagsplit.open(folder / "front.flagsplit", cache=folder)


def _voice() -> NDArray[np.float64]:
    """Three harmonics that swell and fall, and a little noise."""
    at = np.arange(STEPS * 160) / 16_000
    tone = sum(np.sin(2 * np.pi * 180 * k * at) / k**2 for k in (1, 3, 9)) * np.sin(2 * np.pi * 2 * at) ** 2
    return np.asarray(0.3 * tone + 1e-4 * np.random.default_rng(0).standard_normal(len(at)), np.float64)


@pytest.mark.parametrize("target", _BOUNDS)
def test_quiet_and_loud(bundle: flagsplit.Bundle, target: str) -> None:
    if missing_sdk(target):
        pytest.skip(missing_sdk(target))
    plan = next(plan for plan in bundle.plans.pool.plans if set(plan.used_tiers) == {0})
    (step,) = bundle.plans.steps[plan.name]
    loaded = bundle.load(0, step.segment, LoadOptions(threads=1, target=target))
    for loudness in (3.0, 1.0, 0.03, 0.0):
        audio = np.asarray(_voice() * loudness, np.float32)
        (came,) = loaded.run({"audio": audio[None]}).values()
        assert np.abs(came[0] - log_mel(audio, BANDS, STEPS)).mean() <= _BOUNDS[target], loudness
    loaded.close()
