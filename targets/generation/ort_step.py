"""Steps of a program by ONNX Runtime, many streams at once, their caches read in place.

The step graph is bound to the arrays of a `SlotCache`: streams that step together are a run of rows, so nothing is
gathered or copied before a step, and after it only the new keys and values are put into their rows. Streams that put in
one token go together; those that put in prompts go with others of like size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx

from flagsplit.errors import BundleError, ConfigError
from flagsplit.flagir.programs.program import ProgramFacts
from flagsplit.flagir.store import WEIGHTS_NAME
from flagsplit.targets.generation.banks import Banks
from flagsplit.targets.generation.slot_cache import Floats, SlotCache
from flagsplit.targets.generation.slot_checks import check_hidden, check_tokens, has_room, read_facts
from flagsplit.targets.generation.step_model import Logits, Room
from flagsplit.targets.interface import Array
from flagsplit.targets.onnx_engine import refuse_fallback, session_settings

Provider = Literal["cpu", "cuda"]
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_FRAMES = 128
"""Keys and values of a context are made of so many frames at a time: each frame's are its own, and that many fit into
a processor's cache, which saves a third of the time of a long context."""
_ADVICE = "install onnxruntime-gpu with its CUDA libraries, or use the CPU"


@dataclass(frozen=True)
class _Run:
    """Rows that step in one call.

    Attributes:
        first, count: the rows, of which some may do nothing.
        rows: those that step.
        asked: their places among the slots asked for.
        counts: tokens of each.
    """

    first: int
    count: int
    rows: Sequence[int]
    asked: Sequence[int]
    counts: Sequence[int]


class OrtStepModel:
    """A `StepModel` by ONNX Runtime.

    Args:
        folder: of a saved program: `program.json`, `step.onnx`, `prefill.onnx` if it has an encoder, `weights.bin`.
        slots: how many streams can be open.
        threads: how many threads a step may use; 0 lets the engine choose.
        provider: where it runs; never anywhere else. On "cuda" caches stay on the host and cross to the GPU at each
            step: `CudaStepModel` is the quick way there.
        step: name of the step's file; another for the later part of a program that is cut between its layers.
        weights: the file with the weights; by default the folder's own.

    Raises:
        BundleError: a graph cannot be loaded.
        ConfigError: the provider is not there.
        ModelError: the facts are damaged.
    """

    def __init__(
        self,
        folder: Path,
        slots: int = 16,
        threads: int = 0,
        provider: Provider = "cpu",
        *,
        step: str = "step.onnx",
        weights: Path | None = None,
    ) -> None:
        if slots < 1:
            raise ConfigError(f"slots: expected 1 or more, came {slots}")
        self.facts = read_facts(folder)
        self.slots = slots
        self._step = _open(folder / step, threads, provider, weights)
        self._prefill = None
        if self.facts.kind == "encoder-decoder":
            self._prefill = _open(folder / "prefill.onnx", threads, provider, weights)
        forms = {value.name: (value.shape[1], value.shape[3]) for value in self._step.get_inputs() if "." in value.name}
        self._new = {"new" + name[4:]: name for name in forms if name.startswith("past.")}
        self._takes_rows = any(value.name == "rows" for value in self._step.get_inputs())
        self._past, self._cross = (
            {name: form for name, form in forms.items() if name.startswith(of)} for of in ("past.", "cross.")
        )
        self._logits = np.zeros((slots, self.facts.vocabulary), np.float32)
        self._banks = Banks(self._cache, self._bind, _weights_bytes(folder / step))

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
        """What rows take alone; see `StepModel.bytes_for`."""
        return self._banks.bytes_for(tokens, frames, rows)

    def open(self, slot: int, context: Mapping[str, Array] | None, tokens: int = 1) -> None:
        """Begin a stream; see `StepModel.open`."""
        hidden = check_hidden(self.facts, context)
        has_room(self._banks.add(slot, 0 if hidden is None else hidden.shape[1], tokens))
        if hidden is None or self._prefill is None:
            return
        bank = self._banks.of(slot)
        (row,) = bank.cache.rows([slot])
        names = [value.name for value in self._prefill.get_outputs()]
        for at in range(0, hidden.shape[1], _FRAMES):
            made = self._prefill.run(names, {"hidden": hidden[:, at : at + _FRAMES]})
            bank.cache.fill(row, at, dict(zip(names, made, strict=True)))

    def reserve(self, slot: int, tokens: int) -> None:
        """Make room for a stream to get so long."""
        has_room(self._banks.reserve(slot, tokens))

    def step(self, slots: Sequence[int], tokens: Sequence[Array]) -> Logits:
        """Append tokens to streams; see `StepModel.step`."""
        for slot, each in zip(slots, tokens, strict=True):
            check_tokens(self.facts, self._banks.length(slot), each, are_rows=self._takes_rows)
        for slot, each in zip(slots, tokens, strict=True):
            self.reserve(slot, self._banks.length(slot) + len(each))
        for bank in list(self._banks.banks):
            asked = [at for at, slot in enumerate(slots) if self._banks.of(slot) is bank]
            rows = bank.cache.rows([slots[at] for at in asked])
            for run in _runs(rows, asked, [len(tokens[at]) for at in asked]):
                logits, new = bank.run(run, [tokens[at] for at in run.asked])
                places = [row - run.first for row in run.rows]
                bank.cache.append(run.rows, places, run.counts, new)
                if list(run.asked) == list(range(len(slots))) and run.count == len(slots):
                    return logits
                self._logits[list(run.asked)] = logits[places]
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
        """Free the engine and the caches."""
        self._step = self._prefill = None
        self._banks.clear()

    def _cache(self) -> SlotCache:
        return SlotCache(self.slots, self._past, self._cross)

    def _bind(self, cache: SlotCache) -> "_Binding":
        return _Binding(self._step, cache, self._new, self.facts)


class _Binding:
    """A step graph that reads the cache in place."""

    def __init__(self, session: Any, cache: SlotCache, new: Mapping[str, str], facts: ProgramFacts) -> None:
        self._session = session
        self.cache = cache
        self._new = new
        self._vocabulary, self._most_positions = facts.vocabulary, facts.max_positions
        self._inputs = {value.name: value for value in session.get_inputs()}
        self._bound: tuple[int, ...] = ()
        self._io: Any = None
        self._held: dict[str, Any] = {}
        cache.before_replacing = self._let_go

    def run(self, run: _Run, tokens: Sequence[Array]) -> tuple[Logits, dict[str, Floats]]:
        """Logits and new keys and values of all rows of a run, by names of the cache; valid until the next."""
        chunk = max(run.counts)
        wanted = (self.cache.version, run.first, run.count, chunk)
        if wanted != self._bound:
            self._bind(run.first, run.count, chunk)
            self._bound = wanted
        self._write(run, tokens, chunk)
        self._session.run_with_iobinding(self._io)
        return self._held["logits"], {past: self._held[name] for name, past in self._new.items()}

    def _let_go(self) -> None:
        self._bound, self._io, self._held = (), None, {}

    def _write(self, run: _Run, tokens: Sequence[Array], chunk: int) -> None:
        held, rows = self._held, slice(run.first, run.first + run.count)
        lengths = self.cache.lengths[rows]
        held["past_lengths"][:] = lengths
        held["positions"][:] = np.minimum(lengths[:, None] + np.arange(chunk), self._most_positions - 1)
        if "cross_lengths" in held:
            held["cross_lengths"][:] = self.cache.frames[rows]
        last, given = held["last"], held["rows" if "rows" in held else "tokens"]
        last[:] = 0
        given[:] = 0
        for row, count, each in zip(run.rows, run.counts, tokens, strict=True):
            given[row - run.first, :count] = each
            last[row - run.first] = count - 1

    def _bind(self, first: int, count: int, chunk: int) -> None:
        held: dict[str, Any] = {}
        for name, value in self._inputs.items():
            if name in self.cache.past or name in self.cache.cross:
                array = (self.cache.past if name in self.cache.past else self.cache.cross)[name]
                held[name] = array[first : first + count]
            elif name == "rows":
                held[name] = np.zeros((count, chunk, value.shape[2]), np.float32)
            else:
                held[name] = np.zeros((count, chunk)[: len(value.shape)], np.int64)
        outputs = {"logits": np.zeros((count, self._vocabulary), np.float32)}
        for name, past in self._new.items():
            _, heads, _, size = self.cache.past[past].shape
            outputs[name] = np.zeros((count, heads, chunk, size), np.float32)
        self._io = self._session.io_binding()
        for name, array in held.items():
            self._io.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        for name, array in outputs.items():
            self._io.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        self._held = {**held, **outputs}


def _runs(rows: Sequence[int], asked: Sequence[int], counts: Sequence[int]) -> list[_Run]:
    """Which rows step in one call: like numbers of tokens, next to each other or nearly so."""
    sizes = [(count - 1).bit_length() for count in counts]
    found = list[_Run]()
    for size in sorted(set(sizes)):
        some = sorted((at for at in range(len(rows)) if sizes[at] == size), key=lambda at: rows[at])
        part = [some[0]]
        for at in some[1:]:
            if rows[at] - rows[part[-1]] > 2 + len(part) // 4:
                found.append(_run_of(part, rows, asked, counts))
                part = []
            part.append(at)
        found.append(_run_of(part, rows, asked, counts))
    return found


def _run_of(part: Sequence[int], rows: Sequence[int], asked: Sequence[int], counts: Sequence[int]) -> _Run:
    first, end = rows[part[0]], rows[part[-1]] + 1
    return _Run(first, end - first, *([values[at] for at in part] for values in (rows, asked, counts)))


def _weights_bytes(file: Path) -> int:
    """What a graph's weights hold, those that lie outside of it."""
    graph = onnx.load_model(file, load_external_data=False).graph
    sizes = (each.value for tensor in graph.initializer for each in tensor.external_data if each.key == "length")
    return sum(int(size) for size in sizes)


def _open(file: Path, threads: int, provider: Provider, weights: Path | None) -> Any:
    """A session that runs on the provider and nowhere else without a word."""
    import onnxruntime as ort

    name = _PROVIDERS[provider]
    if name not in ort.get_available_providers():
        raise ConfigError(f"ONNX Runtime {ort.__version__} has no {name}; {_ADVICE}")
    options = session_settings(weights or file.parent / WEIGHTS_NAME, "fast", threads)
    asked = [name] if provider == "cpu" else [name, _PROVIDERS["cpu"]]
    try:
        session = ort.InferenceSession(file.read_bytes(), options, providers=asked, enable_fallback=0)
    except Exception as error:
        short = " ".join(str(error).split())[:300]
        raise BundleError(f"ONNX Runtime cannot load {file.name}: {short}; build the bundle again") from error
    refuse_fallback(session.get_providers(), [name], _ADVICE)
    return session
