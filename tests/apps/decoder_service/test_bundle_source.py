"""A bundle's plans, served: whatever crosses the cut of a plan, the tokens are those of the sequential loop."""

import re
import runpy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.flagir.models import Array
from tests.flagir.programs import oracle
from tests.flagir.programs.made import greedy, program_of

import flagsplit
from flagsplit.apps.decoder_service.bundle_source import bundle_source, open_source
from flagsplit.apps.decoder_service.program_source import ProgramSource
from flagsplit.apps.decoder_service.serve import DecoderService, DecoderSettings
from flagsplit.apps.groundwork import BuildOptions
from flagsplit.apps.pipeline import build
from flagsplit.errors import ConfigError, InputError, PolicyError
from flagsplit.flagir.frontends.any_model import Source
from flagsplit.flagir.programs import Program
from flagsplit.flagir.programs.split import split_step
from flagsplit.flagir.store import save_all
from flagsplit.runtime.bundle import Bundle
from flagsplit.runtime.generation.client import ClientSettings, StreamClient
from flagsplit.runtime.generation.first_layers import CachedFirstLayers
from flagsplit.runtime.generation.options import GenerationOptions
from flagsplit.runtime.generation.sequential import generate
from flagsplit.splitter.sla import parse_sla
from flagsplit.targets.catalogue import get_target
from flagsplit.targets.generation.ort_step import OrtStepModel
from flagsplit.targets.interface import LoadOptions, StoredArtifact
from flagsplit.transport.security import KeyStore
from flagsplit.transport.zeromq import ZmqChannel

pytestmark = pytest.mark.slow

HOST = LoadOptions(threads=1)
OPTIONS = GenerationOptions(max_tokens=12)


def built(program: Program, folder: Path, sla: Mapping[str, Any] | None = None, **more: Any) -> Bundle:
    """A bundle of two tiers."""
    dims = {"audio": {"samples": 4000}, "text": {"prompt_tokens": 3}}[program.facts.input]
    options = BuildOptions(expected_tokens=6, max_tokens=12, dims=dims)
    path = folder / "program.flagsplit"
    build(Source(program), ["phone", "cloud"], path, sla=parse_sla(sla or {}), options=options, **more)
    return flagsplit.open(path, cache=folder / "cache")


@contextmanager
def served(source: ProgramSource, keys: Path, **client: object) -> Iterator[StreamClient]:
    """A client of a service in this process."""
    channel = ZmqChannel(security=KeyStore(keys).security())
    settings = DecoderSettings(slots=4, threads=1)
    service = DecoderService(source, channel, "tcp://127.0.0.1:0", settings)
    try:
        settled = ClientSettings(keys=keys, connect_s=20)
        with StreamClient([service.streams.address], source.digest, settings=settled, **client) as connected:  # type: ignore[arg-type]
            yield connected
    finally:
        service.stop()


def boundary(bundle: Bundle, plan: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """What crosses to the loop of a plan, after what runs before it."""
    assert bundle.program is not None
    parts, values = bundle.program.plan(plan), dict(inputs)
    for step in parts.before:
        values |= bundle.load(step.tier, step.segment, HOST).run({name: values[name] for name in step.inputs})
    return {tensor.name: values[tensor.name] for tensor in parts.boundary}


def test_every_plan_whose_loop_is_in_the_cloud_gives_the_same_tokens(tmp_path: Path) -> None:
    bundle = built(program_of(oracle.moonshine_like(np.random.default_rng(0)), [1, 4]), tmp_path)
    assert bundle.program is not None
    audio = {"audio": np.random.default_rng(1).standard_normal((1, 4000)).astype(np.float32)}
    hidden = bundle.program.load("encode.onnx", HOST).run(audio)
    model = OrtStepModel(bundle.program.folder, 1, 1, weights=bundle.program.weights)
    wanted = tuple(generate(model, hidden, (), OPTIONS))
    model.close()
    source = bundle_source(bundle, "cloud")
    assert len(source.cuts) >= 2
    assert ("audio",) in source.cuts.values()
    with served(source, tmp_path / "keys") as client:
        streams = {plan: client.stream(boundary(bundle, plan, audio), OPTIONS, plan=plan) for plan in source.cuts}
        assert {plan: stream.result(60) for plan, stream in streams.items()} == dict.fromkeys(source.cuts, wanted)


def test_layers_on_both_sides_give_the_tokens_of_the_whole(tmp_path: Path) -> None:
    program, wanted = decoder()
    first, rest = split_step(program, 1)
    save_all({"first.onnx": first, "rest.onnx": rest}, tmp_path)
    (tmp_path / "program.json").write_bytes(program.facts.to_json())
    source = ProgramSource(
        "cut", "d" * 64, ("phone", "cloud"), program.facts, {"cut": ()}, tmp_path, step="rest.onnx", takes_rows=True
    )
    graph = get_target("ort").load(StoredArtifact(tmp_path, {"": "first.onnx"}, {}, tmp_path / "weights.bin"), "", HOST)
    layers = CachedFirstLayers(graph, program.facts.vocabulary, program.facts.max_positions)
    with served(source, tmp_path / "keys", layers=layers) as client:
        streams = {prompt: client.stream_rows(prompt, OPTIONS, plan="cut") for prompt in wanted}
        assert {prompt: stream.result(60) for prompt, stream in streams.items()} == wanted
        wrong = client.stream_rows((1, 10_000), OPTIONS, plan="cut")
        with pytest.raises(InputError, match="10000"):
            wrong.result(10)
    assert not layers._caches
    graph.close()


def test_the_example_runs_the_first_layers_here(tmp_path: Path) -> None:
    program, wanted = decoder()
    bundle = built(program, tmp_path, {"pins": {"layer.0": "phone", "layer.1": "cloud", "Loop": "phone"}})
    assert bundle.program is not None
    plan = next(name for name, parts in bundle.program.plans.items() if parts.layers)
    with pytest.raises(ConfigError, match=f"name one that divides the layers: --plan {re.escape(plan)}"):
        bundle_source(bundle, "cloud")
    channel = ZmqChannel(security=KeyStore().security())
    service = DecoderService(
        bundle_source(bundle, "cloud", plan), channel, "tcp://127.0.0.1:0", DecoderSettings(slots=1, threads=1)
    )
    answer = runpy.run_path(str(Path(__file__).parents[3] / "examples" / "first_layers.py"))["answer"]
    try:
        found = {
            each: tuple(answer(bundle, plan, service.streams.address, each, OPTIONS.max_tokens)) for each in wanted
        }
    finally:
        service.stop()
    assert found == wanted
    with pytest.raises(SystemExit, match="expected a plan that divides a decoder's layers, came all-phone"):
        next(answer(bundle, "all-phone", "tcp://127.0.0.1:1", (1,), 1))


def test_a_decoder_without_an_encoder_begins_with_the_prompt(tmp_path: Path) -> None:
    program, wanted = decoder()
    bundle = built(program, tmp_path)
    source = bundle_source(bundle, "cloud")
    (plan,) = source.cuts
    with served(source, tmp_path / "keys") as client:
        streams = {prompt: client.stream({}, OPTIONS, plan=plan, prompt=prompt) for prompt in wanted}
        assert {prompt: stream.result(60) for prompt, stream in streams.items()} == wanted


def decoder() -> tuple[Program, dict[tuple[int, ...], tuple[int, ...]]]:
    """One of several layers, and what it says after some prompts."""
    for seed in range(99):
        made = oracle.llama_like(np.random.default_rng(seed))
        program = program_of(made, [1, 4])
        prompts = [(1, 5, 7), (4,), (9, 8, 7, 6)]
        wanted = {each: tuple(greedy(made, program.facts, each, None, OPTIONS.max_tokens)) for each in prompts}
        if program.facts.layers > 1 and max(map(len, wanted.values())) > 5:
            return program, wanted
    raise AssertionError


def test_what_a_bundle_cannot_serve_is_said(tmp_path: Path) -> None:
    bundle = built(program_of(oracle.moonshine_like(np.random.default_rng(0)), [1, 4]), tmp_path)
    with pytest.raises(PolicyError, match="edge"):
        open_source(str(bundle.path), "edge")
    with pytest.raises(PolicyError, match="nothing"):
        bundle_source(bundle, "cloud", "nothing")
    with pytest.raises(ConfigError, match="runs on phone"):
        bundle_source(bundle, "cloud", "all-phone")
