"""Encoders of programs in what phones run: every target takes them whole, and hears what plain numpy hears."""

from pathlib import Path

import numpy as np
import pytest
from tests.flagir.programs import oracle

import flagsplit
from flagsplit.flagir.programs.encoder import build_encode
from flagsplit.targets.catalogue import missing_sdk
from flagsplit.targets.interface import LoadOptions

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_folders")]

SAMPLES = 160
_BOUNDS = {"coreml": 2e-2, "litert": 1e-4, "qnn": 2e-2}
"""Of the largest difference, for the largest hidden state; two of them compute in fp16."""


@pytest.fixture(scope="module", params=["moonshine", "whisper"])
def made(request: pytest.FixtureRequest) -> oracle.Made:
    return oracle.FAMILIES[request.param](np.random.default_rng(3))


@pytest.fixture(scope="module")
def bundle(made: oracle.Made, tmp_path_factory: pytest.TempPathFactory) -> flagsplit.Bundle:
    assert made.encoder is not None
    assert made.encoder_weights is not None
    folder: Path = tmp_path_factory.mktemp("encoder")
    flagsplit.build(
        build_encode(made.encoder, made.encoder_weights),
        "phone,cloud",
        folder / "encoder.flagsplit",
        dims={"batch": 1, **({"samples": SAMPLES} if made.encoder.input == "audio" else {})},
        devices={"phone": "galaxy-s24"},
        targets={"phone": [name for name in _BOUNDS if not missing_sdk(name)]},
        sla={"keep_on": {"inputs": "phone"}},
    )
    return flagsplit.open(folder / "encoder.flagsplit", cache=folder)


@pytest.mark.parametrize("target", _BOUNDS)
def test_an_encoder_on_a_phone(bundle: flagsplit.Bundle, made: oracle.Made, target: str) -> None:
    if missing_sdk(target):
        pytest.skip(missing_sdk(target))
    assert made.encoder is not None
    assert made.encoder_weights is not None
    plan = next(plan for plan in bundle.plans.pool.plans if set(plan.used_tiers) == {0})
    (step,) = bundle.plans.steps[plan.name]
    shape = (SAMPLES,) if made.encoder.input == "audio" else (oracle.BINS, 18)
    source = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    loaded = bundle.load(0, step.segment, LoadOptions(threads=1, target=target))
    (came,) = loaded.run({"audio" if made.encoder.input == "audio" else "log_mel": source[None]}).values()
    wanted = oracle.encode(made.encoder, made.encoder_weights, source)
    assert np.abs(came[0] - wanted).max() <= _BOUNDS[target] * np.abs(wanted).max()
    loaded.close()
