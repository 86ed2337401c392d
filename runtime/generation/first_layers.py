"""The first layers of a decoder that is cut between its layers, on the side that has the text; see `own_parts.py`."""

import threading
from dataclasses import dataclass, field

import numpy as np

from flagsplit.errors import InputError
from flagsplit.targets.interface import Array, Executable, TensorSpec

ROWS = "rows"


@dataclass
class _Cache:
    """Keys and values of one stream so far, float32 [1, kv_heads, length, head_size]."""

    length: int = 0
    arrays: dict[str, Array] = field(default_factory=dict)


class CachedFirstLayers:
    """Runs the first part of a cut step graph, with a cache for each stream.

    Args:
        graph: the first part, in slot form: from `tokens` to `rows`; its owner closes it.
        vocabulary: how many tokens there are.
        max_positions: how long a stream may get.
    """

    def __init__(self, graph: Executable, vocabulary: int, max_positions: int) -> None:
        self._graph, self._vocabulary, self._max_positions = graph, vocabulary, max_positions
        self._inputs = {spec.name: spec for spec in graph.inputs}
        self._caches: dict[int, _Cache] = {}
        self._lock = threading.Lock()

    def rows(self, rid: int, position: int, tokens: tuple[int, ...]) -> Array:
        """See `own_parts.FirstLayers`."""
        odd = next((token for token in tokens if not 0 <= token < self._vocabulary), None)
        if odd is not None:
            raise InputError(f"expected tokens below {self._vocabulary}, came {odd}")
        if position + len(tokens) > self._max_positions:
            raise InputError(f"a stream has at most {self._max_positions} tokens, this one would get longer")
        with self._lock:
            cache = self._caches.setdefault(rid, _Cache())
        if position != cache.length:
            raise InputError(f"expected the tokens from position {cache.length} on, came those from {position} on")
        made = self._graph.run(self._tensors(cache, tokens))
        for name, new in made.items():
            if name != ROWS:
                past = "past" + name.removeprefix("new")
                before = cache.arrays.get(past)
                cache.arrays[past] = new if before is None else np.concatenate([before, new], axis=2)
        cache.length += len(tokens)
        return np.ascontiguousarray(made[ROWS][0])

    def forget(self, rid: int) -> None:
        """A stream is over; unknown ones are fine."""
        with self._lock:
            self._caches.pop(rid, None)

    def _tensors(self, cache: _Cache, tokens: tuple[int, ...]) -> dict[str, Array]:
        count = len(tokens)
        whole: dict[str, Array] = {
            "tokens": np.array([tokens], np.int64),
            "positions": np.arange(cache.length, cache.length + count, dtype=np.int64)[None],
            "past_lengths": np.array([cache.length], np.int64),
            "last": np.array([count - 1], np.int64),
        }
        return {
            name: whole[name] if name in whole else cache.arrays.get(name, _nothing(spec))
            for name, spec in self._inputs.items()
        }


def _nothing(spec: TensorSpec) -> Array:
    """Keys or values of no tokens."""
    heads, size = int(spec.shape[1]), int(spec.shape[3])
    return np.zeros((1, heads, 0, size), np.float32)
