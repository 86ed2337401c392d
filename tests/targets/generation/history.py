"""Step models under random use, against plain numpy."""

import numpy as np
import onnxruntime as ort
from tests.targets.generation.programs import Small, rows_of

from flagsplit.targets.generation.step_model import StepModel
from flagsplit.targets.interface import Array


class History:
    """Random use of a step model, each result compared with a computation of that stream alone."""

    def __init__(self, small: Small, model: StepModel, seed: int) -> None:
        self.small = small
        self.random = np.random.default_rng(seed)
        self.model = model
        self.streams: dict[int, tuple[list[int], dict[str, Array] | None]] = {}
        self.compared = 0

    def act(self) -> None:
        free = [slot for slot in range(self.model.slots) if slot not in self.streams]
        ready = [slot for slot, (tokens, _) in self.streams.items() if len(tokens) < 20]
        action = self.random.choice(["open"] * 3 + ["step"] * 6 + ["close", "copy", "truncate"])
        if action == "open" and free:
            context = self.small.context(int(self.random.integers(1000)), int(self.random.integers(1, 40)))
            self.model.open(free[0], context)
            self.streams[free[0]] = ([], context)
        elif action == "step" and ready:
            self.step([int(each) for each in self.random.permutation(ready)[: self.random.integers(1, len(ready) + 1)]])
        elif action == "close" and self.streams:
            slot = int(self.random.choice(list(self.streams)))
            self.model.close_slot(slot)
            self.model.close_slot(slot)
            del self.streams[slot]
        elif action == "copy" and len(self.streams) > 1:
            source, target = (int(each) for each in self.random.permutation(list(self.streams))[:2])
            target = free[0] if free else target
            self.model.copy(source, target)
            tokens, context = self.streams[source]
            self.streams[target] = (list(tokens), context)
        elif action == "truncate" and self.streams:
            slot = int(self.random.choice(list(self.streams)))
            kept = int(self.random.integers(len(self.streams[slot][0]) + 1))
            self.model.truncate(slot, kept)
            del self.streams[slot][0][kept:]

    def step(self, slots: list[int]) -> None:
        counts = [int(self.random.choice([1, 1, 1, 2, 5])) for _ in slots]
        fed = [self.random.integers(0, self.small.facts.vocabulary, count) for count in counts]
        logits = self.model.step(slots, fed)
        assert logits.shape == (len(slots), self.small.facts.vocabulary)
        for row, slot in enumerate(slots):
            tokens, context = self.streams[slot]
            tokens += [int(token) for token in fed[row]]
            self.compared += 1
            np.testing.assert_allclose(logits[row], self.small.logits(tokens, context), atol=2e-4)  # type: ignore[arg-type]


def check_later_part(small: Small, first: ort.InferenceSession, model: StepModel) -> None:
    """Rows of two streams, in chunks and one by one, give the logits of the whole program."""
    streams = [[1, 5, 6, 7, 8, 3], [4, 2, 9, 9, 9, 1]]
    rows = [rows_of(first, tokens) for tokens in streams]
    for slot in range(2):
        model.open(slot, None)
    for start, end in ((0, 3), (3, 4), (4, 6)):
        logits = model.step([0, 1], [each[start:end] for each in rows])
        for slot, tokens in enumerate(streams):
            np.testing.assert_allclose(logits[slot], small.logits(tokens[:end], None), atol=2e-4)  # type: ignore[arg-type]
