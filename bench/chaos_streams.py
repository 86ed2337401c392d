"""Streams that programs ask for while they kill replicas: what of, what became of them, and how that is told.

Each is of its own stretch of the zoo's recordings, from the hidden states behind the encoder of Moonshine. How replicas
run and how they are killed is in `decode_chaos.py` and `ray_chaos.py`.
"""

import argparse
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import wave
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flagsplit.apps.decoder_service.program_source import Remainders, folder_source
from flagsplit.apps.zoo import pull
from flagsplit.flagir.model_file import read_model
from flagsplit.flagir.programs.moonshine import read_moonshine
from flagsplit.flagir.programs.store import save_program
from flagsplit.runtime.generation.options import GenerationOptions
from flagsplit.runtime.generation.sequential import generate
from flagsplit.runtime.generation.token_stream import TokenStream
from flagsplit.targets.generation.ort_step import OrtStepModel
from flagsplit.targets.interface import Array, LoadOptions

BARS = {"lost": 0, "doubled": 0, "different": 0}
BURST = 10
PATIENCE_S = 300.0
SOON_S = (0.02, 0.6)
_RATE_HZ = 16_000


@dataclass(frozen=True)
class Asked:
    """One stream.

    Attributes:
        context: the hidden states that it is made from.
        options: how its tokens are chosen.
        wanted: the tokens that the sequential loop makes.
    """

    context: dict[str, Array]
    options: GenerationOptions
    wanted: tuple[int, ...]


@contextmanager
def moonshine() -> Iterator[Path]:
    """Moonshine out of the zoo as a program's folder; keys of this process lie in `home` beside it meanwhile."""
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["FLAGSPLIT_HOME"] = f"{scratch}/home"
        folder = Path(scratch) / "program"
        folder.mkdir()
        parts = (read_model(pull(f"moonshine-{name}")) for name in ("encoder", "decoder"))
        save_program(read_moonshine(*parts, pull("moonshine-tokenizer").read_bytes()), folder)
        yield folder


def streams_to_ask(
    folder: Path, count: int, draw: random.Random, options_of: Callable[[int], GenerationOptions]
) -> list[Asked]:
    """So many streams of a program, with what the sequential loop in this process makes of each."""
    encoder, model = Remainders(folder_source(folder), LoadOptions()), OrtStepModel(folder, 1)
    found = []
    for number, audio in enumerate(_stretches(count, draw)):
        context, options = dict(encoder("audio", {"audio": audio})), options_of(number)
        found.append(Asked(context, options, tuple(generate(model, context, (), options))))
    encoder.close()
    model.close()
    return found


def _stretches(count: int, draw: random.Random) -> list[Array]:
    """Audio of three to fifteen seconds, float32 [1, samples], each its own part of a recording."""
    recordings = [_samples(pull(name)) for name in ("beckett.wav", "two-cities.wav")]
    found = []
    for _ in range(count):
        samples = draw.choice(recordings)
        length = int(draw.uniform(3, 15) * _RATE_HZ)
        start = draw.randrange(max(1, len(samples) - length))
        found.append(samples[None, start : start + length])
    return found


def _samples(path: Path) -> Array:
    """Mono at 16 kHz, by means of neighbours: good enough to have something said."""
    with wave.open(str(path)) as file:
        raw = np.frombuffer(file.readframes(file.getnframes()), np.int16).reshape(-1, file.getnchannels())
        step = file.getframerate() // _RATE_HZ
    mono = raw[: len(raw) // step * step].astype(np.float32).mean(axis=1) / 32768
    return np.asarray(mono.reshape(-1, step).mean(axis=1), np.float32)


def outcome(streams: Sequence[TokenStream], asked: Sequence[Asked], conditions: dict[str, Any]) -> dict[str, Any]:
    """What became of streams that have ended: figures, and conditions with how long first tokens took."""
    made = [stream.made for stream in streams]
    first_ms = sorted(1e3 * each[0].at_s for each in made if each)
    return {
        "figures": {
            "streams": len(streams),
            "lost": sum(stream.reason not in ("stop", "length") for stream in streams),
            "doubled": sum(each.offset != index for tokens in made for index, each in enumerate(tokens)),
            "different": sum(
                tuple(each.token for each in tokens) != one.wanted for tokens, one in zip(made, asked, strict=True)
            ),
        },
        "conditions": {
            **conditions,
            "tokens": sum(len(each.wanted) for each in asked),
            "first_token_ms_p50": round(statistics.median(first_ms), 1),
            "first_token_ms_p95": round(first_ms[int(0.95 * (len(first_ms) - 1))], 1),
            "bars": BARS,
            "cores": os.cpu_count(),
            "machine": platform.machine(),
            "python": platform.python_version(),
        },
        "basis": "measured",
    }


def measure(
    description: str | None, run: Callable[[int, float, int], dict[str, Any]], quick: int, every_s: float, every: str
) -> None:
    """The command line of such a program: run it, print what it found, and fail if a figure is over its bar.

    Args:
        description: what the program does.
        run: does it, from the number of streams, the seconds from ten to the next ten, and the seed; an `outcome`.
        quick: streams of the short form.
        every_s: the seconds, unless said otherwise.
        every: what these seconds are.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help=f"{quick} streams")
    parser.add_argument("--streams", type=int, default=200, help="how many")
    parser.add_argument("--every-s", type=float, default=every_s, help=every)
    parser.add_argument("--seed", type=int, default=0, help="of the moments and the stretches of audio")
    arguments = parser.parse_args()
    found = run(quick if arguments.quick else arguments.streams, arguments.every_s, arguments.seed)
    if arguments.json:
        print(json.dumps(found))
    else:
        for name, value in (found["figures"] | found["conditions"]).items():
            print(f"{name} {value}")
    if any(found["figures"][name] > bar for name, bar in BARS.items()):
        sys.exit(1)
