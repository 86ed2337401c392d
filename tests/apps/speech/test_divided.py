"""Plans whose encoder is divided between the phone and an edge worker, with the loop in the cloud."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import flagsplit
from flagsplit.apps.decoder_service.bundle_source import bundle_source
from flagsplit.apps.decoder_service.serve import DecoderService, DecoderSettings
from flagsplit.apps.groundwork import BuildOptions
from flagsplit.apps.local import LocalWorkers
from flagsplit.apps.pipeline import build
from flagsplit.apps.program_plans import hidden_plans
from flagsplit.apps.programs import open_program
from flagsplit.apps.speech.known import BECKETT
from flagsplit.apps.speech.opening import RecognizerChoice, open_recognizer
from flagsplit.apps.speech.recognizer import Recognizer
from flagsplit.apps.speech.vad import RATE_HZ
from flagsplit.apps.speech.wav import WavReader
from flagsplit.errors import ConfigError, UnavailableError
from flagsplit.flagir.frontends.any_model import Source
from flagsplit.splitter.problem import Problem
from flagsplit.splitter.sla import parse_sla
from flagsplit.transport.security import KeyStore
from flagsplit.transport.zeromq import ZmqChannel

pytestmark = pytest.mark.slow

TIERS = ("phone", "edge", "cloud")


@pytest.fixture(autouse=True)
def folders(own_folders: None, speech_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLAGSPLIT_CACHE", str(speech_cache))


def _divided(problem: Problem) -> Mapping[str, Sequence[int]]:
    """Half of the encoder on the phone; the other half on the edge, or a part of it, with the end in the cloud."""
    (*_, placement) = hidden_plans(problem).values()
    encoder = [block for block, tier in enumerate(placement) if tier == 0]
    half, late = encoder[len(encoder) // 2], encoder[len(encoder) * 4 // 5]
    whole = [1 if tier == 0 and block >= half else tier for block, tier in enumerate(placement)]
    return {"in-two": whole, "in-three": [2 if tier == 1 and at >= late else tier for at, tier in enumerate(whole)]}


@pytest.fixture(scope="module")
def bundle(speech_cache: Path) -> Path:
    path = speech_cache / "three.flagsplit"
    program = open_program("zoo:moonshine", cache=speech_cache)
    build(Source(program), TIERS, path, sla=parse_sla({}), options=BuildOptions(extra_plans=_divided))
    return path


@pytest.fixture
def edge(bundle: Path) -> Iterator[LocalWorkers]:
    """A worker of the edge in a process of its own."""
    with LocalWorkers(bundle, ["edge"]) as workers:
        yield workers


@pytest.fixture
def sound(speech_cache: Path) -> NDArray[np.float32]:
    with WavReader(speech_cache / "zoo" / "beckett.wav") as reader:
        return np.concatenate(list(reader.blocks(RATE_HZ)))


def heard(recognizer: Recognizer, sound: NDArray[np.float32]) -> tuple[str, set[str]]:
    """The text and the tiers that made it."""
    found = list(recognizer.recognize(sound))
    return "".join(each.text for each in found).strip(), {each.where for each in found}


@pytest.mark.parametrize("plan", ["in-two", "in-three"])
def test_all_that_is_needed_starts_here(bundle: Path, speech_cache: Path, plan: str) -> None:
    found = flagsplit.transcribe(speech_cache / "zoo" / "beckett.wav", model=str(bundle), plan=plan)
    assert (found.text, found.plan, set(found.words_by_tier)) == (BECKETT, plan, {"cloud"})
    hidden_bytes = 4 * 288 * 41 * 9
    assert found.crossed_bytes > 3 * hidden_bytes  # to the edge, back, and on to the cloud


def test_with_both_tiers_elsewhere_the_best_plan_that_uses_both_is_taken(
    bundle: Path, edge: LocalWorkers, speech_cache: Path
) -> None:
    opened, channel = flagsplit.open(bundle), ZmqChannel(security=KeyStore().security())
    settings = DecoderSettings(slots=1, threads=1)
    service = DecoderService(bundle_source(opened, "cloud"), channel, "tcp://127.0.0.1:0", settings)
    try:
        found = flagsplit.transcribe(
            speech_cache / "zoo" / "beckett.wav",
            model=str(bundle),
            cloud=str(service.streams.address),
            tiers={tier: at.address for tier, at in edge.addresses.items()},
        )
    finally:
        service.stop()
    best = next(plan for plan in opened.plans.pool.plans if {1, 2} <= set(plan.used_tiers))
    assert (found.text, found.plan, set(found.words_by_tier)) == (BECKETT, best.name, {"cloud"})


def test_where_the_edge_goes_another_plan_makes_the_same_hidden_states(
    bundle: Path, edge: LocalWorkers, sound: NDArray[np.float32]
) -> None:
    addresses = {tier: at.address for tier, at in edge.addresses.items()}
    recognizer = open_recognizer(RecognizerChoice(str(bundle), "in-two", workers=addresses))
    try:
        assert heard(recognizer, sound) == (BECKETT, {"cloud"})
        edge.close()
        assert heard(recognizer, sound) == (BECKETT, {"cloud"})
    finally:
        recognizer.close()


def test_where_no_plan_makes_them_without_the_edge_the_phone_does_all(
    bundle: Path, edge: LocalWorkers, sound: NDArray[np.float32]
) -> None:
    addresses = {tier: at.address for tier, at in edge.addresses.items()}
    recognizer = open_recognizer(RecognizerChoice(str(bundle), "in-three", workers=addresses))
    try:
        assert heard(recognizer, sound) == (BECKETT, {"cloud"})
        edge.close()
        for _ in range(2):
            assert heard(recognizer, sound) == (BECKETT, {"phone"})
    finally:
        recognizer.close()


def test_what_cannot_be(bundle: Path) -> None:
    nobody = {"edge": "tcp://127.0.0.1:9"}
    with pytest.raises(UnavailableError, match=r"no worker of tier edge at tcp://127\.0\.0\.1:9: .*flagsplit serve"):
        open_recognizer(RecognizerChoice(str(bundle), "in-two", connect_s=0.3, workers=nobody))
    with pytest.raises(ConfigError, match="plan all-phone runs no part of the encoder on edge; leave out --tier"):
        open_recognizer(RecognizerChoice(str(bundle), "all-phone", workers=nobody))
    with pytest.raises(ConfigError, match="no plan has its loop here and a part of its encoder on moon"):
        open_recognizer(RecognizerChoice(str(bundle), workers={"moon": "tcp://127.0.0.1:9"}))
