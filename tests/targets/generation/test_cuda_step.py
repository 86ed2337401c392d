"""Steps by PyTorch, here on the CPU, against plain numpy; what a GPU makes of them needs one."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.flagir.programs import oracle
from tests.targets.generation.history import History, check_later_part
from tests.targets.generation.meter import Meter
from tests.targets.generation.programs import save_later_part, small_program
from tests.targets.generation.shared_steps import outputs_in_shared_steps

from flagsplit.errors import ConfigError, InputError
from flagsplit.flagir.programs.store import FACTS_NAME
from flagsplit.runtime.generation.admission import SchedulerSettings
from flagsplit.runtime.generation.events import Generate
from flagsplit.runtime.generation.options import GenerationOptions
from flagsplit.runtime.generation.sequential import generate
from flagsplit.targets.generation.cuda_step import CudaStepModel
from flagsplit.targets.generation.ort_step import OrtStepModel

torch = pytest.importorskip("torch", reason="torch is not installed", exc_type=ImportError)


@pytest.mark.slow
@pytest.mark.parametrize("family", list(oracle.FAMILIES))
def test_streams_are_independent_of_each_other(tmp_path: Path, family: str) -> None:
    small = small_program(tmp_path, family, 1)
    history = History(small, CudaStepModel(tmp_path, 5, "fp32", "cpu"), 1)
    for _ in range(24):
        history.act()
    assert history.compared > 10


@pytest.mark.slow
def test_it_gives_the_tokens_of_onnx_runtime(tmp_path: Path) -> None:
    small = small_program(tmp_path, "whisper", 0)
    wanted = GenerationOptions(max_tokens=12)
    models = (OrtStepModel(tmp_path, 2), CudaStepModel(tmp_path, 2, "fp32", "cpu"))
    for seed in range(3):
        first, second = (list(generate(model, small.context(seed, 9), (1, 3, 4), wanted)) for model in models)
        assert first == second


@pytest.mark.slow
def test_caches_never_take_more_than_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One stream is long, another wide: each fits alone, both together do not."""
    small, meter = small_program(tmp_path, "moonshine", 1), Meter()
    (tmp_path / FACTS_NAME).write_bytes(replace(small.facts, max_positions=100).to_json())
    plain = CudaStepModel._zeros
    monkeypatch.setattr(CudaStepModel, "_zeros", lambda self, shape: meter.counted(plain(self, shape)))
    sizes = [(70, 20), (3, 70), (3, 3)]
    asked = [
        Generate(str(at), "a", small.context(at, frames), (1, 3, 4), options=GenerationOptions(max_tokens=most))
        for at, (frames, most) in enumerate(sizes)
    ]
    model = CudaStepModel(tmp_path, 3, "fp32", "cpu")
    budget = max(model.bytes_for(3 + most, frames) for frames, most in sizes)
    found = outputs_in_shared_steps(model, asked, SchedulerSettings(budget, step_tokens=6))
    assert budget / 2 < meter.most <= budget < model.bytes_for(73, 70)
    assert model.kv_bytes == meter.now
    one = OrtStepModel(tmp_path, 1)
    assert found == [list(generate(one, each.context, each.tokens, each.options)) for each in asked]


@pytest.mark.slow
def test_prompts_fill_caches_to_the_end_and_not_beyond(tmp_path: Path) -> None:
    small = small_program(tmp_path, "llama", 1)
    (tmp_path / FACTS_NAME).write_bytes(replace(small.facts, max_positions=64).to_json())
    model = CudaStepModel(tmp_path, 3, "fp32", "cpu")
    tokens = np.random.default_rng(2).integers(0, small.facts.vocabulary, (3, 64))
    held = [0, 0, 0]
    for slot in range(3):
        model.open(slot, None)
    for counts in ((50, 3, 1), (7, 33, 40), (7, 28, 23)):
        logits = model.step([0, 1, 2], [tokens[slot, held[slot] : held[slot] + counts[slot]] for slot in range(3)])
        held = [before + count for before, count in zip(held, counts, strict=True)]
        for slot in range(3):
            expected = small.logits(tokens[slot, : held[slot]].tolist(), None)
            np.testing.assert_allclose(logits[slot], expected, atol=2e-4)  # type: ignore[arg-type]
    assert held == [64, 64, 64]
    assert model._cache.capacity == (64, 0)


@pytest.mark.slow
def test_half_precision_is_near(tmp_path: Path) -> None:
    small = small_program(tmp_path, "moonshine", 0)
    model = CudaStepModel(tmp_path, 2, "bf16", "cpu")
    context = small.context(0, 70)
    model.open(1, context)
    logits = model.step([1], [np.array([1, 5, 6])])
    expected = small.logits([1, 5, 6], context)
    assert np.abs(logits[0] - expected).max() < 0.1 * np.abs(expected).max()
    assert model.bytes_for(65, 64) == model.bytes_for(128, 1) == model.bytes_for(128, 1, 2)
    model.close()
    model.close()


@pytest.mark.slow
def test_what_cannot_be(tmp_path: Path) -> None:
    small = small_program(tmp_path, "llama", 0)
    with pytest.raises(ConfigError, match="slots: expected 1 or more"):
        CudaStepModel(tmp_path, 0, device="cpu")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="CUDA"):
            CudaStepModel(tmp_path, 1)
    model = CudaStepModel(tmp_path, 1, "fp32", "cpu")
    with pytest.raises(InputError, match="takes no context, came hidden"):
        model.open(0, {"hidden": np.zeros((1, 1, 1), np.float32)})
    model.open(0, None)
    with pytest.raises(InputError, match=f"expected tokens below {small.facts.vocabulary}"):
        model.step([0], [np.array([small.facts.vocabulary])])
    with pytest.raises(InputError, match="before streams are open"):
        model.warm_up(8, 8)


@pytest.mark.slow
def test_graphs_are_made_before_they_are_needed(tmp_path: Path) -> None:
    small_program(tmp_path, "llama", 0)
    model = CudaStepModel(tmp_path, 3, "fp32", "cpu")
    model.warm_up(20, 0)
    before = set(model._graphs)
    for slot in range(3):
        model.open(slot, None)
        model.step(list(range(slot + 1)), [np.array([3])] * (slot + 1))
    assert set(model._graphs) == before


@pytest.mark.slow
@pytest.mark.parametrize("family", list(oracle.FAMILIES))
def test_a_step_is_lowered_once_for_caches_of_any_length(tmp_path: Path, family: str) -> None:
    small = small_program(tmp_path, family, 0)
    model = CudaStepModel(tmp_path, 2, "fp32", "cpu")
    model.warm_up(1, 1)
    before = set(model._lowered)
    context = small.context(0, 150)
    model.open(0, context)
    tokens = [number % small.facts.vocabulary for number in range(small.facts.max_positions)]
    for token in tokens:
        logits = model.step([0], [np.array([token])])
    assert set(model._lowered) == before
    expected = np.asarray(small.logits(tokens, context), np.float64)
    np.testing.assert_allclose(logits[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_rows_of_a_program_that_is_cut_between_its_layers(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    small = small_program(whole, "llama", 1)
    first = save_later_part(small, 1, parts)
    check_later_part(small, first, CudaStepModel(parts, 2, "fp32", "cpu", step="later.onnx"))


@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize("family", list(oracle.FAMILIES))
def test_a_stream_is_the_same_to_the_bit_in_any_company(tmp_path: Path, family: str, precision: str) -> None:
    small = small_program(tmp_path, family, 1)
    model = CudaStepModel(tmp_path, 6, precision, "cuda")  # type: ignore[arg-type]
    random = np.random.default_rng(4)
    tokens = random.integers(0, small.facts.vocabulary, (6, 30))
    alone = []
    for at in range(6):
        model.open(0, small.context(at, 9 + 30 * at))
        alone.append([model.step([0], [tokens[at, :1]])[0].copy()])
        alone[at] += [model.step([0], [tokens[at, place : place + 1]])[0].copy() for place in range(1, 30)]
        model.close_slot(0)
    for at in range(6):
        model.open(at, small.context(at, 9 + 30 * at))
    given = [0] * 6
    while any(count < 30 for count in given):
        slots = [at for at in range(6) if given[at] < 30 and random.random() < 0.7]
        if not slots:
            continue
        chunks = [min(int(random.choice([1, 1, 2, 7, 20])), 30 - given[at]) for at in slots]
        logits = model.step(slots, [tokens[at, given[at] : given[at] + n] for at, n in zip(slots, chunks, strict=True)])
        for row, at, count in zip(logits, slots, chunks, strict=True):
            given[at] += count
            assert (row == alone[at][given[at] - 1]).all(), (at, given[at], count)
    model.close()
