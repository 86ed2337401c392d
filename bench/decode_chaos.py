"""Streams over replicas of `flagsplit decode-serve` that are killed at random moments while they make tokens.

A client opens streams of Moonshine ten at a time, and the next ten when at most ten are left, each of its own stretch
of the zoo's recordings, from the hidden states behind the encoder. Two replicas serve them; at a random moment after
ten were asked for, one of them is killed (SIGKILL) and started again. What each stream gives is compared with the
sequential loop in this process.

Figures: `lost`, streams that ended with an error or are not complete; `doubled`, tokens that were given twice or out of
order; `different`, streams whose tokens are not those of the sequential loop. All have to be 0. Conditions say how many
kills met how many streams, and how long first tokens took meanwhile.
"""

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import wave
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from flagsplit.apps.decoder_service.program_source import Remainders, folder_source
from flagsplit.apps.zoo import pull
from flagsplit.errors import FlagsplitError
from flagsplit.flagir.model_file import read_model
from flagsplit.flagir.programs.moonshine import read_moonshine
from flagsplit.flagir.programs.store import save_program
from flagsplit.runtime.generation.client import ClientSettings, StreamClient
from flagsplit.runtime.generation.client_streams import ClientOptions
from flagsplit.runtime.generation.sequential import generate
from flagsplit.runtime.generation.token_stream import TokenStream
from flagsplit.runtime.liveness import LivenessOptions
from flagsplit.targets.generation.ort_step import OrtStepModel
from flagsplit.targets.interface import Array, LoadOptions

BARS = {"lost": 0, "doubled": 0, "different": 0}
REPLICAS, BURST = 2, 10
_RATE_HZ = 16_000
_PATIENCE_S = 300.0
_SOON_S = (0.02, 0.6)


def program_folder(folder: Path) -> Path:
    """Moonshine out of the zoo, as a program."""
    parts = (read_model(pull(f"moonshine-{name}")) for name in ("encoder", "decoder"))
    save_program(read_moonshine(*parts, pull("moonshine-tokenizer").read_bytes()), folder)
    return folder


def stretches(count: int, draw: random.Random) -> list[Array]:
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


@dataclass
class Replica:
    """One process, on the same port in all its lives."""

    program: Path
    home: str
    port: int = 0
    process: "subprocess.Popen[bytes] | None" = None

    def start(self) -> str:
        """Run it and wait until it listens; the program's digest."""
        command = [
            *(sys.executable, "-m", "flagsplit.apps.cli", "decode-serve", str(self.program), "--json"),
            *("--listen", f"tcp://127.0.0.1:{self.port}", "--threads", "1", "--slots", "8", "--log-level", "warning"),
            *("--until-stdin-closes", "--linger-s", "5"),
        ]
        environment = {**os.environ, "FLAGSPLIT_HOME": self.home}
        self.process = subprocess.Popen(  # noqa: S603 - our own command
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        assert self.process.stdout is not None
        about = json.loads(self.process.stdout.readline())
        self.port = int(about["address"].rpartition(":")[2])
        return str(about["bundle"])

    def kill(self) -> None:
        """End it without a last word."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()


@dataclass
class Killer:
    """Kills one replica after another until it is stopped."""

    replicas: list[Replica]
    draw: random.Random
    kills: int = 0
    _due: threading.Event = field(default_factory=threading.Event)
    _over: bool = False

    def run(self) -> None:
        """On a thread of its own."""
        while self._wait():
            time.sleep(self.draw.uniform(*_SOON_S))
            replica = self.draw.choice(self.replicas)
            replica.kill()
            self.kills += 1
            replica.start()

    def _wait(self) -> bool:
        self._due.wait()
        self._due.clear()
        return not self._over

    def strike(self) -> None:
        """Kill one soon, unless one is away."""
        self._due.set()

    def stop(self) -> None:
        """No more kills."""
        self._over = True
        self._due.set()


def wanted_tokens(folder: Path, contexts: list[dict[str, Array]]) -> list[tuple[int, ...]]:
    """What the sequential loop makes of each."""
    model = OrtStepModel(folder, 1)
    found = [tuple(generate(model, context)) for context in contexts]
    model.close()
    return found


def run(count: int, every_s: float, seed: int) -> dict[str, Any]:
    """Ask for so many streams, ten at a time, while replicas are killed."""
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["FLAGSPLIT_HOME"] = f"{scratch}/home"
        (Path(scratch) / "program").mkdir()
        folder = program_folder(Path(scratch) / "program")
        encoder = Remainders(folder_source(folder), LoadOptions())
        contexts = [dict(encoder("audio", {"audio": audio})) for audio in stretches(count, draw)]
        encoder.close()
        wanted = wanted_tokens(folder, contexts)
        replicas = [Replica(folder, f"{scratch}/home") for _ in range(REPLICAS)]
        killer = Killer(replicas, draw)
        try:
            digests = {replica.start() for replica in replicas}
            streams, moves, took_s = _ask(replicas, digests.pop(), contexts, every_s, killer)
        finally:
            for replica in replicas:
                replica.kill()
    return {
        "figures": {"streams": count, **figures_of(streams, wanted)},
        "conditions": {
            "kills": killer.kills,
            "moves": moves,
            "streams_that_moved": sum(len(set(stream.where)) > 1 for stream in streams),
            "tokens": sum(map(len, wanted)),
            "took_s": took_s,
            **first_ms(streams),
            "replicas": REPLICAS,
            "bars": BARS,
            "cores": os.cpu_count(),
            "machine": platform.machine(),
            "python": platform.python_version(),
        },
        "basis": "measured",
    }


def _ask(
    replicas: list[Replica], digest: str, contexts: list[dict[str, Array]], every_s: float, killer: Killer
) -> tuple[list[TokenStream], dict[str, int], float]:
    machine = ClientOptions(choice="load", liveness=LivenessOptions(0.5, 6), max_failures=100)
    settings = ClientSettings(deadline_s=_PATIENCE_S, connect_s=30, machine=machine)
    addresses = [f"tcp://127.0.0.1:{replica.port}" for replica in replicas]
    with StreamClient(addresses, digest, settings=settings) as client:
        killing = threading.Thread(target=killer.run)
        killing.start()
        began = time.monotonic()
        streams = []
        for first in range(0, len(contexts), BURST):
            streams += [client.stream(context, plan="hidden") for context in contexts[first : first + BURST]]
            killer.strike()
            time.sleep(every_s)
            while client.live > BURST:
                time.sleep(0.01)
        for stream in streams:
            for _ in stream if not _failed(stream) else ():
                pass
        took_s = time.monotonic() - began
        killer.stop()
        killing.join()
        return streams, client.moves, took_s


def _failed(stream: TokenStream) -> bool:
    try:
        stream.result(_PATIENCE_S)
    except FlagsplitError as error:
        print(f"a stream failed: {error}", file=sys.stderr)
        return True
    return False


def figures_of(streams: list[TokenStream], wanted: list[tuple[int, ...]]) -> dict[str, int]:
    """How many streams are lost or different, and how many tokens doubled."""
    made = [stream.made for stream in streams]
    return {
        "lost": sum(stream.reason not in ("stop", "length") for stream in streams),
        "doubled": sum(each.offset != index for tokens in made for index, each in enumerate(tokens)),
        "different": sum(
            tuple(each.token for each in tokens) != right for tokens, right in zip(made, wanted, strict=True)
        ),
    }


def first_ms(streams: list[TokenStream]) -> dict[str, float]:
    """How long the first tokens took."""
    first = sorted(1e3 * stream.made[0].at_s for stream in streams if stream.made)
    return {
        "first_token_ms_p50": round(statistics.median(first), 1),
        "first_token_ms_p95": round(first[int(0.95 * (len(first) - 1))], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="30 streams")
    parser.add_argument("--streams", type=int, default=200, help="how many")
    parser.add_argument("--every-s", type=float, default=1.0, help="least seconds from ten to the next ten")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and the stretches of audio")
    arguments = parser.parse_args()
    found = run(30 if arguments.quick else arguments.streams, arguments.every_s, arguments.seed)
    if arguments.json:
        print(json.dumps(found))
    else:
        for name, value in (found["figures"] | found["conditions"]).items():
            print(f"{name} {value}")
    if any(found["figures"][name] > bar for name, bar in BARS.items()):
        sys.exit(1)


if __name__ == "__main__":
    main()
