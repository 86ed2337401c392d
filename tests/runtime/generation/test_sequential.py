"""The sequential loop: it goes on where it was, frees its slot whatever happens, and says what cannot be."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from flagsplit.errors import InputError, InternalError
from flagsplit.runtime.generation.options import GenerationOptions
from flagsplit.runtime.generation.sequential import generate
from flagsplit.runtime.generation.testing import STOP, HashModel, hidden, tiny_facts
from flagsplit.targets.generation.step_model import Logits
from flagsplit.targets.interface import Array

DRAWN = GenerationOptions(max_tokens=20, temperature=1.0, seed=5)


@pytest.mark.parametrize("options", [GenerationOptions(max_tokens=20), DRAWN])
def test_it_goes_on_where_another_stopped(options: GenerationOptions) -> None:
    whole = list(generate(HashModel(1, stop_share=0), hidden(1), options=options))
    assert len(whole) == 20
    for count in (1, 7, 20):
        model = HashModel(1, stop_share=0)
        rest = list(generate(model, hidden(1), (1, *whole[:count]), options, generated=count))
        assert rest == whole[count:]
        assert model.open_slots == 0


def test_the_stop_token_is_not_given() -> None:
    tokens = list(generate(HashModel(1, stop_share=40), hidden(2)))
    assert STOP not in tokens
    assert len(tokens) < 63


def test_who_stops_asking_frees_the_slot() -> None:
    model = HashModel(1, stop_share=0)
    tokens = generate(model, hidden(3))
    assert model.open_slots == 0, "nothing happens before it is asked"
    next(tokens)
    assert model.open_slots == 1
    tokens.close()  # type: ignore[attr-defined]
    assert model.open_slots == 0
    assert next(generate(model, hidden(3))) is not None


def test_what_cannot_be_is_said_at_once() -> None:
    model = HashModel(2)
    with pytest.raises(InputError, match="expected hidden states, came none"):
        generate(model, None)
    with pytest.raises(InputError, match="expected tokens from 0 to 31, came 40"):
        generate(model, hidden(0), (40,))
    with pytest.raises(InputError, match="expected at most 2 beams"):
        generate(model, hidden(0), options=GenerationOptions(beams=3))
    with pytest.raises(InputError, match="the program has no prompt"):
        generate(HashModel(1, tiny_facts(kind="decoder-only", input="text", prompt=())), None)


class Broken(HashModel):
    """A model that gives no numbers."""

    def step(self, slots: Sequence[int], tokens: Sequence[Array]) -> Logits:
        return np.full_like(super().step(slots, tokens), np.nan)


def test_logits_that_are_no_numbers() -> None:
    model = Broken(1)
    with pytest.raises(InternalError, match="program hashed gave logits that are no finite numbers"):
        list(generate(model, hidden(0)))
    assert model.open_slots == 0


def test_a_search_frees_its_slots_even_if_it_fails() -> None:
    model = HashModel(4, stop_share=0, fails=lambda _: model.steps == 3)
    with pytest.raises(InternalError, match="on purpose"):
        list(generate(model, hidden(0), options=GenerationOptions(beams=3)))
    assert model.open_slots == 0
    assert len(list(generate(model, hidden(0), options=GenerationOptions(beams=3, max_tokens=5)))) == 5


class FailsAtFirst(HashModel):
    """A model that has no memory for its first stream, and says so when it has begun it."""

    def open(self, slot: int, context: Mapping[str, Array] | None, tokens: int = 1) -> None:
        super().open(slot, context, tokens)
        if not self.steps:
            self.steps = 1
            raise InputError("no memory")


def test_a_stream_that_cannot_be_opened_leaves_its_slot_to_the_next() -> None:
    model = FailsAtFirst(1)
    with pytest.raises(InputError, match="no memory"):
        next(generate(model, hidden(1)))
    assert next(generate(model, hidden(1))) is not None
