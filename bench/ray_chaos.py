"""Streams over replicas of Ray Serve that are killed at random moments while they make tokens.

A client opens streams of Moonshine ten at a time, each of its own stretch of the zoo's recordings, from the hidden
states behind the encoder; every other stream draws its tokens. They go by ZeroMQ to a decoder service with
`--engine ray` and two replicas on this machine. At a random moment after ten were asked for, a replica that makes
tokens is killed (SIGKILL); Ray Serve brings another up. Half-way all replicas are replaced, as an upgrade does. What
each stream gives is compared with the sequential loop in this process.

Figures: `lost`, streams that ended with an error or are not complete; `doubled`, tokens that were given twice or out of
order; `different`, streams whose tokens are not those of the sequential loop. All have to be 0. Needs `flagsplit[ray]`.
"""

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from chaos_streams import BURST, PATIENCE_S, SOON_S, Asked, measure, moonshine, outcome, streams_to_ask

from flagsplit.apps.decoder_service.program_source import ProgramSource, folder_source
from flagsplit.apps.decoder_service.ray_choice import ray_engine
from flagsplit.apps.decoder_service.ray_engine import RayEngine
from flagsplit.apps.decoder_service.ray_settings import RaySettings
from flagsplit.apps.decoder_service.serve import DecoderService, DecoderSettings
from flagsplit.errors import FlagsplitError
from flagsplit.runtime.generation.client import ClientSettings, StreamClient
from flagsplit.runtime.generation.events import Event
from flagsplit.runtime.generation.options import GenerationOptions
from flagsplit.runtime.generation.token_stream import TokenStream
from flagsplit.transport.security import KeyStore
from flagsplit.transport.zeromq import ZmqChannel

REPLICAS, SLOTS = 2, 8
_LOOK_S, _LOOKS = 0.02, 200


def options_of(number: int) -> GenerationOptions:
    """Every other stream draws its tokens."""
    return GenerationOptions(temperature=0.8, seed=number) if number % 2 else GenerationOptions()


class Front:
    """A decoder service in this process whose engine is Ray's, and a client of it."""

    def __init__(self, folder: Path) -> None:
        made: list[RayEngine] = []
        settings = RaySettings(REPLICAS, slots=SLOTS, cpus=0.5, stop_s=20.0)

        def make(source: ProgramSource, decoder: DecoderSettings, emit: Callable[[Event], None]) -> RayEngine:
            engine = ray_engine(settings)(source, decoder, emit)
            assert isinstance(engine, RayEngine)
            made.append(engine)
            return engine

        source, keys = folder_source(folder), KeyStore()
        decoder = DecoderSettings(slots=SLOTS, threads=1, engine=make)
        self.service = DecoderService(source, ZmqChannel(security=keys.security()), "tcp://127.0.0.1:0", decoder)
        self.engine = made[0]
        self.client = StreamClient(
            [self.service.streams.address], source.digest, settings=ClientSettings(deadline_s=PATIENCE_S, connect_s=30)
        )

    def kill_one(self, draw: random.Random) -> bool:
        """Kill a replica that makes tokens, as soon as there is one; whether there was."""
        for _ in range(_LOOKS):
            there = sorted(self.engine.replicas())
            for where in draw.sample(there, len(there)):
                with suppress(ProcessLookupError):
                    os.kill(int(where.rpartition("/")[2]), signal.SIGKILL)
                    return True
            time.sleep(_LOOK_S)
        return False

    def close(self) -> None:
        """End the client, the service and Ray."""
        self.client.close()
        self.service.stop()


def run(count: int, every_s: float, seed: int) -> dict[str, Any]:
    """Ask for so many streams, ten every so many seconds, while replicas are killed."""
    draw = random.Random(seed)
    with moonshine() as folder:
        asked = streams_to_ask(folder, count, draw, options_of)
        front = Front(folder)
        try:
            streams, kills, took_s = _ask(front, asked, every_s, draw)
            moves = dict(front.engine.moves)
        finally:
            front.close()
    conditions = {
        "kills": kills,
        "upgrades": 1,
        "moves": moves,
        "took_s": round(took_s, 1),
        "replicas": REPLICAS,
    }
    return outcome(streams, asked, conditions)


def _ask(front: Front, asked: list[Asked], every_s: float, draw: random.Random) -> tuple[list[TokenStream], int, float]:
    streams, kills, began = list[TokenStream](), 0, time.monotonic()
    upgrading = threading.Thread(target=front.engine.upgrade)
    for first in range(0, len(asked), BURST):
        streams += [
            front.client.stream(each.context, each.options, plan="hidden") for each in asked[first : first + BURST]
        ]
        if upgrading.ident is None and first >= len(asked) / 2:
            upgrading.start()
        time.sleep(draw.uniform(*SOON_S))
        kills += front.kill_one(draw)
        time.sleep(every_s)
    for stream in streams:
        with suppress(FlagsplitError):  # It counts as lost.
            stream.result(PATIENCE_S)
    took_s = time.monotonic() - began
    upgrading.join()
    return streams, kills, took_s


if __name__ == "__main__":
    measure(__doc__, run, 40, 3.0, "seconds from ten to the next ten")
