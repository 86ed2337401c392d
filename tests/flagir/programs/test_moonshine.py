"""Moonshine as a program against the graphs it was published as, and what it hears."""

import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from tests.flagir.models import Array
from tests.flagir.programs.driver import Engine, answers, close, engine

from flagsplit.apps import zoo
from flagsplit.errors import ModelError, PeerError
from flagsplit.flagir import canonicalize, read_model
from flagsplit.flagir.passes.float_products import float_products
from flagsplit.flagir.programs import Program
from flagsplit.flagir.programs.link import link
from flagsplit.flagir.programs.moonshine import read_moonshine

TRANSCRIPT = "Ever tried, ever failed, no matter, try again, fail again, fail better."
RATE_HZ = 16_000

pytestmark = pytest.mark.slow


def pulled(name: str) -> Path:
    try:
        return zoo.pull(name)
    except PeerError as error:
        pytest.skip(f"offline: {error}")


@pytest.fixture(scope="module")
def published() -> dict[str, ir.Model]:
    """Canonical, and floating-point after `program` was made of them."""
    return {name: read_model(pulled(f"moonshine-{name}")) for name in ("encoder", "decoder")}


@pytest.fixture(scope="module")
def program(published: dict[str, ir.Model]) -> Program:
    made = read_moonshine(published["encoder"], published["decoder"], pulled("moonshine-tokenizer").read_bytes())
    assert [float_products(model) for model in published.values()] == [36, 110]
    return made


@pytest.fixture(scope="module")
def audio() -> Array:
    with wave.open(str(pulled("beckett.wav")), "rb") as file:
        return np.frombuffer(file.readframes(file.getnframes()), "<i2")[None].astype(np.float32) / 32768


@pytest.fixture(scope="module")
def hidden(program: Program, audio: Array) -> Array:
    return answers(engine(program.graphs["encode"]), {"audio": audio})["hidden"]


@pytest.fixture(scope="module")
def steps(program: Program) -> Engine:
    return Engine(program.graphs["step"], program.graphs["prefill"])


def greedy(steps: Engine, program: Program, hidden: Array) -> list[int]:
    facts = program.facts
    stream = steps.open(facts.prompt, hidden)
    (logits,) = steps.run([stream], [len(facts.prompt)])
    made: list[int] = []
    for _ in range(facts.most_tokens(len(hidden) / facts.frames_per_s)):
        token = int(logits.argmax())
        if token in facts.stop_tokens:
            break
        made.append(token)
        stream.tokens.append(token)
        (logits,) = steps.run([stream], [1])
    return made


def words_of(data: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(data):
        size, at = data[at], at + 1
        if size >= 128:
            size, at = data[at] * 128 + size - 128, at + 1
        yield data[at : at + size]
        at += size


def test_the_encoder(published: dict[str, ir.Model], audio: Array, hidden: Array) -> None:
    whole = engine(published["encoder"])
    (wanted,) = whole.run(None, {"input_values": audio, "attention_mask": np.ones(audio.shape, np.int64)})
    close(hidden, wanted)


def test_the_transcript(steps: Engine, program: Program, hidden: Array) -> None:
    words = list(words_of(program.tokenizer))
    text = b"".join(words[token] for token in greedy(steps, program, hidden[0])).decode()
    assert text.replace("\N{LOWER ONE EIGHTH BLOCK}", " ").strip() == TRANSCRIPT


def test_prompts_and_steps_with_a_cache(
    published: dict[str, ir.Model], steps: Engine, program: Program, audio: Array, hidden: Array
) -> None:
    """A prompt of several tokens, then single ones: logits as those of the published decoder."""
    decoder = engine(published["decoder"])
    tokens = [1, 12, 4711, 30_000, 7, 99, 1234]
    stream = steps.open(tokens, hidden[0])
    names = [value.name for value in decoder.get_inputs() if value.name.startswith("past_key_values.")]
    caches = dict.fromkeys(names, np.zeros((1, 8, 0, 36), np.float32))
    for first in (True, False, False, False):
        count = 4 if first else 1
        found = answers(
            decoder,
            {
                "input_ids": np.array([tokens[stream.done : stream.done + count]]),
                "encoder_hidden_states": hidden,
                "encoder_attention_mask": np.ones(audio.shape, np.int64),
                "use_cache_branch": np.array([not first]),
                **caches,
            },
        )
        close(steps.run([stream], [count])[0], found["logits"][0, -1])
        caches |= {
            name: found[name.replace("past_key_values", "present")] for name in names if first or ".decoder." in name
        }
    for name in steps.empty:
        close(stream.cache[name], caches[f"past_key_values.{name.replace('.', '.decoder.')}"][0])


def test_streams_in_a_batch(steps: Engine, program: Program, hidden: Array) -> None:
    """Of other lengths and other sounds: the same tokens as alone."""
    sounds = [hidden[0], hidden[0, :150], hidden[0, 200:]]
    alone = [greedy(steps, program, sound) for sound in sounds]
    assert len({len(tokens) for tokens in alone}) > 1
    singles = [steps.open([1, *tokens], sound) for tokens, sound in zip(alone, sounds, strict=True)]
    together = [steps.open([1, *tokens], sound) for tokens, sound in zip(alone, sounds, strict=True)]
    for index, stream in enumerate(together):
        steps.run([stream], [1 + index])
        steps.run([singles[index]], [1 + index])
    while max(len(stream.tokens) - stream.done for stream in together) > 0:
        live = [index for index, stream in enumerate(together) if stream.done < len(stream.tokens)]
        found = steps.run([together[index] for index in live], [1] * len(live), spare=2)
        wanted = np.concatenate([steps.run([singles[index]], [1]) for index in live])
        close(found, wanted)
        assert list(found.argmax(1)) == list(wanted.argmax(1))


def test_other_models_are_refused(published: dict[str, ir.Model], program: Program) -> None:
    encoder = published["encoder"].clone()
    canonicalize(encoder)
    with pytest.raises(ModelError, match="published Moonshine"):
        read_moonshine(encoder, encoder, b"")


def test_a_linked_program(program: Program, steps: Engine, audio: Array, hidden: Array) -> None:
    found = answers(engine(link(program, 100)), {"audio": audio})["tokens"]
    assert found.tolist() == [greedy(steps, program, hidden[0])]
