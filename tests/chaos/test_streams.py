"""Token streams over real processes of `flagsplit decode-serve` that are killed while they make tokens."""

import random
import time
from collections.abc import Iterator

import numpy as np
import pytest
from tests.chaos.decoders import Decoders
from tests.targets.generation.programs import Small, small_program

from flagsplit.runtime.generation.client import ClientSettings, StreamClient
from flagsplit.runtime.generation.client_streams import ClientOptions
from flagsplit.runtime.generation.options import GenerationOptions
from flagsplit.runtime.generation.own_parts import SequentialLoop
from flagsplit.runtime.generation.sequential import generate
from flagsplit.runtime.generation.token_stream import TokenStream
from flagsplit.runtime.liveness import LivenessOptions
from flagsplit.targets.generation.ort_step import OrtStepModel
from flagsplit.targets.interface import Array

pytestmark = pytest.mark.slow

_STREAMS, _BURST = 32, 16
_PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Small:
    """One that makes many tokens before it stops."""
    return small_program(tmp_path_factory.mktemp("program"), "moonshine", 5)


@pytest.fixture(scope="module")
def decoders(program: Small, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Decoders]:
    home = {"FLAGSPLIT_HOME": str(tmp_path_factory.getbasetemp() / "home")}
    with Decoders(program.folder, 2, home, "--slots", "4", "--linger-s", "2") as running:
        yield running


def _asked(program: Small, number: int) -> tuple[dict[str, Array], tuple[int, ...], GenerationOptions]:
    context = program.context(number, 3 + number % 5)
    assert context is not None
    prompt = (1, 3 + number % 7)
    drawn = {"temperature": 1.0, "seed": number} if number % 3 == 0 else {}
    return context, prompt, GenerationOptions(max_tokens=28, stop=(), **drawn)  # type: ignore[arg-type]


def _wanted(program: Small) -> list[tuple[int, ...]]:
    model = OrtStepModel(program.folder, 1, 1)
    try:
        asked = (_asked(program, number) for number in range(_STREAMS))
        return [tuple(generate(model, context, prompt, options)) for context, prompt, options in asked]
    finally:
        model.close()


@pytest.mark.parametrize("local", [False, True])
def test_streams_are_whole_whoever_is_killed(program: Small, decoders: Decoders, *, local: bool) -> None:
    wanted, draw = _wanted(program), random.Random(local)
    assert np.mean([len(tokens) for tokens in wanted]) > 10
    machine = ClientOptions(choice="load", liveness=LivenessOptions(0.25, 6), local_after_s=0.1, max_failures=40)
    settings = ClientSettings(deadline_s=_PATIENCE_S, connect_s=20, machine=machine)
    model = OrtStepModel(program.folder, 1, 1)
    own = SequentialLoop(model) if local else None
    with StreamClient(decoders.addresses, decoders.digest, local=own, settings=settings) as client:
        for first in range(0, _STREAMS, _BURST):
            decoders.revive()
            _until_up(client)
            streams = [_ask(client, program, number) for number in range(first, first + _BURST)]
            watched = draw.choice([at for at in range(_BURST // 2) if len(wanted[first + at]) > 20])
            killed = decoders.addresses.index(next(streams[watched]).place.replica)
            victims = [killed, 1 - killed] if local else [killed]
            for index in victims:
                decoders.kill(index)
            found = [stream.result(_PATIENCE_S) for stream in streams]
            assert found == wanted[first : first + _BURST]
            assert all([each.offset for each in stream.made] == list(range(len(stream.made))) for stream in streams)
            assert any(len(set(stream.where)) > 1 for stream in streams)
        assert client.moves["lost"] >= _STREAMS / _BURST
        assert client.live == 0
    model.close()


def _ask(client: StreamClient, program: Small, number: int) -> TokenStream:
    context, prompt, options = _asked(program, number)
    return client.stream(context, options, plan="hidden", prompt=prompt)


def _until_up(client: StreamClient) -> None:
    give_up = time.monotonic() + _PATIENCE_S
    while set(client.replicas.values()) != {"up"}:
        assert time.monotonic() < give_up, client.replicas
        time.sleep(0.01)
