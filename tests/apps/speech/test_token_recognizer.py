"""What is given of a window: nothing of silence, and of nonsense what a higher temperature makes of it."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.apps.decoder_service.rote import ByteTokenizer
from tests.apps.speech.scripted import Detector

from flagsplit.apps.speech.features import SoundInput
from flagsplit.apps.speech.recognizer import SpeechFacts
from flagsplit.apps.speech.token_recognizer import TokenRecognizer, TokenRun
from flagsplit.apps.speech.transcriber import NewWord, Segment, Transcriber
from flagsplit.apps.speech.vad import RATE_HZ
from flagsplit.apps.speech.words import Phrase
from flagsplit.runtime.generation.constraints import TIMESTAMPS
from flagsplit.runtime.generation.options import GenerationOptions
from flagsplit.runtime.generation.stream_events import Scores
from flagsplit.runtime.generation.testing import tiny_facts
from flagsplit.targets.interface import Array

FIRST = 260
FACTS = tiny_facts(
    vocabulary=300, stop_tokens=(256,), prompt=(257, 258), no_timestamps_token=258, no_speech_token=259,
    first_timestamp_token=FIRST, timestamp_s=0.5, max_positions=448,
)  # fmt: skip


@dataclass(frozen=True)
class Say:
    """What a model says at one temperature: text with times as <2.5>, how likely each token is, and no speech."""

    text: str
    logprob: float = -0.1
    no_speech: float = 0.0


class Scripted(TokenRecognizer):
    """Says what a script has for a temperature and the seconds that are left of the sound."""

    def __init__(self, script: Callable[[float, float], Say], *, times: bool = False, temperature: float = 0.0) -> None:
        about = SpeechFacts("all-phone", FACTS, SoundInput("audio"), ByteTokenizer(), times=times)
        super().__init__(about, GenerationOptions(temperature=temperature, seed=3))
        self._script = script
        self.asked: list[tuple[float, GenerationOptions]] = []

    def encode(self, samples: NDArray[np.float32]) -> Mapping[str, Array]:
        return {"audio": samples[None]}

    def run(
        self, encoded: Mapping[str, Array], seconds: float, prompt: tuple[int, ...], options: GenerationOptions
    ) -> TokenRun:
        assert prompt == ((257,) if options.constraint else ())
        assert encoded["audio"].shape == (1, round(seconds * RATE_HZ))
        self.asked.append((options.temperature, options))
        said = self._script(options.temperature, seconds)
        count = 0
        for token in tokens_of(said.text):
            count += 1
            yield token, "phone"
        return Scores((said.logprob,) * (count + 1), said.no_speech)

    @property
    def temperatures(self) -> list[float]:
        return [temperature for temperature, _ in self.asked]

    def close(self) -> None:
        pass


def tokens_of(text: str) -> Iterator[int]:
    for part in text.split("<"):
        time, is_time, rest = part.rpartition(">")
        if is_time:
            yield FIRST + round(float(time) * 2)
        yield from rest.encode()


def heard(recognizer: Scripted, seconds: float = 10.0, *, is_partial: bool = False) -> str:
    found = recognizer.recognize(np.zeros(round(seconds * RATE_HZ), np.float32), is_partial=is_partial)
    return "".join(each.text for each in found)


LOOP = Say(" you" * 40)


@pytest.mark.parametrize(
    ("said", "text", "temperatures"),
    [
        ({0.0: Say(" Ever tried.")}, " Ever tried.", [0.0]),
        ({0.0: Say(" Heifer dried.", -1.2), 0.2: Say(" Ever tried.")}, " Ever tried.", [0.0, 0.2]),
        ({0.0: LOOP, 0.2: LOOP, 0.4: Say(" Ever.", -0.9)}, " Ever.", [0.0, 0.2, 0.4]),
        (dict.fromkeys((0.0, 0.2, 0.4, 0.6, 0.8, 1.0), LOOP), LOOP.text, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        ({0.0: Say(" Thank you.", -1.1, no_speech=0.7)}, "", [0.0]),
        ({0.0: Say(" you" * 40, -1.1, no_speech=0.7)}, "", [0.0]),
        ({0.0: Say(" Thank you.", -0.5, no_speech=0.7)}, " Thank you.", [0.0]),
        ({0.0: LOOP, 0.2: Say("", -2.0, no_speech=0.7)}, "", [0.0, 0.2]),
    ],
)
def test_texts_are_tried_until_one_is_good(said: dict[float, Say], text: str, temperatures: list[float]) -> None:
    recognizer = Scripted(lambda temperature, _seconds: said[temperature])
    assert heard(recognizer) == text
    assert recognizer.temperatures == temperatures
    asked = {
        (options.seed, options.logprobs, options.constraint, options.max_tokens) for _, options in recognizer.asked
    }
    assert asked == {(3, True, "", 224)}


def test_a_temperature_that_was_chosen_is_the_only_one() -> None:
    recognizer = Scripted(lambda _temperature, _seconds: LOOP, temperature=0.3)
    assert heard(recognizer) == LOOP.text
    assert recognizer.temperatures == [0.3]


def test_nothing_doubtful_is_given_of_a_sound_that_grows() -> None:
    recognizer = Scripted(lambda _temperature, seconds: LOOP if seconds < 5 else Say(" Ever"))
    assert [heard(recognizer, 3.0, is_partial=True), heard(recognizer, 6.0, is_partial=True)] == ["", " Ever"]
    assert recognizer.temperatures == [0.0, 0.0]


def test_phrases_come_with_their_times() -> None:
    said = Say("<0.0> Ever tried.<2.5><3.0> Ever failed.<4.5>", -0.25, 0.125)
    recognizer = Scripted(lambda _temperature, _seconds: said, times=True)
    found = list(recognizer.recognize(np.zeros(5 * RATE_HZ, np.float32)))
    phrases = [each.phrase for each in found if each.phrase is not None]
    assert [(each.start_s, each.end_s, each.tokens) for each in phrases] == [(0.0, 2.5, 12), (3.0, 4.5, 13)]
    assert {each.quality.no_speech_prob for each in phrases} == {0.125}
    assert "".join(each.text for each in found) == " Ever tried. Ever failed."
    assert {options.constraint for _, options in recognizer.asked} == {TIMESTAMPS}


def test_what_a_model_leaves_open_is_recognized_anew() -> None:
    """Of a window of ten seconds the model has five and a half; then of what is left, all."""
    said = {10.0: Say("<0.0> Ever tried.<5.5><6.0> Ev"), 4.5: Say("<0.5> Ever failed.<3.5>")}
    recognizer = Scripted(lambda _temperature, seconds: said[seconds], times=True)
    found = list(recognizer.recognize(np.zeros(10 * RATE_HZ, np.float32)))
    phrases = [each.phrase for each in found if each.phrase is not None]
    assert [(each.start_s, each.end_s) for each in phrases] == [(0.0, 5.5), (6.0, 9.0)]
    assert "".join(each.text for each in found) == " Ever tried. Ever failed."
    shared = recognizer.recognize(np.zeros(10 * RATE_HZ, np.float32), shared_s=5.0)
    assert "".join(each.text for each in shared) == " Ever tried.", "the next window has the rest"
    partial = recognizer.recognize(np.zeros(10 * RATE_HZ, np.float32), is_partial=True)
    assert "".join(each.text for each in partial) == " Ever tried. Ev"


@pytest.mark.parametrize("rest", ["<9.8>", "<9.8> you", "<0.0>"])
def test_a_rest_that_is_too_short_is_none(rest: str) -> None:
    """Or one that does not get any shorter."""
    start = "<0.0><0.0>" if rest == "<0.0>" else f"<0.0> Ever tried.<9.5>{rest}"
    recognizer = Scripted(lambda _temperature, _seconds: Say(start), times=True)
    assert heard(recognizer) in (" Ever tried.", " Ever tried. you", "")
    assert len(recognizer.asked) == 1


@pytest.mark.parametrize("live", [False, True])
def test_a_segment_for_each_phrase(live: bool) -> None:
    def script(_temperature: float, seconds: float) -> Say:
        if seconds < 4:
            return Say("<0.2> Ever tried.<1.6>", -0.6)
        return Say("<0.5> Ever tried.<2.0><2.5> Ever failed.<4.0>", -0.5)

    recognizer = Scripted(script, times=True)
    transcriber = Transcriber(recognizer, Detector(), live=live, clock=lambda: 0.0)
    events = list(transcriber.events([-np.ones(RATE_HZ, np.float32), np.ones(5 * RATE_HZ, np.float32)]))
    segments = [each for each in events if isinstance(each, Segment)]
    assert [segment.text for segment in segments] == ["Ever tried.", "Ever failed."]
    assert [segment.tokens for segment in segments] == [12, 13]
    starts = 1.0 - 0.25 + np.array([0.5, 2.5])  # The window begins before its speech.
    assert [segment.words[0].start_s for segment in segments] == pytest.approx(starts, abs=0.033)
    assert [segment.words[-1].end_s for segment in segments] == pytest.approx(starts + 1.5, abs=0.033)
    assert all(segment.quality is not None and segment.quality.avg_logprob == -0.5 for segment in segments)
    assert isinstance(segments[0].words[0].phrase, Phrase)
    assert [each.text for each in events if isinstance(each, NewWord)] == ["Ever", "tried.", "Ever", "failed."]
