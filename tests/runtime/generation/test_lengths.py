"""How many tokens a stream may have: as many as the linked program makes, whatever the length of the input."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.flagir.programs import oracle
from tests.flagir.programs.driver import answers, engine
from tests.flagir.programs.made import program_of

from flagsplit.flagir.programs.link import link
from flagsplit.flagir.programs.moonshine import SAMPLES_PER_FRAME, TOKENS_PER_S
from flagsplit.runtime.generation.events import Generate
from flagsplit.runtime.generation.options import GenerationOptions
from flagsplit.runtime.generation.stream import begin
from flagsplit.runtime.generation.testing import hidden, tiny_facts

RATE_HZ = 16_000
MOONSHINE = tiny_facts(tokens_per_s=TOKENS_PER_S, frames_per_s=RATE_HZ / SAMPLES_PER_FRAME, max_positions=195)


@pytest.mark.slow
@pytest.mark.parametrize("per_frame", [0.3, 0.37, 1.9])
def test_a_stream_is_as_long_as_the_linked_program_makes_it(per_frame: float) -> None:
    made = oracle.moonshine_like(np.random.default_rng(1))
    assert made.encoder is not None
    assert made.encoder_weights is not None
    shortest = oracle.encode(made.encoder, made.encoder_weights, np.zeros(400, np.float32))
    stride = 400 / (len(shortest) + 2)
    program = program_of(made, [1], stop_tokens=(18,), suppressed=(18,))
    frames_per_s = RATE_HZ / stride
    facts = replace(program.facts, tokens_per_s=per_frame * frames_per_s, frames_per_s=frames_per_s, max_positions=99)
    linked = engine(link(replace(program, facts=facts), 99))
    differed = 0
    for samples in range(60, 400, 3):
        sound = np.zeros(samples, np.float32)
        tokens = answers(linked, {"audio": sound[None]})["tokens"].shape[1]
        context = {"hidden": oracle.encode(made.encoder, made.encoder_weights, sound)[None]}
        for input_s in (0.0, samples / RATE_HZ):
            asked = Generate("", "", context, options=GenerationOptions(max_tokens=98), input_s=input_s)
            assert begin(facts, asked, 0, 0.0).limit == tokens, f"{samples} samples, {input_s} s"
        differed += facts.most_tokens(samples / RATE_HZ) != tokens
    assert differed


@given(st.integers(SAMPLES_PER_FRAME, 29 * RATE_HZ))
def test_the_seconds_of_a_sound_change_nothing_where_its_frames_are_known(samples: int) -> None:
    frames = max(1, samples // SAMPLES_PER_FRAME - 2)  # what convolutions leave at the ends
    asked = Generate("", "", hidden(0, frames))
    limits = {begin(MOONSHINE, replace(asked, input_s=seconds), 0, 0.0).limit for seconds in (0.0, samples / RATE_HZ)}
    assert limits == {frames * 39 // 250}


def test_silence_that_fills_a_fixed_input_brings_no_more_tokens() -> None:
    asked = Generate("", "", hidden(0, 414), input_s=2.0)
    assert begin(MOONSHINE, asked, 0, 0.0).limit == 13
