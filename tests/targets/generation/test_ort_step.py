"""Steps by ONNX Runtime against plain numpy, whatever the other streams do; and the cache against plain lists."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.flagir.programs import oracle
from tests.targets.generation.history import History, check_later_part
from tests.targets.generation.meter import Meter
from tests.targets.generation.programs import Small, save_later_part, small_program
from tests.targets.generation.shared_steps import outputs_in_shared_steps

from flagsplit.errors import BundleError, ConfigError, InputError, InternalError
from flagsplit.runtime.generation.admission import SchedulerSettings
from flagsplit.runtime.generation.events import Generate
from flagsplit.runtime.generation.options import GenerationOptions
from flagsplit.runtime.generation.sequential import generate
from flagsplit.targets.generation.ort_step import OrtStepModel
from flagsplit.targets.generation.slot_cache import SlotCache

CASES = [(family, seed) for family in oracle.FAMILIES for seed in range(3)]
Make = Callable[[str, int], Small]
KINDS: list[dict[str, float]] = [{}, {"temperature": 0.7}, {"beams": 3}]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    made: dict[tuple[str, int], Small] = {}

    def program(family: str, seed: int) -> Small:
        if (family, seed) not in made:
            made[family, seed] = small_program(tmp_path_factory.mktemp("program"), family, seed)
        return made[family, seed]

    return program


@pytest.mark.parametrize(("family", "seed"), CASES)
def test_streams_are_independent_of_each_other(make: Make, family: str, seed: int) -> None:
    small = make(family, seed)
    history = History(small, OrtStepModel(small.folder, 5, threads=1), seed)
    for _ in range(80):
        history.act()
    assert history.compared > 40


@pytest.mark.parametrize("family", list(oracle.FAMILIES))
def test_streams_that_change_their_places(make: Make, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were there hardly any weights to read, streams would part and meet all the time."""
    monkeypatch.setattr("flagsplit.targets.generation.ort_step._weights_bytes", lambda _: 2000)
    small = make(family, 2)
    model = OrtStepModel(small.folder, 6, threads=1)
    history, most = History(small, model, 7), 0
    for _ in range(150):
        history.act()
        most = max(most, len(model._banks.banks))
    assert most > 1


def test_rows_of_a_program_that_is_cut_between_its_layers(make: Make, tmp_path: Path) -> None:
    small = make("llama", 1)
    first = save_later_part(small, 1, tmp_path)
    model = OrtStepModel(tmp_path, 2, step="later.onnx")
    check_later_part(small, first, model)
    with pytest.raises(InputError, match=r"expected rows float32 \[n, 16\], came int64"):
        model.step([0], [np.array([1])])


def test_a_long_context_is_taken_in_pieces(make: Make) -> None:
    small = make("moonshine", 0)
    model = OrtStepModel(small.folder, 1)
    for frames in (127, 128, 300):
        context = small.context(frames, frames)
        model.open(0, context)
        logits = model.step([0], [np.array([1, 4])])
        np.testing.assert_allclose(logits[0], small.logits([1, 4], context), atol=2e-4)  # type: ignore[arg-type]
        model.close_slot(0)


def test_padding_stays_within_the_positions_that_there_are(make: Make) -> None:
    """One stream is as long as can be and idles between two that step; others are padded to a longer chunk."""
    small = make("whisper", 0)
    model = OrtStepModel(small.folder, 3)
    contexts = [small.context(slot, 4) for slot in range(3)]
    for slot in range(3):
        model.open(slot, contexts[slot])
    long = [3] * 32
    model.step([1], [np.array(long)])
    model.step([0, 2], [np.array(long[:20])] * 2)
    model.step([0, 2], [np.array([5] * 9)] * 2)
    logits = model.step([0], [np.array([6] * 3)])
    expected = small.logits([3] * 20 + [5] * 9 + [6] * 3, contexts[0])
    np.testing.assert_allclose(logits[0], expected, atol=2e-4)  # type: ignore[arg-type]


@pytest.mark.parametrize("weights", [0, 5000, 1 << 30])
@pytest.mark.parametrize("family", list(oracle.FAMILIES))
def test_shared_steps_give_what_the_sequential_loop_gives(
    make: Make, family: str, weights: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within a budget in which the widest stream just fits; keys and values of contexts count like those of tokens."""
    monkeypatch.setattr("flagsplit.targets.generation.ort_step._weights_bytes", lambda _: weights)
    small, meter = make(family, 1), Meter()
    meter.watch(monkeypatch)
    asked = [
        Generate(
            str(number),
            "ab"[number % 2],
            small.context(number, 3 + 5 * number),
            (1, *range(3, 3 + number % 5)),
            options=GenerationOptions(max_tokens=20, seed=number, **KINDS[number % 3]),  # type: ignore[arg-type]
        )
        for number in range(9)
    ]
    model = OrtStepModel(small.folder, 6, threads=1)
    budget = model.bytes_for(26, 43, 3)
    found = outputs_in_shared_steps(model, asked, SchedulerSettings(budget, step_tokens=6))
    assert budget / 2 < meter.most <= budget
    assert model.kv_bytes == meter.now
    for each, tokens in zip(asked, found, strict=True):
        one = OrtStepModel(small.folder, each.options.beams, threads=1)
        assert tokens == list(generate(one, each.context, each.tokens, each.options)), each.stream_id
    assert any(found)


def test_what_cannot_be_stepped(make: Make) -> None:
    small = make("moonshine", 0)
    model = OrtStepModel(small.folder, 2)
    with pytest.raises(InputError, match=r"expected hidden states float32 \[1, frames, 12\], came none"):
        model.open(0, None)
    with pytest.raises(InputError, match=r"came float64 \[1, 2, 12\]"):
        model.open(0, {"hidden": np.zeros((1, 2, 12))})
    with pytest.raises(InternalError, match="slot 0 has no stream"):
        model.step([0], [np.array([1])])
    model.open(0, small.context(0, 4))
    with pytest.raises(InternalError, match="slot 0 is open already"):
        model.open(0, small.context(0, 4))
    with pytest.raises(InternalError, match="there are only 2"):
        model.open(2, small.context(0, 4))
    for tokens in (np.array([19]), np.array([-1]), np.array([], np.int64), np.array([1.5])):
        with pytest.raises(InputError, match="expected tokens below 19"):
            model.step([0], [tokens])
    with pytest.raises(InputError, match="a stream has at most 32 tokens, came 33 more than 0"):
        model.step([0], [np.ones(33, np.int64)])
    model.close()
    model.close()
    text = OrtStepModel(make("llama", 0).folder, 1)
    with pytest.raises(InputError, match="takes no context, came hidden"):
        text.open(0, small.context(0, 4))


def test_what_cannot_be_loaded(make: Make, tmp_path: Path) -> None:
    folder = make("llama", 0).folder
    with pytest.raises(ConfigError, match="slots: expected 1 or more"):
        OrtStepModel(folder, 0)
    with pytest.raises(ConfigError, match="has no CUDAExecutionProvider; install onnxruntime-gpu"):
        OrtStepModel(folder, 1, provider="cuda")
    with pytest.raises(BundleError, match=r"which has no program\.json"):
        OrtStepModel(tmp_path)
    (tmp_path / "program.json").write_bytes((folder / "program.json").read_bytes())
    (tmp_path / "step.onnx").write_bytes(b"damaged")
    with pytest.raises(BundleError, match=r"cannot load step\.onnx"):
        OrtStepModel(tmp_path)


def test_the_cache_reads_in_place_and_is_no_longer_than_its_streams(make: Make) -> None:
    small = make("moonshine", 0)
    model = OrtStepModel(small.folder, 4)
    for slot, frames in enumerate((100, 3, 3)):
        model.open(slot, small.context(slot, frames))
    (bank,) = model._banks.banks
    assert bank.cache.rows([0, 1, 2]) == [0, 1, 2]
    before = bank.cache.version
    for _ in range(10):
        model.step([0, 1, 2], [np.array([3])] * 3)
    assert bank.cache.version == before, "nothing was replaced"
    assert all(np.shares_memory(bank._held[name], array) for name, array in bank.cache.past.items())
    assert all(np.shares_memory(bank._held[name], array) for name, array in bank.cache.cross.items())
    model.close_slot(0)
    assert bank.cache.rows([2, 1]) == [0, 1]
    assert model.bytes_for(17, 0) == 2 * model.bytes_for(16, 0) == 2 * model.bytes_for(1, 0)


ACTIONS = st.tuples(
    st.sampled_from(["add", "append", "remove", "copy", "truncate"]), st.integers(0, 3), st.integers(0, 40)
)


@settings(max_examples=60, deadline=None)
@given(st.lists(ACTIONS, max_size=40))
def test_the_cache_against_lists(actions: list[tuple[str, int, int]]) -> None:
    cache = SlotCache(4, {"past": (2, 3)}, {"cross": (1, 2)})
    held: dict[int, tuple[list[float], list[float]]] = {}
    value = 0.0
    for action, slot, size in actions:
        value += 1
        if action == "add" and slot not in held:
            context = [value + frame / 64 for frame in range(size)]
            array = np.array(context, np.float32).reshape(1, 1, -1, 1).repeat(2, 3)
            row, middle = cache.add(slot, size), size // 2
            cache.fill(row, middle, {"cross": array[:, :, middle:]})
            cache.fill(row, 0, {"cross": array[:, :, :middle]})
            held[slot] = ([], context)
        elif action == "append" and slot in held:
            count = 1 + size % 5
            new = [value + token / 64 for token in range(count)]
            cache.reserve(len(held[slot][0]) + count)
            array = np.array(new, np.float32).reshape(1, 1, -1, 1).repeat(2, 1).repeat(3, 3)
            cache.append(cache.rows([slot]), [0], [count], {"past": array})
            held[slot][0].extend(new)
        elif action == "remove":
            cache.remove(slot)
            held.pop(slot, None)
        elif action == "copy" and slot in held and size % 4 != slot:
            cache.copy(slot, size % 4)
            held[size % 4] = (list(held[slot][0]), held[slot][1])
        elif action == "truncate" and slot in held:
            cache.truncate(slot, size)
            del held[slot][0][size:]
        assert sorted(cache.rows(list(held))) == list(range(len(held)))
        for each, (tokens, frames) in held.items():
            (row,) = cache.rows([each])
            assert cache.lengths[row] == len(tokens)
            assert cache.frames[row] == len(frames)
            assert (cache.past["past"][row, :, : len(tokens)] == np.array(tokens, np.float32)[None, :, None]).all()
            assert (cache.cross["cross"][row, 0, : len(frames), 0] == np.array(frames, np.float32)).all()
