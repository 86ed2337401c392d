"""What a decoder service can serve: a program's folder, with its facts, its cuts, and what is left of its encoder."""

import hashlib
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from flagsplit.errors import ConfigError, InputError
from flagsplit.flagir.programs.program import ProgramFacts, graph_names
from flagsplit.flagir.programs.store import FACTS_NAME, MAX_FACTS_BYTES, TOKENIZER_NAME
from flagsplit.flagir.store import WEIGHTS_NAME
from flagsplit.runtime.generation.service_machine import StreamFacts
from flagsplit.targets.catalogue import get_target
from flagsplit.targets.interface import Array, Executable, LoadOptions, StoredArtifact, TensorSpec
from flagsplit.targets.onnx_engine import ran_out_of_memory

HIDDEN: Final = "hidden"
"""The cut behind the encoder, and the tensor that crosses it."""
_INPUTS: Final = {"audio": "audio", "log-mel": "log_mel"}
_TARGET: Final = "ort"


@dataclass(frozen=True)
class ProgramSource:
    """A program that can be served.

    Attributes:
        name: for people.
        digest: what clients must name.
        tiers: names of all tiers, the clients' first.
        facts: of the program.
        cuts: by plan, the names of the tensors that cross its cut.
        steps: the folder with `program.json`, `step.onnx` and, for programs with an encoder, `prefill.onnx`.
        encoders: by plan, what opens the rest of its encoder; a plan without has hidden states that cross.
        step: file of the step graph in there.
        weights: file of the weights; None is the folder's own.
        takes_rows: whether the step graph begins between two layers, so that streams come as rows.
        specs: by plan, element types and shapes of the tensors that cross its cut, where they are known.
    """

    name: str
    digest: str
    tiers: tuple[str, ...]
    facts: ProgramFacts
    cuts: Mapping[str, tuple[str, ...]]
    steps: Path
    encoders: Mapping[str, Callable[[LoadOptions], Executable]] = field(default_factory=dict)
    step: str = "step.onnx"
    weights: Path | None = None
    takes_rows: bool = False
    specs: Mapping[str, tuple[TensorSpec, ...]] = field(default_factory=dict)

    @property
    def stream_facts(self) -> StreamFacts:
        """What streams begin from."""
        facts, width = self.facts, self.facts.width if self.takes_rows else 0
        return StreamFacts(self.cuts, facts.vocabulary, facts.prompt, width, max_positions=facts.max_positions)


class Remainders:
    """Runs what is left of the encoder behind each cut, one at a time, whoever asks; each is opened when first needed.

    Args:
        source: the program.
        host: threads and such.
    """

    def __init__(self, source: ProgramSource, host: LoadOptions) -> None:
        self._source, self._host = source, host
        self._open: dict[str, Executable] = {}
        self._lock = threading.Lock()
        self._running = threading.Lock()

    def __call__(self, plan: str, tensors: Mapping[str, Array]) -> Mapping[str, Array]:
        """The context of a stream, from the tensors that crossed the cut of a plan.

        Raises:
            BundleError: the graph cannot be opened.
            InputError: there is more than the model takes at once, or the engine refused the tensors.
            MemoryError: the engine has too little memory; another may have more.
        """
        opener = self._source.encoders.get(plan)
        if opener is None:
            return tensors
        with self._lock:
            executable = self._open.get(plan)
            if executable is None:
                executable = self._open[plan] = opener(self._host)
        _check_sizes(self._source.facts, executable.inputs, tensors)
        try:
            with self._running:
                return executable.run(tensors)
        except InputError as error:
            if ran_out_of_memory(error):
                raise MemoryError(str(error)) from error
            raise

    def close(self) -> None:
        """Free everything."""
        with self._lock:
            for executable in self._open.values():
                executable.close()
            self._open.clear()


def folder_source(folder: Path, tiers: tuple[str, ...] = ("phone", "cloud")) -> ProgramSource:
    """The program in a folder: a stream begins from what `encode` reads, or from the hidden states behind it.

    Args:
        folder: of `flagsplit.flagir.programs.save_program`.
        tiers: names of the clients' tier and of the service's.

    Raises:
        ConfigError: it is no such folder.
        ModelError: its facts are damaged.
    """
    if tiers[0] in tiers[1:]:
        raise ConfigError(f"expected a tier beyond the clients' own, which is {tiers[0]!r}; see --tier")
    file = folder / FACTS_NAME
    if not file.is_file() or file.stat().st_size > MAX_FACTS_BYTES:
        raise ConfigError(
            f"expected a program, {folder} has no {FACTS_NAME}; flagsplit program NAME -o FOLDER makes one"
        )
    facts = ProgramFacts.from_json(file.read_bytes())
    digest = folder_digest(folder)
    if facts.kind == "decoder-only":
        return ProgramSource(facts.name, digest, tiers, facts, {"text": ()}, folder)
    entered = _INPUTS[facts.input]
    cuts = {HIDDEN: (HIDDEN,), entered: (entered,)}
    return ProgramSource(
        facts.name, digest, tiers, facts, cuts, folder, {entered: lambda host: _load(folder, "encode.onnx", host)}
    )


def folder_digest(folder: Path) -> str:
    """A name for a program that is another for another program: SHA-256 of its files.

    Raises:
        ConfigError: a file is missing or cannot be read.
    """
    facts = ProgramFacts.from_json(_bytes_of(folder / FACTS_NAME))
    graphs = (f"{name}.onnx" for name in graph_names(facts.kind))
    total = hashlib.sha256()
    for name in (FACTS_NAME, TOKENIZER_NAME, *graphs, WEIGHTS_NAME):
        try:
            with (folder / name).open("rb") as file:
                total.update(f"{name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\0".encode())
        except OSError as error:
            raise ConfigError(f"cannot read {folder / name}: {error.strerror}; make the program again") from None
    return total.hexdigest()


def _check_sizes(facts: ProgramFacts, specs: Sequence[TensorSpec], tensors: Mapping[str, Array]) -> None:
    """The memory of an encoder grows with the square of its input, so what is too long must not begin."""
    seconds = facts.max_input_s + 1 if facts.max_input_s else math.inf
    for spec in specs:
        shape = tensors[spec.name].shape if spec.name in tensors else ()
        for axis, (open_size, size) in enumerate(zip(spec.shape, shape, strict=False)):
            per_s = facts.frames_per_s if open_size == "frames" and facts.frames_per_s else facts.sample_rate_hz
            most = 1.0 if axis == 0 else seconds * per_s
            if isinstance(open_size, str) and size > most:
                raise InputError(
                    f"{spec.name}: {facts.name} takes one input of at most {facts.max_input_s:g} s at once, came "
                    f"{list(shape)}; send it in pieces"
                )


def _bytes_of(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}; make the program again") from None


def _load(folder: Path, file: str, host: LoadOptions) -> Executable:
    stored = StoredArtifact(folder, {"": file}, {}, folder / WEIGHTS_NAME)
    return get_target(_TARGET).load(stored, "", host)
