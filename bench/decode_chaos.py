"""Streams over replicas of `flagsplit decode-serve` that are killed at random moments while they make tokens.

A client opens streams of Moonshine ten at a time, and the next ten when at most ten are left, each of its own stretch
of the zoo's recordings, from the hidden states behind the encoder. Two replicas serve them; at a random moment after
ten were asked for, one of them is killed (SIGKILL) and started again. What each stream gives is compared with the
sequential loop in this process.

Figures: `lost`, streams that ended with an error or are not complete; `doubled`, tokens that were given twice or out of
order; `different`, streams whose tokens are not those of the sequential loop. All have to be 0. Conditions say how many
kills met how many streams, and how long first tokens took meanwhile.
"""

import json
import random
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chaos_streams import BURST, PATIENCE_S, SOON_S, Asked, measure, moonshine, outcome, streams_to_ask

from flagsplit.errors import FlagsplitError
from flagsplit.runtime.generation.client import ClientSettings, StreamClient
from flagsplit.runtime.generation.client_streams import ClientOptions
from flagsplit.runtime.generation.options import GenerationOptions
from flagsplit.runtime.generation.token_stream import TokenStream
from flagsplit.runtime.liveness import LivenessOptions

REPLICAS = 2


@dataclass
class Replica:
    """One process, on the same port in all its lives."""

    program: Path
    port: int = 0
    process: "subprocess.Popen[bytes] | None" = None

    def start(self) -> str:
        """Run it and wait until it listens; the program's digest."""
        command = [
            *(sys.executable, "-m", "flagsplit.apps.cli", "decode-serve", str(self.program), "--json"),
            *("--listen", f"tcp://127.0.0.1:{self.port}", "--threads", "1", "--slots", "8", "--log-level", "warning"),
            *("--until-stdin-closes", "--linger-s", "5"),
        ]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # noqa: S603 - our own
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
            time.sleep(self.draw.uniform(*SOON_S))
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


def run(count: int, every_s: float, seed: int) -> dict[str, Any]:
    """Ask for so many streams, ten at a time, while replicas are killed."""
    draw = random.Random(seed)
    with moonshine() as folder:
        asked = streams_to_ask(folder, count, draw, lambda _: GenerationOptions())
        replicas = [Replica(folder) for _ in range(REPLICAS)]
        killer = Killer(replicas, draw)
        try:
            digests = {replica.start() for replica in replicas}
            streams, moves, took_s = _ask(replicas, digests.pop(), asked, every_s, killer)
        finally:
            for replica in replicas:
                replica.kill()
    conditions = {
        "kills": killer.kills,
        "moves": moves,
        "streams_that_moved": sum(len(set(stream.where)) > 1 for stream in streams),
        "took_s": took_s,
        "replicas": REPLICAS,
    }
    return outcome(streams, asked, conditions)


def _ask(
    replicas: list[Replica], digest: str, asked: list[Asked], every_s: float, killer: Killer
) -> tuple[list[TokenStream], dict[str, int], float]:
    machine = ClientOptions(choice="load", liveness=LivenessOptions(0.5, 6), max_failures=100)
    settings = ClientSettings(deadline_s=PATIENCE_S, connect_s=30, machine=machine)
    addresses = [f"tcp://127.0.0.1:{replica.port}" for replica in replicas]
    with StreamClient(addresses, digest, settings=settings) as client:
        killing = threading.Thread(target=killer.run)
        killing.start()
        began = time.monotonic()
        streams = []
        for first in range(0, len(asked), BURST):
            streams += [
                client.stream(each.context, each.options, plan="hidden") for each in asked[first : first + BURST]
            ]
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
        stream.result(PATIENCE_S)
    except FlagsplitError as error:
        print(f"a stream failed: {error}", file=sys.stderr)
        return True
    return False


if __name__ == "__main__":
    measure(__doc__, run, 30, 1.0, "least seconds from ten to the next ten")
