"""`flagsplit serve`: a worker for one tier of a bundle."""

import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Annotated

import typer

from flagsplit.apps.cli.options import pairs
from flagsplit.apps.cli.output import print_json
from flagsplit.errors import ConfigError, PeerError
from flagsplit.runtime.bundle import open_bundle
from flagsplit.runtime.worker import Worker, WorkerSettings
from flagsplit.targets.interface import LoadOptions
from flagsplit.transport.messages import PeerAddress
from flagsplit.transport.security import KeyStore
from flagsplit.transport.zeromq import ZmqChannel


def command(
    bundle: Annotated[Path, typer.Argument(help="The bundle.")],
    tier: Annotated[str, typer.Option(help="The tier to serve.")],
    listen: Annotated[str, typer.Option(help="Where to listen, tcp://HOST:PORT; port 0 takes a free one.")],
    beyond: Annotated[
        list[str] | None, typer.Option(help="TIER=ADDRESS of a tier beyond, if sessions name it differently.")
    ] = None,
    threads: Annotated[int, typer.Option(min=0, help="Threads of the engine; 0 lets it choose.")] = 0,
    memory_mb: Annotated[float, typer.Option(min=1, help="Memory for loaded segments, 10^6 bytes.")] = 8000,
    keys: Annotated[Path | None, typer.Option(help="The key folder; by default under ~/.config/flagsplit.")] = None,
    until_stdin_closes: Annotated[bool, typer.Option(help="End when standard input closes.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object when ready.")] = False,
) -> None:
    """Serve one tier until interrupted. Only clients whose keys are allowed are heard (flagsplit keys)."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    opened = open_bundle(bundle)
    index = opened.tier_index(tier)
    if index == 0:
        raise ConfigError(f"tier {tier} is the one that asks and runs inside the session; serve one of the others")
    settings = WorkerSettings(
        memory_budget_bytes=memory_mb * 1e6,
        host=LoadOptions(threads=threads),
        beyond={name: PeerAddress(address) for name, address in pairs("--beyond", beyond).items()},
    )
    ended = threading.Event()
    broken: list[Exception] = []

    def failed(error: Exception) -> None:
        broken.append(error)
        ended.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    channel = ZmqChannel(security=KeyStore(keys).security())
    worker = Worker(opened, index, channel, listen, settings, failed)
    try:
        if as_json:
            print_json({"tier": tier, "address": worker.address, "bundle": opened.digest, "pid": os.getpid()})
        else:
            print(f"serving tier {tier} of {bundle} at {worker.address}", flush=True)
        if until_stdin_closes:
            threading.Thread(target=_watch_stdin, args=(ended,), daemon=True).start()
        ended.wait()
    finally:
        worker.stop()
    if broken:
        raise PeerError(f"the worker for tier {tier} broke: {broken[0]}")


def _watch_stdin(ended: threading.Event) -> None:
    while os.read(0, 4096):
        pass
    ended.set()
