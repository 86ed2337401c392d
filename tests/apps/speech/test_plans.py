"""Every plan gives the text of the unsplit model, which is the program linked into one."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.apps.speech.wav_files import sparse_silence

import flagsplit
from flagsplit.apps.decoder_service.program_source import folder_source
from flagsplit.apps.decoder_service.serve import DecoderService, DecoderSettings
from flagsplit.apps.programs import program_folder
from flagsplit.apps.speech.encoding_elsewhere import Reach
from flagsplit.apps.speech.known import BECKETT, TWO_CITIES
from flagsplit.apps.speech.opening import RecognizerChoice, open_model, open_recognizer
from flagsplit.apps.speech.recognizer import Heard, Recognizer
from flagsplit.apps.speech.transcribe import Transcription
from flagsplit.apps.speech.transcriber import Segment, Transcriber
from flagsplit.apps.speech.vad import RATE_HZ, open_detector
from flagsplit.apps.speech.wav import WavReader
from flagsplit.apps.speech.wer import word_errors
from flagsplit.apps.speech.windows import WindowRules
from flagsplit.apps.text import open_tokenizer
from flagsplit.errors import ConfigError, UnavailableError
from flagsplit.runtime.bundle import Bundle
from flagsplit.runtime.generation.admission import SchedulerSettings
from flagsplit.targets.interface import LoadOptions
from flagsplit.transport.security import KeyStore
from flagsplit.transport.zeromq import ZmqChannel

PLANS = ("all-phone", "split", "all-cloud")

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def folder(own_folders: None, speech_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The program's folder."""
    monkeypatch.setenv("FLAGSPLIT_CACHE", str(speech_cache))
    return program_folder("zoo:moonshine")


@pytest.fixture(scope="session")
def bundle(speech_cache: Path) -> Path:
    """Of the program, for a phone and a cloud."""
    program = program_folder("zoo:moonshine", cache=speech_cache)
    return flagsplit.build(str(program), "phone,cloud", speech_cache / "m.flagsplit").path


class Unsplit:
    """The linked model of a bundle, sound to tokens in one run."""

    rate_hz = RATE_HZ
    max_input_s = 29.0
    plan = "unsplit"

    def __init__(self, bundle: Bundle) -> None:
        assert bundle.program is not None
        self._tokenizer = open_tokenizer(bundle.program.facts.tokenizer, bundle.program.tokenizer)
        self._engine = bundle.load_whole(LoadOptions(threads=1))

    def recognize(
        self, samples: NDArray[np.float32], *, is_partial: bool = False, shared_s: float = 0.0
    ) -> Iterator[Heard]:
        tokens = self._engine.run({"audio": samples[None]})["tokens"][0]
        yield Heard(self._tokenizer.decode([int(token) for token in tokens]), "unsplit", len(tokens))

    def close(self) -> None:
        self._engine.close()


def text_of(recognizer: Recognizer, path: Path, rules: WindowRules | None = None) -> str:
    detector = open_detector()
    with WavReader(path) as reader:
        events = list(Transcriber(recognizer, detector, rules).events(reader.blocks(RATE_HZ)))
    detector.close()
    return " ".join(event.text for event in events if isinstance(event, Segment))


@cache
def unsplit_text(bundle: Path, path: Path) -> str:
    """What the unsplit model makes of a recording."""
    unsplit = Unsplit(flagsplit.open(bundle))
    try:
        return text_of(unsplit, path)
    finally:
        unsplit.close()


@pytest.mark.parametrize(
    ("name", "said", "most_errors"), [("beckett.wav", BECKETT, 0), ("two-cities.wav", TWO_CITIES, 3)]
)
def test_all_plans_give_the_text_of_the_unsplit_model(
    bundle: Path, speech_cache: Path, name: str, said: str, most_errors: int
) -> None:
    path = speech_cache / "zoo" / name
    wanted = unsplit_text(bundle, path)
    errors = word_errors(said, wanted)
    assert errors.substitutions + errors.insertions + errors.deletions <= most_errors
    plans = list(open_model(RecognizerChoice(str(bundle))).plans)
    always = {"all-phone", "all-cloud", "phone+cloud-hidden"}
    assert always < set(plans)
    for plan in plans if most_errors == 0 else sorted(always):
        found = heard_under(RecognizerChoice(str(bundle), plan), path)
        assert found == wanted, plan


def test_a_clip_that_fits_a_bundle_of_fixed_length_is_heard_as_a_whole(speech_cache: Path) -> None:
    """Ten seconds with pauses; cut at one of those, the recognizer errs."""
    program, size = str(program_folder("zoo:moonshine")), 10 * RATE_HZ
    fixed = flagsplit.build(program, "phone,cloud", speech_cache / "fixed.flagsplit", ranges={"samples": (size, size)})
    transcription = Transcription(speech_cache / "zoo" / "beckett.wav", RecognizerChoice(str(fixed.path)))
    (segment,) = (each for each in transcription.events() if isinstance(each, Segment))
    assert not word_errors(BECKETT, segment.text).rate


def test_real_speech_in_windows_that_overlap(speech_cache: Path) -> None:
    """As if there were no pauses: of a text that says the same over and over, no word comes twice and none is lost."""
    rules = WindowRules(max_s=12, overlap_s=3, long_pause_s=60, pause_s=60, short_pause_s=60)
    recognizer = open_recognizer(RecognizerChoice())
    errors = word_errors(TWO_CITIES, text_of(recognizer, speech_cache / "zoo" / "two-cities.wav", rules))
    recognizer.close()
    assert errors.substitutions <= 3
    assert (errors.insertions, errors.deletions) == (0, 0)


def test_hidden_states_in_eight_bits_change_no_word(bundle: Path, speech_cache: Path) -> None:
    """A quarter of the bytes; the phone may not make tokens."""
    path = speech_cache / "zoo" / "two-cities.wav"
    sla = {
        "pins": {"encode.*": "phone", "prefill.*": "cloud"},
        "accuracy": {"every_cut": {"codecs": ["u8"]}},
    }
    program = str(program_folder("zoo:moonshine"))
    lossy = flagsplit.build(
        program, "phone,cloud", speech_cache / "u8.flagsplit", sla=sla, links={"cloud": "1mbit/20ms"}
    )
    choice = RecognizerChoice(str(lossy.path), "phone+cloud-1")
    model = open_model(choice)
    assert not model.can_run_here
    chain = model.plans["phone+cloud-1"].open_before(Reach())
    crossing = chain.run(model.sound.tensors(np.zeros(RATE_HZ, np.float32)))
    chain.close()
    assert sum(array.nbytes for array in crossing.values()) < 41 * model.facts.width + 16
    assert heard_under(choice, path) == unsplit_text(bundle, path)


def test_all_plans_of_a_program_give_the_same_text(speech_cache: Path) -> None:
    for plan in PLANS:
        assert heard_under(RecognizerChoice(plan=plan), speech_cache / "zoo" / "beckett.wav") == BECKETT, plan


def heard_under(choice: RecognizerChoice, path: Path) -> str:
    recognizer = open_recognizer(choice)
    try:
        assert recognizer.plan == choice.plan
        found = text_of(recognizer, path)
        assert (recognizer.crossed_bytes > 0) == (choice.plan != "all-phone")
        return found
    finally:
        recognizer.close()


@pytest.mark.parametrize("plan", PLANS[1:])
def test_a_service_that_goes_leaves_the_phone(folder: Path, speech_cache: Path, plan: str) -> None:
    """The words after it went are made here, the same ones."""
    channel = ZmqChannel(security=KeyStore(None).security())
    service = DecoderService(folder_source(folder), channel, "tcp://127.0.0.1:0", DecoderSettings(slots=1, threads=1))
    heard: list[Heard] = []
    with WavReader(speech_cache / "zoo" / "beckett.wav") as reader:
        samples = np.concatenate(list(reader.blocks(RATE_HZ)))
    recognizer = open_recognizer(RecognizerChoice(plan=plan, cloud=(str(service.streams.address),)))
    try:
        for piece in recognizer.recognize(samples):
            heard.append(piece)
            if len(heard) == 4:
                service.stop()
    finally:
        recognizer.close()
        service.stop()
    assert "".join(piece.text for piece in heard).strip() == BECKETT
    assert [piece.where for piece in heard[:4]] == ["cloud"] * 4
    assert {piece.where for piece in heard} <= {"cloud", "phone"}


def test_a_service_without_room_leaves_it_to_the_phone(folder: Path, speech_cache: Path) -> None:
    """A window that needs more cache than the service has is no reason to end."""
    settings = DecoderSettings(slots=1, threads=1, scheduler=SchedulerSettings(kv_bytes=1 << 20))
    channel = ZmqChannel(security=KeyStore(None).security())
    service = DecoderService(folder_source(folder), channel, "tcp://127.0.0.1:0", settings)
    path = speech_cache / "zoo" / "beckett.wav"
    try:
        found = flagsplit.transcribe(path, cloud=str(service.streams.address))
    finally:
        service.stop()
    assert (found.text, set(found.words_by_tier)) == (BECKETT, {"phone"})


def test_progress_is_told(tmp_path: Path) -> None:
    told: list[tuple[str, float]] = []
    path = sparse_silence(tmp_path / "x.wav", 600)
    transcription = Transcription(path, progress=lambda what, share: told.append((what, share)))
    assert list(transcription.events()) == []
    assert transcription.result.seconds == 600
    shares = [share for what, share in told if what == "transcribe"]
    assert told[0] == ("load", 0.0)
    assert shares == sorted(shares)
    assert 400 < len(shares) <= 500
    assert shares[-1] > 0.99


def test_nobody_there() -> None:
    with pytest.raises(UnavailableError, match=r"no decoder service takes streams at tcp://127\.0\.0\.1:9: "):
        open_recognizer(RecognizerChoice(cloud=("tcp://127.0.0.1:9",), connect_s=0.3))


def test_one_address_is_enough(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"address 'cloud\.example': expected tcp://HOST:PORT"):
        flagsplit.transcribe(sparse_silence(tmp_path / "x.wav", 1), cloud="cloud.example")


@pytest.mark.parametrize(
    ("choice", "why"),
    [
        (RecognizerChoice(plan="spilt"), "under plan 'spilt'; there are all-phone, split, all-cloud"),
        (RecognizerChoice(plan="all-phone", cloud=("tcp://127.0.0.1:9",)), "leave out --cloud"),
    ],
)
def test_choices_that_cannot_be(choice: RecognizerChoice, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        open_recognizer(choice)


def test_bundles_that_cannot_be(small_bundle: Path) -> None:
    with pytest.raises(ConfigError, match="has no program, only a model"):
        open_recognizer(RecognizerChoice(str(small_bundle)))
