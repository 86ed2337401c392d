"""Whisper's timestamps: the rules as they were published, and streams under them that move."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.runtime.generation.driver import Driver

from flagsplit.errors import ConfigError, InputError
from flagsplit.runtime.generation.admission import SchedulerSettings
from flagsplit.runtime.generation.constraints import TIMESTAMPS, constraint_of
from flagsplit.runtime.generation.events import Generate, Tokens
from flagsplit.runtime.generation.options import GenerationOptions
from flagsplit.runtime.generation.sampling import log_probability
from flagsplit.runtime.generation.sequential import events, generate
from flagsplit.runtime.generation.testing import HashModel, hidden, tiny_facts

# Text is 0..9, then come the stop token, special ones, no timestamps, and the times from 0 to 1.5 s.
EOT, NO_TIMESTAMPS, FIRST = 10, 15, 16
FACTS = tiny_facts(
    stop_tokens=(EOT,), first_timestamp_token=FIRST, timestamp_s=0.1, no_timestamps_token=NO_TIMESTAMPS,
    prompt=(11, 12, NO_TIMESTAMPS), no_speech_token=14, suppressed=(11, 12, 13, 14),
)  # fmt: skip
OPTIONS = GenerationOptions(constraint=TIMESTAMPS, logprobs=True, max_tokens=40)


def published(logits: list[float], seq: Sequence[int]) -> list[float]:
    """`ApplyTimestampRules.apply` of openai-whisper, for one row, in plain Python."""
    logits = list(logits)

    def bar(start: int, stop: int) -> None:
        for token in range(max(start, 0), stop):
            logits[token] = -math.inf

    bar(NO_TIMESTAMPS, NO_TIMESTAMPS + 1)
    last_was_timestamp = len(seq) >= 1 and seq[-1] >= FIRST
    penultimate_was_timestamp = len(seq) < 2 or seq[-2] >= FIRST
    if last_was_timestamp:
        if penultimate_was_timestamp:
            bar(FIRST, len(logits))
        else:
            bar(0, EOT)
    timestamps = [token for token in seq if token >= FIRST]
    if timestamps:
        is_open = last_was_timestamp and not penultimate_was_timestamp
        bar(FIRST, timestamps[-1] if is_open else timestamps[-1] + 1)
    if not seq:
        bar(0, FIRST)
        bar(FIRST + 10 + 1, len(logits))
    total = math.fsum(math.exp(logit) for logit in logits[FIRST:])
    if total > 0 and math.log(total) > max(logits[:FIRST]):
        bar(0, FIRST)
    return logits


def model() -> HashModel:
    return HashModel(3, FACTS)


@given(st.data())
def test_the_rules_are_the_published_ones(data: st.DataObject) -> None:
    seq = data.draw(st.lists(st.integers(0, EOT - 1) | st.integers(FIRST, 31), max_size=8))
    quarters = st.integers(-40, 40)
    logits = [each / 4 for each in data.draw(st.lists(quarters, min_size=32, max_size=32))]
    for token in data.draw(st.sets(st.integers(0, 31))):
        logits[token] = -math.inf
    rules = constraint_of(FACTS, TIMESTAMPS)
    assert rules is not None
    found = np.array(logits, np.float32)
    rules(found, seq)
    assert found.tolist() == published(logits, seq)


@pytest.mark.parametrize("options", [OPTIONS, GenerationOptions(constraint=TIMESTAMPS, beams=3, max_tokens=20)])
def test_phrases_lie_between_rising_times(options: GenerationOptions) -> None:
    for number in range(20):
        tokens = list(generate(model(), hidden(number), FACTS.timestamp_prompt, options))
        assert FIRST <= tokens[0] <= FIRST + 10
        times = [token for token in tokens if token >= FIRST]
        assert times == sorted(times)
        assert NO_TIMESTAMPS not in tokens
        runs = "".join("t" if token >= FIRST else "." for token in tokens)
        assert "ttt" not in runs
        if runs.endswith(".") and len(tokens) < options.max_tokens:
            continue  # A phrase may be left open at the end.
        assert runs.lstrip("t").replace("tt", "").count("t") <= 1


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_stream_that_moves_goes_on_with_the_same_tokens_and_scores(temperature: float) -> None:
    options = GenerationOptions(constraint=TIMESTAMPS, logprobs=True, max_tokens=30, temperature=temperature, seed=5)
    prompt = FACTS.timestamp_prompt
    whole = list(events(model(), hidden(4), prompt, options))
    tokens, scores = flat(whole)
    assert len(tokens) > 5
    assert len(scores) == len(tokens) + (whole[-1].reason == "stop")
    for count in range(len(tokens)):
        so_far = (*prompt, *tokens[:count])
        rest = list(events(model(), hidden(4), so_far, options, generated=count))
        assert flat(rest) == (tokens[count:], scores[count:])
        assert rest[0].no_speech == (whole[0].no_speech if count == 0 else 0)


def test_streams_together_are_as_each_alone() -> None:
    """With evictions, searches among them, and some that ask for less."""
    choices = [OPTIONS, GenerationOptions(max_tokens=30), replace(OPTIONS, beams=3), replace(OPTIONS, temperature=0.7)]
    driver = Driver(HashModel(12, FACTS, stop_share=0), SchedulerSettings(kv_bytes=1300))
    asked = [
        Generate(str(number), "ab"[number % 2], hidden(number), FACTS.timestamp_prompt, options=choices[number % 4])
        for number in range(12)
    ]
    outcomes = [driver.submit(each) for each in asked]
    driver.run()
    assert driver.scheduler.counts.evictions > 0
    for each, outcome in zip(asked, outcomes, strict=True):
        wanted = list(events(HashModel(3, FACTS, stop_share=0), each.context, each.tokens, each.options))
        assert (outcome.tokens, outcome.logprobs) == flat(wanted)
        assert outcome.no_speech == wanted[0].no_speech
        assert (outcome.no_speech > 0) == each.options.logprobs
        if each.options.logprobs:
            assert len(outcome.logprobs) == len(outcome.tokens) + (wanted[-1].reason == "stop")


def flat(found: Sequence[Tokens]) -> tuple[list[int], list[float]]:
    return [token for each in found for token in each.tokens], [score for each in found for score in each.logprobs]


def test_scores_are_those_of_what_was_allowed() -> None:
    """Of each token, its share of what the rules leave; of silence, before anything is barred."""
    prompt = FACTS.timestamp_prompt
    found = list(events(model(), hidden(2), prompt, OPTIONS))
    other = model()
    other.open(0, hidden(2))
    (first,) = other.step([0], [np.array(prompt[:1])])
    assert found[0].no_speech == pytest.approx(math.exp(log_probability(first, 14)), abs=1e-6)
    (logits,) = other.step([0], [np.array(prompt[1:])])
    logits[:FIRST] = logits[FIRST + 11 :] = -np.inf
    allowed = np.exp(logits.astype(np.float64))
    assert found[0].logprobs[0] == pytest.approx(math.log(allowed.max() / allowed.sum()), abs=1e-6)
    assert [each.no_speech for each in found[1:]] == [0.0] * (len(found) - 1)


def test_what_a_program_has_no_tokens_for() -> None:
    with pytest.raises(InputError, match="program hashed has no tokens for the constraint timestamps; leave it out"):
        generate(HashModel(1), hidden(1), options=OPTIONS)
    with pytest.raises(ConfigError, match="no constraint is called 'rhymes'; there are timestamps"):
        constraint_of(FACTS, "rhymes")
