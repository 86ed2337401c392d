"""Steps of a program by PyTorch on an NVIDIA GPU: few sizes, each recorded once as a CUDA graph and replayed.

A step of one token for every stream reads the caches where they lie and writes the new keys and values into them, all
in one graph; how many rows, how long the caches are, come in powers of two, so there are few graphs. Prompts go
through graphs of their own, a few rows at a time. The lowering is that of the `cuda` target.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from flagsplit.errors import ConfigError, InputError
from flagsplit.flagir.store import WEIGHTS_NAME
from flagsplit.targets.cloud.cuda.lowering.site import as_dtype
from flagsplit.targets.cloud.cuda.part_file import read_part
from flagsplit.targets.cloud.cuda.sdk import import_torch, require_gpu, torch
from flagsplit.targets.generation.banks import Banks, Sketched
from flagsplit.targets.generation.cuda_graphs import Graph, Lowered, stepped
from flagsplit.targets.generation.slot_cache import SlotCache, Whole
from flagsplit.targets.generation.slot_checks import check_hidden, check_tokens, has_room, read_facts
from flagsplit.targets.generation.step_model import Logits, Room
from flagsplit.targets.interface import Array

Precision = Literal["fp32", "fp16", "bf16"]
_TYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
_UNIT = 64
"""Caches are at least this long, and grow by doubling."""
_PROMPTS = 8
"""How many prompts go through a graph at once."""


def doubled(length: int) -> int:
    """The least power of two that is enough, and no less than `_UNIT`."""
    return max(_UNIT, 1 << (length - 1).bit_length())


def _parts(tokens: Array) -> Iterator[Array]:
    """Tokens in parts of powers of two, the largest first."""
    while len(tokens):
        count = 1 << (len(tokens).bit_length() - 1)
        yield tokens[:count]
        tokens = tokens[count:]


class CudaStepModel:
    """A `StepModel` on a GPU.

    Args:
        folder: of a saved program.
        slots: how many streams can be open.
        precision: what is computed in, and what caches are kept in.
        device: "cpu" runs the same program uncompiled on this host: to test, and no measure of speed.
        step: name of the step's file; another for the later part of a program that is cut between its layers.
        weights: the file with the weights; by default the folder's own.

    All slots, free ones too, have caches as long as the longest stream.

    Raises:
        BundleError: the facts are missing, or a graph is damaged.
        ConfigError: PyTorch is not installed, or finds no GPU.
        ModelError: a graph has a node that this target does not take.
    """

    def __init__(
        self,
        folder: Path,
        slots: int = 16,
        precision: Precision = "fp16",
        device: Literal["cuda", "cpu"] = "cuda",
        *,
        step: str = "step.onnx",
        weights: Path | None = None,
    ) -> None:
        if slots < 1:
            raise ConfigError(f"slots: expected 1 or more, came {slots}")
        import_torch()
        if device == "cuda":
            require_gpu()
        self.facts = read_facts(folder)
        self.slots = slots
        self._device = device
        self._type = _TYPES[precision]
        weights = weights or folder / WEIGHTS_NAME
        self._step = read_part(folder / step, weights)
        has_encoder = self.facts.kind == "encoder-decoder"
        self._prefill = read_part(folder / "prefill.onnx", weights) if has_encoder else None
        self._given = "rows" if any(value.name == "rows" for value in self._step.graph.inputs) else "tokens"
        forms = {
            value.name: (int(value.shape[1]), int(value.shape[3]))  # type: ignore[arg-type]
            for value in self._step.graph.inputs
            if value.name and "." in value.name and value.shape is not None
        }
        past, cross = (
            {name: form for name, form in forms.items() if name.startswith(of)} for of in ("past.", "cross.")
        )
        # Where a stream does nothing in a step, something is written after its end: of rows, all may be there then.
        more = 1 if self._given == "rows" else 0
        self._cache = SlotCache(
            slots,
            past,
            cross,
            zeros=self._zeros,
            padded=lambda length: doubled(length + more),
            rows=slots + 1,
            shrinks=False,
        )
        self._cache.before_replacing = self._forget_graphs
        self._banks = Banks(lambda: self._cache, Sketched, 0, most=1)
        self._graphs: dict[tuple[str, int, int, int], Graph] = {}
        self._lowered: dict[tuple[int, ...], Lowered] = {}
        self._logits = np.zeros((slots, self.facts.vocabulary), np.float32)

    @property
    def kv_bytes(self) -> int:
        """What all caches hold."""
        return self._banks.nbytes

    def limit(self, kv_bytes: int) -> None:
        """Let caches never take more."""
        self._banks.confine(kv_bytes)

    def room(self) -> Room:
        """A sketch of the caches."""
        return self._banks.sketch()

    def bytes_for(self, tokens: int, frames: int, rows: int = 1) -> int:
        """What all rows take when one is so long; see `StepModel.bytes_for`."""
        return self._banks.bytes_for(tokens, frames, rows)

    def open(self, slot: int, context: Mapping[str, Array] | None, tokens: int = 1) -> None:
        """Begin a stream; see `StepModel.open`."""
        hidden = check_hidden(self.facts, context)
        has_room(self._banks.add(slot, 0 if hidden is None else hidden.shape[1], tokens))
        if hidden is None:
            return
        frames = hidden.shape[1]
        padded = np.zeros((1, doubled(frames), self.facts.width), np.float32)
        padded[:, :frames] = hidden
        (row,) = self._cache.rows([slot])
        made = self._graph("prefill", 1, 1, padded.shape[1])(padded)
        self._cache.fill(row, 0, {name: made[name][:, :, :frames] for name in self._cache.cross})

    def reserve(self, slot: int, tokens: int) -> None:
        """Make room for a stream to get so long."""
        has_room(self._banks.reserve(slot, tokens))

    def step(self, slots: Sequence[int], tokens: Sequence[Array]) -> Logits:
        """Append tokens to streams; see `StepModel.step`."""
        rows, counts = self._cache.rows(slots), [len(each) for each in tokens]
        for row, each in zip(rows, tokens, strict=True):
            check_tokens(self.facts, int(self._cache.lengths[row]), each, are_rows=self._given == "rows")
        for at in np.flatnonzero(self._cache.lengths[rows] + counts > self._cache.needs[rows]).tolist():
            self.reserve(slots[at], int(self._cache.lengths[rows[at]]) + counts[at])
        one = [at for at, count in enumerate(counts) if count == 1]
        more = sorted((at for at, count in enumerate(counts) if count > 1), key=lambda at: counts[at])
        if len(one) == len(rows):
            return self._decode(rows, tokens, one)
        if one:
            self._decode(rows, tokens, one)
        for first in range(0, len(more), _PROMPTS):
            self._prompt(rows, tokens, more[first : first + _PROMPTS])
        return self._logits[: len(slots)]

    def copy(self, source: int, target: int) -> None:
        """Make a stream like another."""
        has_room(self._banks.copy(source, target))

    def truncate(self, slot: int, tokens: int) -> None:
        """Keep the first tokens of a stream."""
        self._banks.truncate(slot, tokens)

    def close_slot(self, slot: int) -> None:
        """End a stream."""
        self._banks.remove(slot)

    def close(self) -> None:
        """Free the graphs and the caches."""
        self._graphs.clear()
        self._lowered.clear()
        self._cache = SlotCache(1, {}, {})
        self._banks.clear()

    def warm_up(self, tokens: int, frames: int) -> None:
        """Record the graphs of steps of one token and of the program's prompt, which else the first streams wait for.

        Graphs for longer streams are recorded when there are some, which takes little once these are there.

        Args:
            tokens: how long streams are; at least that of the shortest cache.
            frames: of their context.

        Raises:
            InputError: there are open streams.
        """
        if self._cache.count:
            raise InputError("graphs can be recorded before streams are open, not while they are")
        has_room(self._banks.add(0, frames, tokens))
        for power in range(self.slots.bit_length() + 1):
            self._graph("decode", min(1 << power, self.slots), 1, 0)
        if len(self.facts.prompt) > 1:
            self._graph("prompt", 1, 1 << (len(self.facts.prompt) - 1).bit_length(), 0)
        self._banks.remove(0)

    def _decode(self, rows: Sequence[int], tokens: Sequence[Array], one: Sequence[int]) -> Logits:
        """One token for some rows; the rows up to the last of them step too, and what they write does not count."""
        count = self._cache.count
        longest = int(self._cache.lengths[:count].argmax())
        if self._cache.lengths[longest] == self._cache.capacity[0]:
            self.reserve(self._cache.slots[longest], int(self._cache.lengths[longest]) + 1)
        batch = min(1 << max(rows[at] for at in one).bit_length(), self.slots)
        given = self._nothing(batch, 1)
        for at in one:
            given[rows[at]] = tokens[at]
        lengths = np.where(np.arange(batch) < count, self._cache.lengths[:batch], 0)
        logits = self._graph("decode", batch, 1, 0).logits(
            given, *self._told(lengths, np.zeros(batch), self._cache.frames[:batch], 1)
        )
        for at in one:
            self._cache.lengths[rows[at]] += 1
        if [rows[at] for at in one] == list(range(len(rows))):
            return logits[: len(rows)]
        for at in one:
            self._logits[at] = logits[rows[at]]
        return self._logits[: len(rows)]

    def _prompt(self, rows: Sequence[int], tokens: Sequence[Array] | Mapping[int, Array], some: Sequence[int]) -> None:
        """Several tokens for a few rows, which are gathered; places that are left take the spare row."""
        chunk = 1 << (max(len(tokens[at]) for at in some) - 1).bit_length()
        left = self._cache.capacity[0] - max(int(self._cache.lengths[rows[at]]) for at in some)
        if chunk > left:  # Padding would go beyond the end: one after the other, in parts that need none.
            for at in some:
                for part in _parts(tokens[at]):
                    self._prompt(rows, {at: part}, [at])
            return
        batch = min(1 << (len(some) - 1).bit_length(), _PROMPTS)
        given, last = self._nothing(batch, chunk), np.zeros(batch, np.int64)
        chosen = np.full(batch, self.slots, np.int64)
        for place, at in enumerate(some):
            given[place, : len(tokens[at])] = tokens[at]
            last[place] = len(tokens[at]) - 1
            chosen[place] = rows[at]
        lengths, frames = (
            np.array([values[row] if row < self.slots else 0 for row in chosen])
            for values in (self._cache.lengths, self._cache.frames)
        )
        logits = self._graph("prompt", batch, chunk, 0).logits(given, *self._told(lengths, last, frames, chunk), chosen)
        for place, at in enumerate(some):
            self._logits[at] = logits[place]
            self._cache.lengths[rows[at]] += len(tokens[at])

    def _told(self, lengths: Whole, last: Array, frames: Array, chunk: int) -> list[Array]:
        """Positions, past_lengths, last and, with an encoder, cross_lengths."""
        positions = np.minimum(lengths[:, None] + np.arange(chunk), self.facts.max_positions - 1)
        told = [positions, lengths, last, *([frames] if self._cache.cross else [])]
        return [np.asarray(each, np.int64) for each in told]

    def _nothing(self, batch: int, chunk: int) -> Array:
        """Tokens, or rows, that are none."""
        if self._given == "rows":
            return np.zeros((batch, chunk, self.facts.width), np.float32)
        return np.zeros((batch, chunk), np.int64)

    def _zeros(self, shape: tuple[int, ...]) -> Any:
        return torch.zeros(shape, dtype=as_dtype(self._type), device=self._device)

    def _graph(self, kind: str, batch: int, chunk: int, frames: int) -> Graph:
        """The graph of a size."""
        key = (kind, batch, chunk, frames)
        if key not in self._graphs:
            self._graphs[key] = self._recorded(kind, batch, chunk, frames)
        return self._graphs[key]

    def _forget_graphs(self) -> None:
        """Let go of the arrays that are replaced, and of the graphs that read them."""
        self._graphs = {key: graph for key, graph in self._graphs.items() if key[0] == "prefill"}

    def _recorded(self, kind: str, batch: int, chunk: int, frames: int) -> Graph:
        """Make a graph; it is tried on examples that write nothing where a stream has something."""
        if kind == "prefill":
            assert self._prefill is not None
            lowered = Lowered(self._prefill, {"batch": 1, "frames": frames}, self._type, self._device)
            hidden = np.zeros((1, frames, self.facts.width), np.float32)
            return Graph(lowered.run, [hidden], lowered.outputs, self._device)
        past = next(iter(self._cache.past.values())).shape[2]
        lowered = self._lowered_step(batch, chunk, past)
        told = [self._given, "positions", "past_lengths", "last", *(["cross_lengths"] if self._cache.cross else [])]
        run = stepped(self._cache, lowered, told, batch, gathers=kind == "prompt")
        nothing = np.zeros(batch, np.int64)
        # No stream is as long as its row before a step; prompts are tried in the spare row.
        lengths = nothing + (past - 1 if kind == "decode" else 0)
        examples = [self._nothing(batch, chunk), *self._told(lengths, nothing, nothing, chunk)]
        if kind == "prompt":
            examples.append(nothing + self.slots)
        return Graph(run, examples, ["logits"], self._device)

    def _lowered_step(self, batch: int, chunk: int, past: int) -> Lowered:
        """The step for so many rows; where only attention reads the caches, that does for caches of any length."""
        frames = next(iter(self._cache.cross.values())).shape[2] if self._cache.cross else 0
        for key in ((batch, chunk), (batch, chunk, past, frames)):
            if key in self._lowered:
                return self._lowered[key]
        dims = {"batch": batch, "chunk": chunk, "past": past, **({"frames": frames} if frames else {})}
        lowered = Lowered(self._step, dims, self._type, self._device)
        self._lowered[(batch, chunk) if lowered.takes_any_cache else (batch, chunk, past, frames)] = lowered
        return lowered
