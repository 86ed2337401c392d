"""A step model without a model, for tests of what drives one: its logits are a hash of all that a stream has seen.

So a token that was lost, repeated, or put into another stream's cache changes everything after it. It also checks
that it is used as a step model may be.
"""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from flagsplit.errors import InternalError
from flagsplit.flagir.programs.program import ProgramFacts
from flagsplit.targets.generation.step_model import Logits
from flagsplit.targets.interface import Array

STOP = 0
"""The stop token of `tiny_facts`."""


def tiny_facts(**changes: object) -> ProgramFacts:
    """Facts of a program of 32 tokens, of which the first stops and the second begins."""
    usual: dict[str, object] = {
        "name": "hashed", "kind": "encoder-decoder", "source": "", "license": "MIT", "layers": 1, "heads": 1,
        "kv_heads": 1, "head_size": 2, "width": 2, "vocabulary": 32, "max_positions": 64, "input": "audio",
        "tokenizer": "moonshine", "prompt": (1,), "stop_tokens": (STOP,), "frames_per_s": 1.0,
    }  # fmt: skip
    return ProgramFacts(**{**usual, **changes})  # type: ignore[arg-type]


def hidden(number: int, frames: int = 3, width: int = 2) -> dict[str, Array]:
    """A context like no other number's."""
    return {"hidden": np.full((1, frames, width), number, np.float32)}


@dataclass(eq=False)
class _Slot:
    seen: bytes
    frames: int
    tokens: list[bytes]


class HashModel:
    """A `StepModel` whose logits are hashes.

    Args:
        slots: how many.
        facts: of the program; by default `tiny_facts()`.
        step_s: how long a step takes.
        stop_share: how often, of 256 times, the stop token is the likeliest.
        fails: called with the contexts of the streams of each step; raises if it says so.
    """

    def __init__(
        self,
        slots: int,
        facts: ProgramFacts | None = None,
        *,
        step_s: float = 0.0,
        stop_share: int = 12,
        fails: Callable[[Sequence[bytes]], bool] = lambda _: False,
    ) -> None:
        self.facts = facts or tiny_facts()
        self.slots = slots
        self.is_closed = False
        self.most_bytes = 0
        self.steps = 0
        self._step_s = step_s
        self.stop_share = stop_share
        self.fails = fails
        self._open: dict[int, _Slot] = {}

    def bytes_for(self, tokens: int, frames: int) -> int:
        """Ten for a token, one for a frame."""
        return 10 * tokens + frames

    def open(self, slot: int, context: Mapping[str, Array] | None) -> None:
        """Begin a stream."""
        self._check(0 <= slot < self.slots and slot not in self._open, f"slot {slot} is not free")
        arrays = sorted((context or {}).items())
        seen = b"".join(name.encode() + array.tobytes() for name, array in arrays)
        self._open[slot] = _Slot(seen, max((array.shape[1] for _, array in arrays), default=0), [])

    def step(self, slots: Sequence[int], tokens: Sequence[Array]) -> Logits:
        """Append tokens or rows."""
        self._check(len(set(slots)) == len(slots) == len(tokens) > 0, f"odd slots {slots}")
        self._check(all(slot in self._open for slot in slots), f"some of {slots} are not open")
        if self._step_s:
            time.sleep(self._step_s)
        self.steps += 1
        if self.fails([self._open[slot].seen for slot in slots]):
            raise InternalError("this step fails on purpose")
        for slot, array in zip(slots, tokens, strict=True):
            self._check(len(array) > 0, "no token")
            self._open[slot].tokens += [each.tobytes() for each in array]
        self.most_bytes = max(
            self.most_bytes, sum(self.bytes_for(len(each.tokens), each.frames) for each in self._open.values())
        )
        return np.stack([self._logits(self._open[slot]) for slot in slots])

    def copy(self, source: int, target: int) -> None:
        """Make a slot like another."""
        self._check(source in self._open and source != target, f"slot {source} cannot be copied to {target}")
        held = self._open[source]
        self._open[target] = _Slot(held.seen, held.frames, list(held.tokens))

    def truncate(self, slot: int, tokens: int) -> None:
        """Keep the first tokens."""
        self._check(slot in self._open, f"slot {slot} is not open")
        del self._open[slot].tokens[tokens:]

    def close_slot(self, slot: int) -> None:
        """End a stream."""
        self._check(0 <= slot < self.slots, f"no slot {slot}")
        self._open.pop(slot, None)

    def close(self) -> None:
        """Free everything."""
        self.is_closed = True
        self._open.clear()

    @property
    def open_slots(self) -> int:
        """How many streams are open."""
        return len(self._open)

    def _check(self, is_right: bool, wrong: str) -> None:
        if not is_right or self.is_closed:
            raise InternalError(f"a step model was used wrongly: {wrong}")

    def _logits(self, slot: _Slot) -> Logits:
        count = self.facts.vocabulary
        story = b"|".join((slot.seen, *slot.tokens))
        digest = hashlib.shake_128(story).digest(2 * count + 1)
        logits: Logits = np.frombuffer(digest[: 2 * count], np.uint16).astype(np.float32) / np.float32(8192)
        logits[STOP] = 9 if digest[-1] < self.stop_share else -9
        return logits
