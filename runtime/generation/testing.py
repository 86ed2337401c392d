"""A step model without a model, for tests of what drives one: its logits are a hash of all that a stream has seen.

So a token that was lost, repeated, or put into another stream's cache changes everything after it. It also checks
that it is used as a step model may be.
"""

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flagsplit.errors import InternalError
from flagsplit.flagir.programs.program import ProgramFacts
from flagsplit.targets.generation.banks import Banks
from flagsplit.targets.generation.step_model import Logits, Room
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


class PlainRoom:
    """A `Room` in which each stream takes what it needs: ten bytes for a token, one for a frame."""

    def __init__(self, limit: float = math.inf, held: Mapping[int, tuple[int, int]] | None = None) -> None:
        self.limit = limit
        self._held = dict(held or {})

    @property
    def kv_bytes(self) -> int:
        """What all streams take."""
        return sum(self.bytes_for(*lengths) for lengths in self._held.values())

    def bytes_for(self, tokens: int, frames: int, rows: int = 1) -> int:
        """What so many streams take."""
        return (10 * tokens + frames) * rows

    @property
    def nbytes(self) -> int:
        """The same."""
        return self.kv_bytes

    def sketch(self) -> "PlainRoom":
        """The same."""
        return PlainRoom(self.limit, self._held)

    def add(self, slot: int, frames: int, tokens: int) -> bool:
        """Begin a stream."""
        return self._hold(slot, tokens, frames)

    def reserve(self, slot: int, tokens: int) -> bool:
        """Let a stream get so long."""
        had, frames = self._held[slot]
        return self._hold(slot, max(had, tokens), frames)

    def copy(self, source: int, target: int) -> bool:
        """Make a stream like another."""
        return self._hold(target, *self._held[source])

    def remove(self, slot: int) -> None:
        """End a stream."""
        self._held.pop(slot, None)

    def _hold(self, slot: int, tokens: int, frames: int) -> bool:
        had, self._held[slot] = self._held.get(slot), (tokens, frames)
        if self.kv_bytes <= self.limit:
            return True
        del self._held[slot]
        if had is not None:
            self._held[slot] = had
        return False


@dataclass(eq=False)
class _Slot:
    seen: bytes
    tokens: list[bytes]


class HashModel:
    """A `StepModel` whose logits are hashes.

    Args:
        slots: how many.
        facts: of the program; by default `tiny_facts()`.
        step_s: how long a step takes.
        stop_share: how often, of 256 times, the stop token is the likeliest.
        fails: called with the contexts of the streams of each step; raises if it says so.
        rooms: what memory the streams take; by default a `PlainRoom`.
    """

    def __init__(
        self,
        slots: int,
        facts: ProgramFacts | None = None,
        *,
        step_s: float = 0.0,
        stop_share: int = 12,
        fails: Callable[[Sequence[bytes]], bool] = lambda _: False,
        rooms: PlainRoom | Banks[Any] | None = None,
    ) -> None:
        self.facts = facts or tiny_facts()
        self.slots = slots
        self.is_closed = False
        self.rooms = rooms or PlainRoom()
        self.most_bytes = 0
        self.steps = 0
        self._step_s = step_s
        self.stop_share = stop_share
        self.fails = fails
        self._open: dict[int, _Slot] = {}

    @property
    def kv_bytes(self) -> int:
        """What all streams hold."""
        return self.rooms.nbytes

    def limit(self, kv_bytes: int) -> None:
        """Let them never take more."""
        self.rooms.limit = kv_bytes

    def room(self) -> Room:
        """A sketch."""
        return self.rooms.sketch()

    def bytes_for(self, tokens: int, frames: int, rows: int = 1) -> int:
        """What so many streams take."""
        return self.rooms.bytes_for(tokens, frames, rows)

    def open(self, slot: int, context: Mapping[str, Array] | None, tokens: int = 1) -> None:
        """Begin a stream."""
        self._check(0 <= slot < self.slots and slot not in self._open, f"slot {slot} is not free")
        arrays = sorted((context or {}).items())
        seen = b"".join(name.encode() + array.tobytes() for name, array in arrays)
        self._hold(self.rooms.add(slot, max((array.shape[1] for _, array in arrays), default=0), tokens))
        self._open[slot] = _Slot(seen, [])

    def reserve(self, slot: int, tokens: int) -> None:
        """Make room."""
        self._check(slot in self._open, f"slot {slot} is not open")
        self._hold(self.rooms.reserve(slot, tokens))

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
            self._hold(self.rooms.reserve(slot, len(self._open[slot].tokens)))
        return np.stack([self._logits(self._open[slot]) for slot in slots])

    def copy(self, source: int, target: int) -> None:
        """Make a slot like another."""
        self._check(source in self._open and source != target, f"slot {source} cannot be copied to {target}")
        held = self._open[source]
        self._hold(self.rooms.copy(source, target))
        self._open[target] = _Slot(held.seen, list(held.tokens))

    def truncate(self, slot: int, tokens: int) -> None:
        """Keep the first tokens."""
        self._check(slot in self._open, f"slot {slot} is not open")
        del self._open[slot].tokens[tokens:]

    def close_slot(self, slot: int) -> None:
        """End a stream."""
        self._check(0 <= slot < self.slots, f"no slot {slot}")
        self._open.pop(slot, None)
        self.rooms.remove(slot)

    def close(self) -> None:
        """Free everything."""
        self.is_closed = True
        self._open.clear()

    @property
    def open_slots(self) -> int:
        """How many streams are open."""
        return len(self._open)

    def _hold(self, there_is_room: bool) -> None:
        self._check(there_is_room, "there is no room")
        self.most_bytes = max(self.most_bytes, self.kv_bytes)

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
