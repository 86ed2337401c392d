"""Token streams over real processes of `flagsplit decode-serve` that are killed, or told to end, in the middle."""

import random
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from tests.chaos.decoders import Decoders
from tests.flagir.programs import oracle
from tests.flagir.programs.made import program_of

from flagsplit.flagir.programs import save_program
from flagsplit.runtime.generation.client import ClientSettings, StreamClient
from flagsplit.runtime.generation.client_streams import ClientOptions
from flagsplit.runtime.generation.options import GenerationOptions
from flagsplit.runtime.generation.own_parts import SequentialLoop
from flagsplit.runtime.generation.sequential import generate
from flagsplit.runtime.liveness import LivenessOptions
from flagsplit.targets.generation.ort_step import OrtStepModel
from flagsplit.targets.interface import Array

pytestmark = pytest.mark.slow

_STREAMS, _BURST = 20, 10
_PATIENCE_S = 60.0


@dataclass(frozen=True)
class Asked:
    """One stream, and what it must give."""

    tensors: dict[str, Array]
    prompt: tuple[int, ...]
    options: GenerationOptions
    wanted: tuple[int, ...]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program whose streams take a while: nothing stops them but their lengths."""
    made = oracle.moonshine_like(np.random.default_rng(5))
    folder = tmp_path_factory.mktemp("program")
    save_program(program_of(made, [1, 4], max_positions=400, stop_tokens=(0,), suppressed=(0,)), folder)
    return folder


@pytest.fixture(scope="module")
def asked(folder: Path) -> list[Asked]:
    """Some greedy, some drawn."""
    model = OrtStepModel(folder, 1, 1)
    found = []
    for number in range(_STREAMS):
        numbers = np.random.default_rng(number).standard_normal((1, 3 + number % 5, model.facts.width))
        tensors: dict[str, Array] = {"hidden": numbers.astype(np.float32)}
        prompt = (1, 3 + number % 7)
        options = GenerationOptions(max_tokens=200, temperature=float(number % 2), seed=number)
        found.append(Asked(tensors, prompt, options, tuple(generate(model, tensors, prompt, options))))
    model.close()
    return found


@pytest.fixture(scope="module")
def decoders(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Decoders]:
    home = {"FLAGSPLIT_HOME": str(tmp_path_factory.getbasetemp() / "home")}
    with Decoders(folder, 2, home, "--slots", "4", "--linger-s", "2", "--drain-s", "0.01") as running:
        yield running


@pytest.mark.parametrize("local", [False, True])
def test_streams_are_whole_whoever_is_killed(
    folder: Path, asked: list[Asked], decoders: Decoders, *, local: bool
) -> None:
    """With a loop of its own a client goes on while both are away; else one is killed, then one told to end."""
    draw = random.Random(local)
    machine = ClientOptions(choice="load", liveness=LivenessOptions(0.25, 6), local_after_s=0.1, max_failures=40)
    settings = ClientSettings(deadline_s=_PATIENCE_S, connect_s=20, machine=machine)
    model = OrtStepModel(folder, 1, 1)
    own = SequentialLoop(model) if local else None
    moved = list[bool]()
    with StreamClient(decoders.addresses, decoders.digest, local=own, settings=settings) as client:
        for first in range(0, _STREAMS, _BURST):
            decoders.revive()
            _until_up(client)
            burst = asked[first : first + _BURST]
            streams = [client.stream(each.tensors, each.options, plan="hidden", prompt=each.prompt) for each in burst]
            begun = next(streams[draw.randrange(4)])
            ended = decoders.addresses.index(begun.place.replica)
            if first and not local:
                assert decoders.drain(ended) == 0
            for index in [ended, 1 - ended] if local else [ended]:
                decoders.kill(index)
            assert [stream.result(_PATIENCE_S) for stream in streams] == [each.wanted for each in burst]
            assert all([each.offset for each in stream.made] == list(range(len(stream.made))) for stream in streams)
            moved += [len(set(stream.where)) > 1 for stream in streams]
        assert any(moved)
        assert client.moves["lost"] > 0
        assert client.live == 0
    model.close()


def test_a_frozen_service_is_left_and_used_again(asked: list[Asked], decoders: Decoders) -> None:
    machine = ClientOptions(choice="load", liveness=LivenessOptions(0.25, 6))
    settings = ClientSettings(deadline_s=_PATIENCE_S, connect_s=20, machine=machine)
    decoders.revive()
    with StreamClient(decoders.addresses, decoders.digest, settings=settings) as client:
        _until_up(client)
        streams = [client.stream(each.tensors, each.options, plan="hidden", prompt=each.prompt) for each in asked]
        frozen = decoders.replicas[decoders.addresses.index(next(streams[0]).place.replica)].process
        frozen.send_signal(signal.SIGSTOP)
        try:
            assert [stream.result(_PATIENCE_S) for stream in streams] == [each.wanted for each in asked]
            assert client.moves["silent"] > 0
        finally:
            frozen.send_signal(signal.SIGCONT)
        _until_up(client)


def _until_up(client: StreamClient) -> None:
    give_up = time.monotonic() + _PATIENCE_S
    while set(client.replicas.values()) != {"up"}:
        assert time.monotonic() < give_up, client.replicas
        time.sleep(0.01)
