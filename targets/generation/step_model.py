"""What runs the steps of a generative program, for the loop that wants its tokens.

A step model owns the caches of its streams, one stream a slot. Which stream steps when is not decided here but in
`flagsplit.runtime.generation`; what a program is, in `flagsplit.flagir.programs`.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from flagsplit.flagir.programs.program import ProgramFacts
from flagsplit.targets.interface import Array

Logits = NDArray[np.float32]
"""What a step gives: [slots, vocabulary]."""


class Room(Protocol):
    """The memory of a step model's caches: what is there, and what a change would make of it.

    A sketch of it allocates nothing, and says of each change whether the model, asked for the same changes in the same
    order, has the room. A change for which there is none is not made.
    """

    @property
    def kv_bytes(self) -> int:
        """What caches take at most while they are changed, never over the limit: all of them, one array twice."""

    def sketch(self) -> "Room":
        """The same, to try changes."""

    def add(self, slot: int, frames: int, tokens: int) -> bool:
        """Begin a stream with room for so many tokens, whose context has so many frames."""

    def reserve(self, slot: int, tokens: int) -> bool:
        """Make room for an open stream to get so long."""

    def copy(self, source: int, target: int) -> bool:
        """Make a stream, open or free, like another."""

    def remove(self, slot: int) -> None:
        """End a stream, if it is open. What others have room for stays."""


class StepModel(Protocol):
    """A program's steps with `slots` caches. One thread uses it; a slot's results do not depend on the other slots.

    A stream's length is the number of tokens (or rows) that were stepped in its slot. Caches never take more than the
    limit; what would need more raises InternalError, so ask a sketch of the room first.
    """

    @property
    def facts(self) -> ProgramFacts:
        """What the program is."""

    @property
    def slots(self) -> int:
        """How many streams can be open at once; slots are numbered from 0."""

    @property
    def kv_bytes(self) -> int:
        """What all caches hold now, those of streams that ended included while they are kept."""

    def limit(self, kv_bytes: int) -> None:
        """Let all caches together never take more, also while they grow; without this there is no limit.

        What is kept for streams to come is freed if it takes more; open streams stay as they are.
        """

    def room(self) -> Room:
        """A sketch of what the caches take now."""

    def bytes_for(self, tokens: int, frames: int, rows: int = 1) -> int:
        """The least limit under which so many streams of such a length run while no other is open; grows with each."""

    def open(self, slot: int, context: Mapping[str, Array] | None, tokens: int = 1) -> None:
        """Begin a stream of no tokens in a free slot.

        Args:
            slot: which; it must be free.
            context: what the steps look at beside tokens, such as {"hidden": float32 [1, frames, width]}; None if the
                program has nothing of the kind.
            tokens: how many to make room for.

        Raises:
            InputError: the context has the wrong names, element types or shapes.
        """

    def reserve(self, slot: int, tokens: int) -> None:
        """Make room for a stream to get so long; a step does that too, for its own tokens."""

    def step(self, slots: Sequence[int], tokens: Sequence[Array]) -> Logits:
        """Append tokens to streams.

        Args:
            slots: of open streams, each once.
            tokens: for each slot at least one: int64 [n]; or for the later part of a split program, whose earlier part
                ran elsewhere, rows float32 [n, width].

        Returns:
            Logits float32 [len(slots), vocabulary] after the last token of each; valid until the next step, and the
            caller may change them.

        Raises:
            InputError: a token is not of the vocabulary, rows are of another width, or a stream gets too long.
        """

    def copy(self, source: int, target: int) -> None:
        """Make the stream in slot `target`, open or free, like that in `source`, which stays."""

    def truncate(self, slot: int, tokens: int) -> None:
        """Keep only the first so many tokens of a stream."""

    def close_slot(self, slot: int) -> None:
        """End a stream and free its slot; a second call does nothing."""

    def close(self) -> None:
        """Free everything; a second call does nothing."""
