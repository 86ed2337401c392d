"""Many streams of one decoder on this host: continuous batching against the loop that runs one after the other.

Moonshine writes down pieces, of 2 to 10 s, of the zoo's recordings. As many clients as there are streams each ask for
the next piece when one is done, so that streams come and go all the time. Both ways run by turns in one process, on the
same graphs, with all cores; rates are tokens per second over all streams, encoders left out.

Figures, by number of streams N: `speedup_N`, tokens per second over those of the sequential loop on the same pieces
(bar at 16: 3); `ttft_ms_p50_N` and `_p95_N`, from asking to the first token; `token_ms_p50_N` and `_p95_N`, from token
to token; without a number they are those of 16. `identical` is 1 if every stream of every run gave the tokens that the
sequential loop gave. `speedup_16_int8` is over the published int8 decoder, run as its authors do; `int8_tokens_per_s`.

What crosses the link is bytes per second of sound: `uplink_f32`, `_fp16`, `_u8` (a range for the whole tensor) and
`_u8_per_channel` (one a frame) of the hidden states, against `uplink_pcm` (16 bit, 16 kHz), `uplink_log_mel` (80 bins,
float32) and `uplink_opus` (24 kbit/s, by definition). `wer_f32`, `wer_u8` and `wer_u8_per_channel` are word error rates
of the recordings in the windows of `flagsplit transcribe` (bar: no higher than `wer_f32`); `changed_u8` and so on, the
share of words that a codec changes in pieces that are cut anywhere, also within words.
"""

import argparse
import functools
import json
import os
import platform
import statistics
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from decoder_peers import Coded, Int8Decoder, round_trip
from numpy.typing import NDArray

from flagsplit.apps import zoo
from flagsplit.apps.programs import program_folder
from flagsplit.apps.speech.encoding import Chain, Rest
from flagsplit.apps.speech.features import SoundInput
from flagsplit.apps.speech.known import SAID
from flagsplit.apps.speech.program_recognizer import ProgramRecognizer
from flagsplit.apps.speech.recognizer import SpeechFacts
from flagsplit.apps.speech.transcriber import Segment, Transcriber
from flagsplit.apps.speech.vad import open_detector
from flagsplit.apps.speech.wav import WavReader
from flagsplit.apps.speech.wer import word_errors
from flagsplit.apps.text import open_tokenizer
from flagsplit.flagir.codecs.table import encoded_bytes
from flagsplit.flagir.programs import load_program
from flagsplit.flagir.store import WEIGHTS_NAME
from flagsplit.flagir.types import ValueType
from flagsplit.runtime.generation.engine import GenerationEngine
from flagsplit.runtime.generation.events import Event, Generate, Refused
from flagsplit.runtime.generation.sequential import generate
from flagsplit.targets.generation.ort_step import OrtStepModel
from flagsplit.targets.interface import Array, Executable, LoadOptions
from flagsplit.targets.onnx_engine import open_onnx

RATE_HZ = 16_000
SECONDS = (2.0, 10.0)
OPUS_BYTES_PER_S = 24_000 / 8
MEL_BYTES_PER_S = 80 * 100 * 4
CODECS = ("u8", "u8_per_channel")
Samples = NDArray[np.float32]


@dataclass(frozen=True)
class Piece:
    """A piece of a recording, its hidden states, and how long it is."""

    samples: Samples
    hidden: Array

    @property
    def seconds(self) -> float:
        return len(self.samples) / RATE_HZ

    def request(self, name: str) -> Generate:
        """Ask for its words."""
        return Generate(name, "bench", {"hidden": self.hidden}, input_s=self.seconds)


@dataclass
class Timed:
    """What one run of many streams gave.

    Attributes:
        tokens: of each stream.
        took_s: the whole run.
        first_ms: of each stream, from asking to its first token.
        gaps_ms: from token to token, of all streams.
    """

    tokens: list[list[int]]
    took_s: float = 0.0
    first_ms: list[float] = field(default_factory=list)
    gaps_ms: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Tokens per second, the stop token of each stream counted: it takes a step like the others."""
        return sum(len(each) + 1 for each in self.tokens) / self.took_s


class Clients:
    """So many clients, each asking for the next piece when it has got one.

    Args:
        model: whose streams; closed at the end.
        count: how many.
    """

    def __init__(self, model: OrtStepModel, count: int) -> None:
        self._count = count
        self._lock = threading.Lock()
        self._refused = ""
        self._engine = GenerationEngine(model, self._hear)
        self._engine.start()

    def run(self, pieces: Sequence[Piece]) -> Timed:
        """All pieces."""
        self._pieces, self._next, self._left = pieces, 0, len(pieces)
        self._asked = [0.0] * len(pieces)
        self._last = [0.0] * len(pieces)
        self._result = Timed([[] for _ in pieces])
        self._done = threading.Event()
        began = time.perf_counter()
        for _ in range(min(self._count, len(pieces))):
            self._ask()
        self._done.wait()
        if self._refused:
            sys.exit(f"a stream was refused: {self._refused}")
        self._result.took_s = time.perf_counter() - began
        return self._result

    def close(self) -> None:
        """End the engine."""
        self._engine.stop()

    def _ask(self) -> None:
        """The next piece, if there is one; from this thread, and from the engine's when a stream has ended."""
        with self._lock:
            number, self._next = self._next, self._next + 1
        if number >= len(self._pieces):
            return
        self._asked[number] = time.perf_counter()
        self._engine.submit(self._pieces[number].request(str(number)))

    def _hear(self, event: Event) -> None:
        if isinstance(event, Refused):
            self._refused = event.reason
            self._done.set()
            return
        now, number = time.perf_counter(), int(event.stream_id)
        if event.tokens:
            if not self._result.tokens[number]:
                self._result.first_ms.append((now - self._asked[number]) * 1e3)
            else:
                self._result.gaps_ms.append((now - self._last[number]) * 1e3)
            self._last[number] = now
        self._result.tokens[number] += event.tokens
        if event.done:
            self._left -= 1
            self._ask()
            if not self._left:
                self._done.set()


def sequential(model: OrtStepModel, pieces: Sequence[Piece]) -> Timed:
    """One after the other."""
    began = time.perf_counter()
    found = [list(generate(model, {"hidden": each.hidden}, input_s=each.seconds)) for each in pieces]
    return Timed(found, time.perf_counter() - began)


def recording(name: str) -> Samples:
    """All samples, at the program's rate."""
    with WavReader(zoo.pull(name)) as reader:
        return np.concatenate(list(reader.blocks(RATE_HZ)))


def cut(encode: Executable, count: int) -> list[Piece]:
    """Pieces of random place and length, always the same ones."""
    random = np.random.default_rng(8)
    sound = np.concatenate([recording(name) for name in SAID])
    found = []
    for _ in range(count):
        size = int(random.uniform(*SECONDS) * RATE_HZ)
        at = int(random.integers(len(sound) - size))
        samples = sound[at : at + size]
        found.append(Piece(samples, encode.run({"audio": samples[None]})["hidden"]))
    return found


def race(folder: Path, pieces: Sequence[Piece], streams: Sequence[int], rounds: int) -> dict[str, float]:
    """Both ways by turns, for each number of streams; and the published decoder beside 16."""
    one = OrtStepModel(folder, slots=1)
    expected = sequential(one, pieces).tokens
    int8 = Int8Decoder()
    figures: dict[str, float] = {"identical": 1.0}
    for count in streams:
        clients = Clients(OrtStepModel(folder, slots=count), count)
        clients.run(pieces[:count])
        part = pieces[: max(16, min(len(pieces), 4 * count))]
        few = part[:16]
        shared, alone, published = list[Timed](), list[Timed](), list[float]()
        for _ in range(rounds):
            alone.append(sequential(one, few))
            shared.append(clients.run(part))
            alone.append(sequential(one, few))
            if count == 16:
                published.append(int8.rate([(each.samples, each.seconds) for each in few]))
        clients.close()
        for run in shared:
            figures["identical"] *= float(run.tokens == expected[: len(part)])
        rate, base = (statistics.median(run.rate for run in runs) for runs in (shared, alone))
        figures |= {f"tokens_per_s_{count}": rate, f"speedup_{count}": rate / base}
        for name, values in (
            ("ttft_ms", [each for run in shared for each in run.first_ms]),
            ("token_ms", [each for run in shared for each in run.gaps_ms]),
        ):
            for share in (50, 95):
                figures[f"{name}_p{share}_{count}"] = float(np.percentile(values, share))
        if published:
            figures["sequential_tokens_per_s"] = base
            figures["int8_tokens_per_s"] = statistics.median(published)
            figures["speedup_16_int8"] = rate / figures["int8_tokens_per_s"]
    usual = {name.removesuffix("_16"): value for name, value in figures.items() if name.endswith(("p50_16", "p95_16"))}
    return figures | usual


def uplink(pieces: Sequence[Piece]) -> dict[str, float]:
    """Bytes per second of sound that cross the link."""
    seconds = sum(each.seconds for each in pieces)
    kinds = [ValueType(ir.DataType.FLOAT, tuple(each.hidden.shape)) for each in pieces]
    names = {"f32": "none", "fp16": "fp16", "u8": "u8", "u8_per_channel": "u8_per_channel"}
    hidden = {
        f"uplink_{name}": sum(encoded_bytes(codec, kind) for kind in kinds) / seconds for name, codec in names.items()
    }
    return {**hidden, "uplink_pcm": 2.0 * RATE_HZ, "uplink_log_mel": MEL_BYTES_PER_S, "uplink_opus": OPUS_BYTES_PER_S}


def heard(folder: Path, names: Sequence[str], coded: Callable[[Array], Array]) -> str:
    """What recordings say, in the windows of `flagsplit transcribe`, with something done to the hidden states."""
    program, host = load_program(folder), LoadOptions()
    encode = open_onnx(folder / "encode.onnx", folder / WEIGHTS_NAME, "fast", host.threads)
    tokenizer = open_tokenizer(program.facts.tokenizer, program.tokenizer)
    model = OrtStepModel(folder, slots=1)
    about = SpeechFacts("all-phone", program.facts, SoundInput("audio"), tokenizer)
    before = Chain([(Coded(encode, coded), ("audio",))], ("hidden",))
    recognizer = ProgramRecognizer(about, "phone", before, Rest(lambda: None), model)
    texts = list[str]()
    for name in names:
        transcriber = Transcriber(recognizer, open_detector())
        with WavReader(zoo.pull(name)) as reader:
            texts += [event.text for event in transcriber.events(reader.blocks(RATE_HZ)) if isinstance(event, Segment)]
    recognizer.close()
    return " ".join(texts)


def word_figures(folder: Path, pieces: Sequence[Piece], names: Sequence[str]) -> dict[str, float]:
    """Word error rates of the recordings by codec; and how many words of pieces, cut anywhere, codecs change."""
    program = load_program(folder)
    tokenizer = open_tokenizer(program.facts.tokenizer, program.tokenizer)
    model = OrtStepModel(folder, slots=1)
    codecs = {name: functools.partial(round_trip, name) for name in CODECS}
    said = " ".join(SAID[name] for name in names)
    figures = {"wer_f32": word_errors(said, heard(folder, names, lambda hidden: hidden)).rate}
    figures |= {f"wer_{name}": word_errors(said, heard(folder, names, coded)).rate for name, coded in codecs.items()}

    def words(coded: Callable[[Array], Array]) -> str:
        found = sequential(model, [Piece(each.samples, coded(each.hidden)) for each in pieces]).tokens
        return " ".join(tokenizer.decode(tokens) for tokens in found)

    plain = words(lambda hidden: hidden)
    return figures | {f"changed_{name}": word_errors(plain, words(coded)).rate for name, coded in codecs.items()}


def measure(streams: Sequence[int], quick: bool) -> dict[str, float]:
    """All figures."""
    folder = program_folder("zoo:moonshine")
    encode = open_onnx(folder / "encode.onnx", folder / WEIGHTS_NAME, "fast", 0)
    pieces = cut(encode, max(4, *streams) if quick else 2 * max(32, *streams))
    figures = race(folder, pieces, streams, 1 if quick else 3)
    figures |= uplink(pieces)
    return figures | word_figures(folder, pieces[: 4 if quick else 48], list(SAID)[: 1 if quick else None])


def report(figures: Mapping[str, float], conditions: Mapping[str, object], as_json: bool) -> None:
    """Print the figures."""
    rounded = {name: round(value, 4) for name, value in figures.items()}
    if as_json:
        print(json.dumps({"figures": rounded, "conditions": conditions, "basis": "measured"}, indent=1))
        return
    for name, value in rounded.items():
        print(f"{name:24} {value}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="fewer streams and pieces, one round")
    parser.add_argument("--streams", default="", help="numbers of streams, as in 1,16")
    parser.add_argument("--gpu", action="store_true", help="a language model on the GPU instead, see decoder_gpu.py")
    given = parser.parse_args()
    if given.gpu:
        import decoder_gpu

        streams = [int(each) for each in (given.streams or "1,16,64").split(",")]
        decoder_gpu.report(decoder_gpu.measure("cuda", streams, 128, 3), given.json, "cuda")
        return
    streams = [int(each) for each in (given.streams or ("1,16" if given.quick else "1,4,16,64")).split(",")]
    conditions = {"program": "moonshine", "cores": os.cpu_count(), "host": platform.machine(), "ort": ort.__version__}
    report(measure(streams, given.quick), conditions, given.json)


if __name__ == "__main__":
    main()
