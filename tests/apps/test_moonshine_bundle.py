"""The bundle of the real Moonshine: what is planned, and each plan over real links against the unsplit model."""

import wave

import numpy as np
import pytest
from tests.apps.conftest import Serve

import flagsplit
from flagsplit.apps import zoo
from flagsplit.apps.programs import open_program
from flagsplit.errors import PeerError
from flagsplit.flagir.frontends.any_model import Source
from flagsplit.runtime.bundle import Bundle
from flagsplit.targets.interface import LoadOptions

pytestmark = pytest.mark.slow
SENTENCE = [18274, 1898, 29892, 3926, 5229, 29892, 694, 4383, 29892, 1018, 1449, 29892, 4418, 1449, 29892, 4418, 2253]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("moonshine")
    try:
        program = open_program("zoo:moonshine")
    except PeerError as error:
        pytest.skip(f"offline: {error}")
    built = flagsplit.build(Source(program).model, "phone,cloud", folder / "moonshine.flagsplit")
    assert built.size_bytes < 1.004 * built.weights_bytes
    return flagsplit.open(built.path, cache=folder / "cache")


def test_every_plan_over_links(serve: Serve, bundle: Bundle) -> None:
    with wave.open(str(zoo.pull("beckett.wav")), "rb") as file:
        sound = np.frombuffer(file.readframes(file.getnframes()), "<i2")[None].astype(np.float32) / 32768
    whole = bundle.load_whole(LoadOptions(threads=1))
    tokens = whole.run({"audio": sound})["tokens"]
    assert tokens[0, :17].tolist() == SENTENCE
    with flagsplit.connect(bundle, serve(bundle)) as session:
        for plan in bundle.plans.pool.plans:
            answer = session.run({"audio": sound}, plan=plan.name)
            assert answer.report.plan == plan.name
            assert np.array_equal(answer["tokens"], tokens), plan.name


def test_the_plan_at_the_hidden_state(bundle: Bundle) -> None:
    plan = bundle.plan("phone+cloud-hidden")
    assert [(cut.value, cut.size_bytes) for cut in plan.cuts] == [("encode.hidden", 415 * 288 * 4), ("tokens", 8)]
